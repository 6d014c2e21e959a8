//! In which arithmetic products with quantised matrices run.

use crate::variable::{EnvironmentError, Variable};
use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

/// The arithmetic of [`linear`](super::linear()) and [`swiglu_mlp`](super::swiglu_mlp) on quantised matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// f32 throughout.
    Exact = 1,
    /// x rounded to 8 bits with a step for every 64 elements, and integer products.
    ///
    /// Outliers, elements 8 times as large as the average of their row (24 times behind the gate of [`swiglu_mlp`](super::swiglu_mlp)),
    /// keep 15 bits and do not coarsen the steps of others; so does all of x before a
    /// [`head`](super::head). What a row becomes depends on no other row. A code book is rounded to 8 bits too. It applies to code books, 8-bit blocks, 8-, 4- and 2-bit rows whose inputs (and blocks) are
    /// multiples of 64: on x86-64 with AVX-512 VNNI and VBMI (Ice Lake, Zen 4 and later) always, on x86-64 with AVX2 and on
    /// aarch64 with the dot product (Apple M1, Neoverse N1 and later) for up to 32 rows of x at a time. Everything else stays
    /// exact. A non-finite x makes its results NaN.
    Int8Activations = 2,
}

impl Precision {
    /// The name that `EMBERLM_PRECISION` takes and reports print.
    pub fn name(self) -> &'static str {
        match self {
            Precision::Exact => "exact",
            Precision::Int8Activations => "int8",
        }
    }

    /// The precision of that name.
    pub fn from_name(name: &str) -> Option<Precision> {
        [Precision::Exact, Precision::Int8Activations].into_iter().find(|precision| precision.name() == name.trim())
    }

    /// What `EMBERLM_PRECISION` names; none when it is not set.
    pub(crate) fn from_environment() -> Result<Option<Precision>, EnvironmentError> {
        let all = [Precision::Exact, Precision::Int8Activations];
        let variable = Variable { name: "EMBERLM_PRECISION", names: all.map(Precision::name) };
        Ok(variable.index(&variable.names)?.map(|place| all[place]))
    }

    /// What `EMBERLM_PRECISION` names, or exact. Read once.
    ///
    /// # Panics
    /// If there is none of that name.
    fn default_precision() -> Precision {
        static DEFAULT: OnceLock<Precision> = OnceLock::new();
        *DEFAULT.get_or_init(|| {
            let named = Precision::from_environment().unwrap_or_else(|error| panic!("{error}"));
            named.unwrap_or(Precision::Exact)
        })
    }
}

static FORCED: AtomicU8 = AtomicU8::new(0);

thread_local! {
    static LOCAL: Cell<Option<Precision>> = const { Cell::new(None) };
}

/// The precision of a kernel called now, on this thread.
///
/// # Panics
/// If nothing is set and `EMBERLM_PRECISION` names none; [`crate::environment::check`] tells before.
pub fn precision() -> Precision {
    LOCAL.get().unwrap_or_else(|| match FORCED.load(Ordering::Relaxed) {
        1 => Precision::Exact,
        2 => Precision::Int8Activations,
        _ => Precision::default_precision(),
    })
}

/// Sets the precision of the whole process, or returns to `EMBERLM_PRECISION` with `None`.
pub fn set_precision(precision: Option<Precision>) {
    FORCED.store(precision.map_or(0, |precision| precision as u8), Ordering::Relaxed);
}

/// Calls `f` with the kernels that this thread starts on `precision`.
pub fn with_precision<T>(precision: Precision, f: impl FnOnce() -> T) -> T {
    struct Restore(Option<Precision>);
    impl Drop for Restore {
        fn drop(&mut self) {
            LOCAL.set(self.0);
        }
    }
    let _restore = Restore(LOCAL.replace(Some(precision)));
    f()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_precision_holds_inside_and_ends_outside() {
        let before = precision();
        for inner in [Precision::Exact, Precision::Int8Activations] {
            assert_eq!(with_precision(inner, precision), inner);
            assert_eq!(Precision::from_name(inner.name()), Some(inner));
        }
        assert_eq!(precision(), before);
    }
}
