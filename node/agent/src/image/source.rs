//! Where the parts of an image are read, whatever holds them.

use std::io;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use serde::Deserialize;

use super::Reference;

#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}: not found")]
    NotFound(Reference),
    #[error("pull access denied, repository does not exist or may require authorization: {0}")]
    Denied(String),
    #[error("{0}")]
    Unreachable(String),
    #[error("{0}")]
    Malformed(String),
}

/// How a manifest names a part.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: String,
    #[serde(default)]
    pub size: u64,
}

#[async_trait]
pub trait Source: Send + Sync {
    /// The manifest that was asked for, or one that it names by its digest; with its own digest.
    async fn manifest(&self, digest: Option<&str>) -> Result<(Bytes, String), Error>;
    /// A part. Bytes that its digest does not vouch for end in an error.
    async fn blob(&self, part: &Descriptor) -> Result<BoxStream<'static, io::Result<Bytes>>, Error>;
}
