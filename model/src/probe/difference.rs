//! The mean of paired differences, its error, and what can be told from it.

/// How much worse one candidate is than another, over the blocks that both read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// Mean difference, in nats per token; negative when the candidate is better.
    pub mean: f64,
    /// Standard error of the mean: the deviation of the differences of the blocks, over the root of their number.
    pub error: f64,
    /// Blocks.
    pub blocks: usize,
}

impl Difference {
    /// Errors of the normal distribution beyond which a difference is told: one in 370 equals looks like this.
    pub const TOLD: f64 = 3.0;
    /// Errors of the normal distribution beyond which a candidate is dropped; higher, because it is looked for after every block.
    pub const HOPELESS: f64 = 4.0;

    /// Of `a` against `b`, block by block.
    pub fn of(a: &[f64], b: &[f64]) -> Self {
        let blocks = a.len().min(b.len());
        let n = blocks as f64;
        let differences = || a.iter().zip(b).map(|(a, b)| a - b);
        let mean = differences().sum::<f64>() / n;
        let squares: f64 = differences().map(|d| (d - mean).powi(2)).sum();
        Self { mean, error: (squares / (n - 1.0) / n).sqrt(), blocks }
    }

    /// Whether the difference is more than chance, at so many errors of the normal distribution. With few blocks the error itself
    /// is uncertain: Student's distribution asks for more errors then.
    pub fn exceeds(&self, errors: f64) -> bool {
        self.blocks >= 3 && self.mean.abs() > student(errors, self.blocks - 1) * self.error
    }

    /// Whether the candidate is worse, beyond chance.
    pub fn is_worse(&self) -> bool {
        self.mean > 0.0 && self.exceeds(Self::TOLD)
    }

    /// Whether it is so much worse that further blocks are not worth their time.
    pub(super) fn is_hopeless(&self) -> bool {
        self.mean > 0.0 && self.exceeds(Self::HOPELESS)
    }
}

/// The quantile of Student's distribution that a normal one of `z` errors is, by Wallace's approximation (1959): within 4 % from 7
/// degrees of freedom on, and never too small.
fn student(z: f64, degrees: usize) -> f64 {
    let v = degrees as f64;
    let z = z * (8.0 * v + 3.0) / (8.0 * v + 1.0);
    (v * (z * z / v).exp_m1()).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Quantiles by numeric integration of the density.
    #[test]
    fn quantiles_are_those_of_students_distribution() {
        let known = [(3.0, 7, 4.530), (3.0, 15, 3.586), (3.0, 63, 3.124), (5.0, 15, 8.267), (5.0, 63, 5.565)];
        for (z, degrees, expected) in known {
            let ratio = student(z, degrees) / expected;
            assert!((0.9995..1.01).contains(&ratio), "z {z}, {degrees} degrees: {ratio} times {expected}");
        }
    }

    #[test]
    fn a_difference_is_paired() {
        // Blocks that differ by much, candidates that differ by little and evenly.
        let a: Vec<f64> = (0..8).map(|i| f64::from(i) + 0.01 + 0.001 * f64::from(i % 2)).collect();
        let b: Vec<f64> = (0..8).map(f64::from).collect();
        let found = Difference::of(&a, &b);
        assert!((found.mean - 0.0105).abs() < 1e-9, "{found:?}");
        // Deviation sqrt(8 * 0.0005^2 / 7), over sqrt(8).
        assert!((found.error - 0.0005 / 7f64.sqrt()).abs() < 1e-9, "{found:?}");
        assert!(found.is_worse() && found.is_hopeless());
        let back = Difference::of(&b, &a);
        assert!(!back.is_worse() && back.exceeds(Difference::TOLD), "{back:?}");
    }

    #[test]
    fn what_is_equal_or_barely_seen_is_not_told_apart() {
        let same = Difference::of(&[1.0; 20], &[1.0; 20]);
        assert!(!same.exceeds(Difference::TOLD) && same.error == 0.0);
        for few in [&[][..], &[3.0], &[3.0, 3.1]] {
            assert!(!Difference::of(few, &[1.0, 1.0]).exceeds(Difference::TOLD), "{few:?}");
        }
        // Its mean is two errors.
        let noisy: Vec<f64> = (0..16).map(|i| if i % 2 == 0 { 1.0 } else { -0.35 }).collect();
        let found = Difference::of(&noisy, &[0.0; 16]);
        assert!(found.mean > 1.8 * found.error && !found.is_worse(), "{found:?}");
    }
}
