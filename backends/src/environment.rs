//! The environment variables that kernels obey: for tests and measurements, read once.
//!
//! An empty value is none. One that is not allowed is an error: [`check`] returns it, programs ask that first, and a kernel that
//! would have to obey it panics with the same text.

pub use crate::variable::EnvironmentError;
use crate::variable::GPU;

/// Checks all of them.
///
/// # Errors
/// The first whose value is not allowed.
pub fn check() -> Result<(), EnvironmentError> {
    crate::cpu::Level::from_environment()?;
    GPU.index(&GPU.names)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_variables_of_this_process_are_allowed() {
        assert_eq!(super::check(), Ok(()));
    }
}
