//! Where the shim keeps its files. A pod has no say in it: what lies in the cache is run.

use std::path::PathBuf;

use sha2::{Digest as _, Sha256};

use crate::flags::Flags;

const STATE: &str = "SAMPAN_SHIM_STATE";
const CACHE: &str = "SAMPAN_SHIM_CACHE";

/// Directory of everything that belongs to one pod's shim, gone with it.
pub fn pod_dir(flags: &Flags, group: &str) -> PathBuf {
    let root = std::env::var_os(STATE).map_or_else(|| "/run/sampan-shim".into(), PathBuf::from);
    // Two containerds may use the same names.
    let mut feed = Sha256::new();
    for part in [&flags.address, &flags.namespace, group] {
        feed.update(part);
        feed.update([0]);
    }
    root.join(feed.finalize().iter().take(12).map(|byte| format!("{byte:02x}")).collect::<String>())
}

/// Compiled modules of the whole node.
pub fn cache_dir() -> PathBuf {
    std::env::var_os(CACHE).map_or_else(|| "/var/lib/sampan-shim".into(), PathBuf::from)
}
