//! Which instruction set the kernels run on.

use crate::variable::{EnvironmentError, Variable};
use std::cell::Cell;
use std::sync::OnceLock;

/// An instruction set that the kernels are written for, slowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Portable code; runs everywhere.
    Scalar,
    /// aarch64 with Advanced SIMD.
    Neon,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// That and products of bytes in 32 bits: AVX-VNNI, or AVX-512 VNNI on registers of 256 bits.
    AvxVnni,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
}

impl Level {
    const ALL: [Level; 5] = [Level::Scalar, Level::Neon, Level::Avx2, Level::AvxVnni, Level::Avx512];

    /// The name that `EMBERLM_CPU` takes and reports print.
    pub fn name(self) -> &'static str {
        match self {
            Level::Scalar => "scalar",
            Level::Neon => "neon",
            Level::Avx2 => "avx2",
            Level::AvxVnni => "avxvnni",
            Level::Avx512 => "avx512",
        }
    }

    /// Whether it multiplies BF16 on this machine: `vdpbf16ps`.
    pub fn multiplies_bf16(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self == Level::Avx512 && is_x86_feature_detected!("avx512bf16");
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// Whether this machine can run it.
    pub fn is_available(self) -> bool {
        match self {
            Level::Scalar => true,
            #[cfg(target_arch = "aarch64")]
            Level::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => avx2(),
            #[cfg(target_arch = "x86_64")]
            Level::AvxVnni => avx2() && (has_vnni_of_avx() || has_vnni_of_avx512()),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => {
                avx2()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }

    /// Every level that this machine can run, slowest first.
    pub fn available() -> Vec<Level> {
        Level::ALL.into_iter().filter(|level| level.is_available()).collect()
    }

    /// What `EMBERLM_CPU` names; none when it is not set.
    pub(crate) fn from_environment() -> Result<Option<Level>, EnvironmentError> {
        let allowed: Vec<&'static str> = Level::available().into_iter().map(Level::name).collect();
        let variable = Variable { name: "EMBERLM_CPU", names: Level::ALL.map(Level::name) };
        Ok(variable.index(&allowed)?.map(|place| Level::ALL[place]))
    }

    /// The fastest level of this machine, or what `EMBERLM_CPU` names. Read once.
    ///
    /// # Panics
    /// If it names none that this machine has.
    fn default_level() -> Level {
        static DEFAULT: OnceLock<Level> = OnceLock::new();
        *DEFAULT.get_or_init(|| {
            let named = Level::from_environment().unwrap_or_else(|error| panic!("{error}"));
            named.unwrap_or_else(|| Level::available().into_iter().max().unwrap_or(Level::Scalar))
        })
    }
}

#[cfg(target_arch = "x86_64")]
fn avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

/// Whether there is VNNI in the encoding of AVX.
#[cfg(target_arch = "x86_64")]
pub(crate) fn has_vnni_of_avx() -> bool {
    is_x86_feature_detected!("avxvnni")
}

/// Whether there is VNNI on registers of 256 bits in the encoding of AVX-512.
#[cfg(target_arch = "x86_64")]
pub(crate) fn has_vnni_of_avx512() -> bool {
    is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512vl")
}

thread_local! {
    static LOCAL: Cell<Option<Level>> = const { Cell::new(None) };
}

/// The level that a kernel called now, on this thread, runs on.
///
/// # Panics
/// If `EMBERLM_CPU` names no level of this machine; [`crate::environment::check`] tells before.
pub fn level() -> Level {
    if let Some(level) = LOCAL.get() {
        return level;
    }
    Level::default_level()
}

/// Calls `f` with the kernels that this thread starts forced to `level`.
///
/// # Panics
/// If the machine lacks the level.
pub fn with_level<T>(level: Level, f: impl FnOnce() -> T) -> T {
    struct Restore(Option<Level>);
    impl Drop for Restore {
        fn drop(&mut self) {
            LOCAL.set(self.0);
        }
    }
    assert!(level.is_available(), "this machine has no {}", level.name());
    let _restore = Restore(LOCAL.replace(Some(level)));
    f()
}

/// The instruction sets found on this machine that matter to the kernels, for reports.
pub fn features() -> Vec<&'static str> {
    let mut found = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! note {
            ($($name:tt),*) => { $(if is_x86_feature_detected!($name) { found.push($name); })* };
        }
        note!(
            "avx",
            "f16c",
            "fma",
            "avx2",
            "avxvnni",
            "avx512f",
            "avx512bw",
            "avx512dq",
            "avx512vl",
            "avx512vnni",
            "avx512vbmi",
            "avx512bf16"
        );
    }
    #[cfg(target_arch = "aarch64")]
    {
        macro_rules! note {
            ($($name:tt),*) => { $(if std::arch::is_aarch64_feature_detected!($name) { found.push($name); })* };
        }
        note!("neon", "fp16", "dotprod", "bf16", "i8mm");
    }
    found.shrink_to_fit();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forced_level_holds_inside_and_ends_outside() {
        let before = level();
        assert_eq!(with_level(Level::Scalar, level), Level::Scalar);
        assert_eq!(level(), before);
    }

    #[test]
    fn a_level_of_another_machine_is_refused() {
        let foreign = if cfg!(target_arch = "x86_64") { Level::Neon } else { Level::Avx512 };
        assert!(!foreign.is_available());
        assert!(!Level::available().contains(&foreign));
    }
}
