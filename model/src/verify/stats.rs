//! What is counted of the numbers of a tensor, in pieces that are put together in order.

use std::hash::{DefaultHasher, Hasher};

use emberlm_quant::host::FloatType;

use crate::checkpoint::Dtype;

/// Rows that are listed one by one.
const LISTED: usize = 1 << 14;
/// Numbers that are converted at once.
const BLOCK: usize = 512;
/// A magnitude that no trained weight has. Larger numbers are counted and left out of the sums, which they would swallow.
pub(super) const HUGE: f32 = 1e6;

/// Counts, sums and extremes of a tensor or a piece of one. Of types that are no floats, bytes are counted.
#[derive(Clone, Debug, Default)]
pub(super) struct Stats {
    /// Numbers, or bytes.
    pub count: u64,
    pub nan: u64,
    pub infinite: u64,
    /// Beyond [`HUGE`].
    pub huge: u64,
    /// The first that is none of the finite ones up to [`HUGE`].
    pub first_odd: Option<u64>,
    /// The largest magnitude that is finite.
    pub largest: f32,
    pub largest_at: u64,
    pub zeros: u64,
    pub negative: u64,
    pub first_negative: Option<u64>,
    /// Of the finite ones up to [`HUGE`].
    pub sum: f64,
    pub squares: f64,
    /// Numbers (bytes) that are 0 and follow each other.
    pub zero_run: Run,
    /// Rows of zeros alone: how many, and the first ones.
    pub zero_rows: u64,
    pub listed_zero_rows: Vec<u64>,
    /// Rows of one value that is not 0.
    pub constant_rows: u64,
    pub first_constant_row: Option<u64>,
    /// Rows that were counted.
    pub rows: u64,
    /// Of all bytes; of tensors of one shape the same only where the bytes are.
    pub hash: u64,
}

/// The longest run of zeros.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Run {
    pub longest: u64,
    pub at: u64,
    /// At the beginning and at the end of what was counted.
    prefix: u64,
    suffix: u64,
}

impl Stats {
    /// The root of the mean square.
    pub fn rms(&self) -> f64 {
        (self.squares / self.usual().max(1) as f64).sqrt()
    }

    pub fn mean(&self) -> f64 {
        self.sum / self.usual().max(1) as f64
    }

    /// As [`Self::rms`], without the largest number.
    pub fn rms_of_others(&self) -> f64 {
        let largest = f64::from(if self.largest > HUGE { 0.0 } else { self.largest });
        let others = (self.squares - largest * largest).max(0.0);
        (others / self.usual().saturating_sub(1).max(1) as f64).sqrt()
    }

    /// Whether all numbers are finite.
    pub fn is_finite(&self) -> bool {
        self.nan + self.infinite == 0
    }

    fn usual(&self) -> u64 {
        self.count - self.nan - self.infinite - self.huge
    }

    /// Bytes of a tensor of a type, in rows of `width` elements; none where it has no rows.
    pub fn of(dtype: Dtype, width: Option<usize>, bytes: &[u8]) -> Self {
        let float = match dtype {
            Dtype::F32 => Some(FloatType::F32),
            Dtype::F16 => Some(FloatType::F16),
            Dtype::Bf16 => Some(FloatType::Bf16),
            _ => None,
        };
        let mut out = Self::default();
        match float {
            Some(float) => {
                for piece in bytes.chunks(BLOCK * float.size()) {
                    out.count_floats(float, piece);
                }
                out.count_rows(width.map_or(0, |width| width.saturating_mul(float.size())), float.size(), bytes);
            }
            None => {
                out.count_zeros(bytes.iter().map(|&byte| byte == 0));
                out.count = bytes.len() as u64;
                out.count_rows(width.map_or(0, |width| width.saturating_mul(dtype.size())), dtype.size(), bytes);
            }
        }
        let mut hash = DefaultHasher::new();
        hash.write(bytes);
        out.hash = hash.finish();
        out
    }

    fn count_floats(&mut self, float: FloatType, bytes: &[u8]) {
        let mut values = [0f32; BLOCK];
        let count = bytes.len() / float.size();
        let values = values.get_mut(..count).unwrap_or_default();
        float.decode(bytes, values);
        let values = &*values;
        // Without the sign, the bits of floats are ordered as integers, infinity and NaN on top.
        let (mut largest, mut zeros, mut signs) = (0u32, 0u32, 0u32);
        for value in values {
            let magnitude = value.to_bits() & 0x7fff_ffff;
            largest = largest.max(magnitude);
            zeros += u32::from(magnitude == 0);
            signs += u32::from(*value < 0.0);
        }
        let at = self.count;
        let place = |found: Option<usize>| found.map(|i| at + i as u64);
        if signs > 0 && self.first_negative.is_none() {
            self.first_negative = place(values.iter().position(|value| *value < 0.0));
        }
        if zeros == 0 {
            self.zero_run = self.zero_run.followed_by(Run::default(), at, count as u64);
        } else {
            self.zero_run =
                self.zero_run.followed_by(Run::of(values.iter().map(|value| *value == 0.0)), at, count as u64);
        }
        self.count += count as u64;
        self.zeros += u64::from(zeros);
        self.negative += u64::from(signs);
        let largest = f32::from_bits(largest);
        if largest <= HUGE {
            if largest > self.largest {
                self.largest = largest;
                self.largest_at = place(values.iter().position(|value| value.abs() == largest)).unwrap_or(at);
            }
            let (sum, squares) = sums(values.iter().copied());
            self.sum += sum;
            self.squares += squares;
            return;
        }
        if self.first_odd.is_none() {
            self.first_odd = place(values.iter().position(|value| !value.is_finite() || value.abs() > HUGE));
        }
        for (i, value) in values.iter().enumerate() {
            self.nan += u64::from(value.is_nan());
            self.infinite += u64::from(value.is_infinite());
            self.huge += u64::from(value.is_finite() && value.abs() > HUGE);
            if value.is_finite() && value.abs() > self.largest {
                self.largest = value.abs();
                self.largest_at = at + i as u64;
            }
        }
        let (sum, squares) = sums(values.iter().copied().filter(|value| value.abs() <= HUGE));
        self.sum += sum;
        self.squares += squares;
    }

    fn count_zeros(&mut self, zeros: impl Iterator<Item = bool> + Clone) {
        self.zero_run = Run::of(zeros.clone());
        self.zeros = zeros.filter(|zero| *zero).count() as u64;
    }

    /// Rows of `stride` bytes whose elements have `size`.
    fn count_rows(&mut self, stride: usize, size: usize, bytes: &[u8]) {
        if stride == 0 || stride < 8 * size {
            return;
        }
        for (row, bytes) in bytes.chunks_exact(stride).enumerate() {
            self.rows += 1;
            let first = bytes.get(..size).unwrap_or_default();
            // Most rows differ in the first two elements.
            if bytes.get(size..2 * size) != Some(first) || !bytes.chunks_exact(size).all(|element| element == first) {
                continue;
            }
            if first.iter().all(|&byte| byte == 0) {
                self.zero_rows += 1;
                if self.listed_zero_rows.len() < LISTED {
                    self.listed_zero_rows.push(row as u64);
                }
            } else {
                self.constant_rows += 1;
                self.first_constant_row = self.first_constant_row.or(Some(row as u64));
            }
        }
    }

    /// This piece and the one after it.
    pub fn followed_by(mut self, next: Self) -> Self {
        let at = self.count;
        let moved = |place: Option<u64>| place.map(|place| at + place);
        self.first_odd = self.first_odd.or(moved(next.first_odd));
        self.first_negative = self.first_negative.or(moved(next.first_negative));
        if next.largest > self.largest {
            (self.largest, self.largest_at) = (next.largest, at + next.largest_at);
        }
        self.zero_run = self.zero_run.followed_by(next.zero_run, at, next.count);
        let rows = self.rows;
        let room = LISTED - self.listed_zero_rows.len();
        self.listed_zero_rows.extend(next.listed_zero_rows.into_iter().take(room).map(|row| row + rows));
        self.first_constant_row = self.first_constant_row.or(next.first_constant_row.map(|row| row + rows));
        self.count += next.count;
        self.nan += next.nan;
        self.infinite += next.infinite;
        self.huge += next.huge;
        self.zeros += next.zeros;
        self.negative += next.negative;
        self.sum += next.sum;
        self.squares += next.squares;
        self.zero_rows += next.zero_rows;
        self.constant_rows += next.constant_rows;
        self.rows += next.rows;
        let mut hash = DefaultHasher::new();
        hash.write_u64(self.hash);
        hash.write_u64(next.hash);
        self.hash = hash.finish();
        self
    }
}

impl Run {
    fn of(zeros: impl Iterator<Item = bool>) -> Self {
        let (mut out, mut current, mut count) = (Self::default(), 0, 0);
        for zero in zeros {
            count += 1;
            current = if zero { current + 1 } else { 0 };
            if current > out.longest {
                (out.longest, out.at) = (current, count - current);
            }
            if current == count {
                out.prefix = count;
            }
        }
        out.suffix = current;
        out
    }

    /// This run, of `at` numbers, and that of the `count` numbers after them.
    fn followed_by(self, next: Self, at: u64, count: u64) -> Self {
        let bridge = self.suffix + next.prefix;
        let (longest, place) = [(self.longest, self.at), (bridge, at - self.suffix), (next.longest, at + next.at)]
            .into_iter()
            .fold((0, 0), |best, run| if run.0 > best.0 { run } else { best });
        Self {
            longest,
            at: place,
            prefix: if self.prefix == at { at + next.prefix } else { self.prefix },
            suffix: if next.suffix == count { self.suffix + count } else { next.suffix },
        }
    }
}

/// Sum and sum of squares.
fn sums(values: impl Iterator<Item = f32>) -> (f64, f64) {
    values.fold((0.0, 0.0), |(sum, squares), value| {
        let value = f64::from(value);
        (sum + value, squares + value * value)
    })
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    fn bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    /// However a tensor is cut into pieces, the counts are the same.
    #[test]
    fn pieces_are_the_whole() {
        let mut values: Vec<f32> = (0..4096).map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0).collect();
        values[1000] = f32::NAN;
        values[1500] = 3e7;
        values[1600] = f32::NEG_INFINITY;
        values[2000..2700].fill(0.0);
        values[3072..3088].fill(2.5);
        let data = bytes(&values);
        let whole = Stats::of(Dtype::F32, Some(16), &data);
        assert_eq!((whole.nan, whole.infinite, whole.huge, whole.first_odd), (1, 1, 1, Some(1000)));
        assert_eq!((whole.largest, whole.largest_at), (3e7, 1500));
        assert_eq!((whole.zero_run.longest, whole.zero_run.at), (700, 2000));
        assert_eq!((whole.zero_rows, whole.listed_zero_rows[0]), (43, 125));
        assert_eq!((whole.constant_rows, whole.first_constant_row), (1, Some(192)));
        for rows in [1, 3, 32, 100] {
            let pieces = data.chunks(rows * 64).map(|piece| Stats::of(Dtype::F32, Some(16), piece));
            let put = pieces.reduce(Stats::followed_by).unwrap();
            assert_eq!((put.count, put.nan, put.infinite, put.huge), (4096, 1, 1, 1), "{rows}");
            assert_eq!((put.first_odd, put.first_negative), (whole.first_odd, whole.first_negative), "{rows}");
            assert_eq!((put.largest, put.largest_at), (whole.largest, whole.largest_at), "{rows}");
            assert_eq!((put.zero_run.longest, put.zero_run.at), (700, 2000), "{rows}");
            assert_eq!(put.listed_zero_rows, whole.listed_zero_rows, "{rows}");
            assert_eq!((put.constant_rows, put.first_constant_row), (1, Some(192)), "{rows}");
            assert!((put.sum - whole.sum).abs() < 1e-9 && (put.squares - whole.squares).abs() < 1e-9, "{rows}");
        }
        let usual = values.iter().filter(|value| value.abs() <= HUGE);
        let squares: f64 = usual.map(|value| f64::from(*value).powi(2)).sum();
        assert!((whole.squares - squares).abs() < 1e-6);
    }

    #[test]
    fn halves_are_read_as_what_they_are() {
        for (dtype, data) in [
            (Dtype::F16, [1.0, -2.0, 0.5].map(f16::from_f32).map(f16::to_le_bytes).concat()),
            (Dtype::Bf16, [1.0, -2.0, 0.5].map(bf16::from_f32).map(bf16::to_le_bytes).concat()),
        ] {
            let stats = Stats::of(dtype, None, &data);
            assert_eq!((stats.count, stats.largest, stats.largest_at, stats.sum), (3, 2.0, 1, -0.5));
            assert_eq!((stats.negative, stats.first_negative, stats.squares), (1, Some(1), 5.25));
        }
        let stats = Stats::of(Dtype::U8, None, &[1, 0, 0, 7]);
        assert_eq!((stats.count, stats.zeros, stats.zero_run.longest, stats.zero_run.at), (4, 2, 2, 1));
    }
}
