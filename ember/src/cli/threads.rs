//! How many threads compute: what a flag says, or `RAYON_NUM_THREADS`, or all that the machine runs at once.

use anyhow::{Context, Result, bail, ensure};
use emberlm::backends::cpu;

use super::output;

const VARIABLE: &str = "RAYON_NUM_THREADS";

/// Starts the threads. Where the system refuses some of them, a line on stderr says so and the others are used.
pub fn start(flag: Option<u16>) -> Result<()> {
    let wanted = match flag {
        Some(threads) => Some(threads.into()),
        None => std::env::var_os(VARIABLE).map(|value| number(&value.to_string_lossy())).transpose()?.flatten(),
    };
    if let Some(threads) = wanted {
        ensure!(cpu::set_threads(threads), "--threads {threads}: the threads are already running");
    }
    if let Some(wanted) = cpu::refused_threads() {
        let threads = match cpu::threads() {
            1 => "1 thread computes".to_owned(),
            threads => format!("{threads} threads compute"),
        };
        output::note(&format!(
            "warning: the system refuses {wanted} threads, so {threads}; a limit on processes (ulimit -u, a container's \
             pids) or on memory (ulimit -v) can be the reason"
        ));
    }
    Ok(())
}

/// A count of threads from the environment; none when it is empty or 0, which are all for rayon too.
fn number(value: &str) -> Result<Option<usize>> {
    let value = value.trim();
    if value.is_empty() || value == "0" {
        return Ok(None);
    }
    let most = cpu::MAX_THREADS;
    let threads: usize = value.parse().with_context(|| {
        format!("{VARIABLE}={}: expected a number from 1 to {most}, or 0 for all", output::printable(value))
    })?;
    if !(1..=most).contains(&threads) {
        bail!("{VARIABLE}={threads}: expected a number from 1 to {most}, or 0 for all");
    }
    Ok(Some(threads))
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn the_environment_is_bounded_like_the_flag() {
        for (value, threads) in
            [("", None), (" ", None), ("0", None), ("1", Some(1)), (" 8 ", Some(8)), ("1024", Some(1024))]
        {
            assert_eq!(number(value).unwrap(), threads, "{value:?}");
        }
        for value in ["1025", "100000000000000000000", "-1", "2.5", "all", "8 threads"] {
            let error = number(value).unwrap_err().to_string();
            assert!(error.contains("RAYON_NUM_THREADS=") && error.contains("from 1 to 1024"), "{error}");
        }
    }
}
