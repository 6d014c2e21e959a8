//! Code books in bytes.

use std::cell::Cell;

/// A code book in bytes: `value ≈ factor * (byte + shift)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Book {
    pub(super) bytes: [i8; 16],
    pub(super) factor: f32,
    pub(super) shift: Shift,
}

/// The part of a byte by which those of a book stand for more than they say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Shift(f32);

impl Shift {
    /// Nothing.
    pub(super) const NONE: Shift = Shift(0.0);

    /// What the shift adds to the products with 8 elements of x each, of these sums; it is rounded, to parts of a thousand of what the
    /// rounding of x changes.
    #[inline(always)]
    pub(super) fn of<const N: usize>(self, sums: [i32; N]) -> [i32; N] {
        // Adding it leaves whole numbers in the lower bits, which vectors do; numbers up to 2^22, and sums are less than 2^17.
        const WHOLE: f32 = (3 << 22) as f32;
        if self.0.abs() <= 32.0 {
            return sums.map(|sum| (self.0 * sum as f32 + WHOLE).to_bits().wrapping_sub(WHOLE.to_bits()) as i32);
        }
        sums.map(|sum| (self.0 * sum as f32).round_ties_even() as i32)
    }
}

impl Book {
    /// The bytes whose rounding errors are least.
    ///
    /// All layers of a model have the same, so the last one is kept.
    pub(super) fn new(values: &[f32; 16]) -> Book {
        type Fitted = ([f32; 16], Book);
        const NOTHING: Book = Book { bytes: [0; 16], factor: 0.0, shift: Shift::NONE };
        thread_local! {
            static LAST: Cell<Fitted> = const { Cell::new(([0.0; 16], NOTHING)) };
        }
        let (of, made) = LAST.get();
        if of == *values {
            return made;
        }
        let made = Book::fitted(values);
        LAST.set((*values, made));
        made
    }

    /// Tries scales that use 64 to 127 steps in eighths, and zeros between steps in sixteenths; each with the line through the bytes
    /// that fits the values best.
    fn fitted(values: &[f32; 16]) -> Book {
        let largest = values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        if largest < 1e-30 {
            return Book { bytes: [0; 16], factor: 0.0, shift: Shift::NONE };
        }
        let exact = values.map(|value| f64::from(value) / f64::from(largest));
        let mut best = (f64::INFINITY, [0.0; 16], 0.0, 0.0);
        for eighths in 512..=1020 {
            for sixteenths in -8..=8 {
                let (steps, zero) = (f64::from(eighths) / 8.0, f64::from(sixteenths) / 16.0);
                let bytes = exact.map(|value| (value * steps + zero).round_ties_even());
                if bytes.iter().any(|byte| !(-128.0..=127.0).contains(byte)) {
                    continue;
                }
                let (slope, start) = line(&bytes, &exact);
                let off = |(byte, value): (&f64, &f64)| (slope * byte + start - value).powi(2);
                let error: f64 = bytes.iter().zip(&exact).map(off).sum();
                if error < best.0 {
                    best = (error, bytes, slope, start);
                }
            }
        }
        let (_, bytes, slope, start) = best;
        let shift = if slope > 0.0 { Shift((start / slope) as f32) } else { Shift::NONE };
        Book { bytes: bytes.map(|byte| byte as i8), factor: (slope * f64::from(largest)) as f32, shift }
    }
}

/// Slope and start of the line of least squares.
fn line(x: &[f64; 16], y: &[f64; 16]) -> (f64, f64) {
    let mean = |v: &[f64; 16]| v.iter().sum::<f64>() / 16.0;
    let (mean_x, mean_y) = (mean(x), mean(y));
    let (mut xx, mut xy) = (0.0, 0.0);
    for (x, y) in x.iter().zip(y) {
        xx += (x - mean_x).powi(2);
        xy += (x - mean_x) * (y - mean_y);
    }
    // A book of one value is a multiple of its byte.
    let slope = if xx > 0.0 { xy / xx } else { mean_y / mean_x };
    (slope, mean_y - slope * mean_x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_with_a_shift_are_rounded_to_the_nearest_whatever_its_size() {
        // The largest of eight elements, what lies between two whole numbers, and shifts of books that are no use.
        let sums = [0, 1, -1, 3, 1016, -1024, 131_064, -131_072];
        for shift in [0.0, 0.5, -0.5, 0.3, -0.499, 1.5, 31.9, 32.0, -32.0, 32.1, 128.0, -1e9] {
            let expected = sums.map(|sum| (shift * sum as f32).round_ties_even() as i32);
            assert_eq!(Shift(shift).of(sums), expected, "{shift}");
        }
    }
}
