//! The store, and answers from it.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::ConfigError;
use super::flags::{OwnFlags, YurthubFlags};
use super::value::{SizeLimits, positive_duration};

const PAGE_CACHE: SizeLimits = SizeLimits {
    min: 64 << 10,
    min_text: "64Ki",
    max: 1 << 30,
    max_text: "1Gi",
};

/// The least that holds one large list, several documents and a batch of changes.
const STORE_SIZE: SizeLimits = SizeLimits {
    min: 64 << 20,
    min_text: "64Mi",
    max: usize::MAX,
    max_text: "the file system's size",
};

#[derive(Debug, Clone, Serialize)]
pub struct CacheConfig {
    /// `--disk-cache-path`: the directory of `hublet.redb`.
    pub dir: PathBuf,
    /// `--store-page-cache`: redb's page cache in bytes.
    pub page_cache: usize,
    /// `--cache-max-bytes`: maximum size on disk.
    pub max_bytes: u64,
}

/// Answers from the store.
#[derive(Debug, Clone, Serialize)]
pub struct LocalConfig {
    /// `--grant-max-age`: how long an observed permission is honoured while disconnected.
    #[serde(with = "super::seconds")]
    pub grant_max_age: Duration,
    /// `--min-request-timeout`: length of an offline watch without `timeoutSeconds`, multiplied by
    /// a random factor between 1 and 2.
    #[serde(with = "super::seconds")]
    pub min_request_timeout: Duration,
}

pub(super) fn check_cache(
    flags: &YurthubFlags,
    own: &OwnFlags,
) -> Result<CacheConfig, ConfigError> {
    Ok(CacheConfig {
        dir: flags.disk_cache_path.clone(),
        page_cache: PAGE_CACHE.check("store-page-cache", own.store_page_cache)?,
        max_bytes: STORE_SIZE.check("cache-max-bytes", own.cache_max_bytes)? as u64,
    })
}

pub(super) fn check_local(
    flags: &YurthubFlags,
    own: &OwnFlags,
) -> Result<LocalConfig, ConfigError> {
    Ok(LocalConfig {
        grant_max_age: positive_duration("grant-max-age", own.grant_max_age)?,
        min_request_timeout: positive_duration("min-request-timeout", flags.min_request_timeout)?,
    })
}
