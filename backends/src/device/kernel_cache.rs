//! CubeCL's cache of compiled kernels on disk, which is kept from being used.

use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};

/// Takes the cache (`cache` in `[compilation]` of `cubecl.toml`) out of CubeCL's configuration before a device reads it.
///
/// CubeCL 0.10 looks kernels up by a hash that leaves out which optional arguments are there, so that a product with a bias and one with a
/// gate are the same to it and get each other's code, and that stays the same when the code of a kernel changes.
///
/// # Errors
/// When the configuration was read or set before, with a cache.
pub(super) fn forbid() -> Result<(), String> {
    let mut configured = CubeClRuntimeConfig::storage().lock();
    match &*configured {
        Some(config) => check(config),
        None => {
            let config = without(CubeClRuntimeConfig::from_current_dir().override_from_env());
            *configured = Some(config.into());
            Ok(())
        }
    }
}

fn check(config: &CubeClRuntimeConfig) -> Result<(), String> {
    if config.compilation.cache.is_none() {
        return Ok(());
    }
    Err("CubeCL is configured with a cache of compiled kernels, which confuses them; set `compilation.cache` to none"
        .into())
}

fn without(mut config: CubeClRuntimeConfig) -> CubeClRuntimeConfig {
    if config.compilation.cache.take().is_some() {
        tracing::warn!("the cache of compiled kernels in CubeCL's configuration is not used: it confuses kernels");
    }
    config
}

#[cfg(test)]
mod tests {
    use cubecl::config::cache::CacheConfig;

    use super::*;

    #[test]
    fn a_configured_kernel_cache_is_not_used() {
        let mut config = CubeClRuntimeConfig::default();
        assert_eq!(check(&config), Ok(()));
        config.compilation.cache = Some(CacheConfig::Local);
        assert!(check(&config).unwrap_err().contains("compilation.cache"));
        assert_eq!(check(&without(config)), Ok(()));
    }
}
