//! In which arithmetic products run.

use std::cell::Cell;

/// The arithmetic of [`linear`](super::linear()) and [`swiglu_mlp`](super::swiglu_mlp).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// f32 throughout.
    #[default]
    Exact,
    /// x rounded to 8 bits with a step for every 64 elements, and integer products.
    ///
    /// Outliers, elements 5 times as large as the average of their row (8 times behind the gate of [`swiglu_mlp`](super::swiglu_mlp)),
    /// keep 15 bits and do not coarsen the steps of others; so does all of x before a
    /// [`head`](super::head). What a row becomes depends on no other row. A code book is rounded to 8 bits too. It applies to code books,
    /// 8-bit blocks, 8-, 4- and 2-bit rows whose inputs (and blocks) are multiples of 64: on x86-64 with AVX2 always, on aarch64 with the
    /// dot product (Apple M1, Neoverse N1 and later). Everything else stays exact. A non-finite x makes its
    /// results NaN.
    Int8Activations,
    /// x rounded to BF16 in products with BF16 weights, whose sums are in f32. Everything else stays exact.
    ///
    /// Every number of rows of x is rounded, by every processor. Where it multiplies BF16 (AVX-512 with BF16), a row has the same bits
    /// alone and among others; elsewhere, and in the last digits of f32, the result is that of the exact kernels for x so rounded. Numbers
    /// below the smallest normal one (1.2e-38) may count as 0.
    Bf16Activations,
    /// As weights are stored, where it is faster: [`Int8Activations`](Self::Int8Activations) with what that applies to,
    /// [`Bf16Activations`](Self::Bf16Activations) with BF16 matrices of [`AUTO_MIN_MATRIX_ROWS`](Self::AUTO_MIN_MATRIX_ROWS) and more where the
    /// processor multiplies BF16. Everything else stays exact.
    Auto,
}

impl Precision {
    /// The fewest rows of a BF16 matrix beside which [`Auto`](Self::Auto) rounds. The products of fewer (gates that decide whether a token
    /// halts, decays of linear attention) take no time that counts.
    pub const AUTO_MIN_MATRIX_ROWS: usize = 64;
}

thread_local! {
    static LOCAL: Cell<Precision> = const { Cell::new(Precision::Exact) };
}

/// The precision of a kernel called now, on this thread: exact, unless [`with_precision`] says otherwise.
pub fn precision() -> Precision {
    LOCAL.get()
}

/// Calls `f` with the kernels that this thread starts on `precision`.
pub fn with_precision<T>(precision: Precision, f: impl FnOnce() -> T) -> T {
    struct Restore(Precision);
    impl Drop for Restore {
        fn drop(&mut self) {
            LOCAL.set(self.0);
        }
    }
    let _restore = Restore(LOCAL.replace(precision));
    f()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_precision_holds_inside_and_ends_outside() {
        for inner in [Precision::Exact, Precision::Int8Activations, Precision::Bf16Activations, Precision::Auto] {
            assert_eq!(with_precision(inner, precision), inner);
        }
        assert_eq!(precision(), Precision::Exact);
    }
}
