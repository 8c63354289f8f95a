//! The verbose part of containerd's answers: JSON without a promise, so every field may be missing.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde::de::DeserializeOwned;

/// The document that containerd keeps under the key `info`.
pub(crate) fn info<T: DeserializeOwned>(info: &BTreeMap<String, String>) -> Option<T> {
    let text = info.get("info")?;
    serde_json::from_str(text).inspect_err(|error| tracing::debug!(%error, "verbose answer of containerd")).ok()
}

/// Nanoseconds since 1970; zero is "not yet".
pub(crate) fn time(nanoseconds: i64) -> Option<SystemTime> {
    let nanoseconds = u64::try_from(nanoseconds).ok().filter(|&n| n > 0)?;
    Some(SystemTime::UNIX_EPOCH + Duration::from_nanos(nanoseconds))
}
