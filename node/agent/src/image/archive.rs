//! An image in an archive: an OCI layout as a tar.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::program::{self, Found};
use super::source::{Descriptor, Error, Source};

/// Files of an archive, and bytes of its index and of a manifest.
const FILES: usize = 100_000;
const SMALL: u64 = 4 << 20;
const CHUNK: u64 = 1 << 20;

struct Archive {
    file: Arc<File>,
    /// Where each file begins, and how long it is.
    entries: HashMap<PathBuf, (u64, u64)>,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

/// Reads what an archive holds; none: it is no OCI layout.
pub async fn resolve(path: &Path) -> Result<Option<Found>, Error> {
    let (name, shown) = (path.to_owned(), "the archive");
    let wrong = |error: String| Error::Malformed(format!("{shown}: {error}"));
    let opened = tokio::task::spawn_blocking(move || Archive::open(&name)).await;
    let archive = opened.map_err(|error| wrong(error.to_string()))?.map_err(|error| wrong(error.to_string()))?;
    if !archive.entries.contains_key(Path::new("index.json")) {
        return Ok(None);
    }
    program::resolve(shown, Arc::new(archive)).await.map(Some)
}

impl Archive {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let mut entries = HashMap::new();
        for entry in tar::Archive::new(&file).entries_with_seek()? {
            let entry = entry?;
            if entry.header().entry_type().is_file() {
                entries.insert(program::plain(&entry.path()?), (entry.raw_file_position(), entry.size()));
            }
            if entries.len() > FILES {
                return Err(io::Error::other(format!("it holds more than {FILES} files")));
            }
        }
        Ok(Self { file: Arc::new(file), entries })
    }

    fn find(&self, digest: &str) -> Result<(u64, u64), Error> {
        let path = digest.split_once(':').map(|(kind, hex)| Path::new("blobs").join(kind).join(hex));
        let found = path.and_then(|path| self.entries.get(&path).copied());
        found.ok_or_else(|| Error::Malformed(format!("the archive has no {digest}, which it names")))
    }

    fn small(&self, (offset, length): (u64, u64), what: &str) -> Result<Bytes, Error> {
        if length > SMALL {
            return Err(Error::Malformed(format!("the archive's {what} is larger than 4 MiB")));
        }
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        let read = self.file.read_exact_at(&mut bytes, offset);
        read.map_err(|error| Error::Malformed(format!("the archive's {what}: {error}")))?;
        Ok(bytes.into())
    }
}

fn digest_of(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

#[async_trait]
impl Source for Archive {
    async fn manifest(&self, digest: Option<&str>) -> Result<(Bytes, String), Error> {
        let digest = match digest {
            Some(digest) => digest.to_owned(),
            None => {
                let at = self.entries.get(Path::new("index.json")).copied().unwrap_or_default();
                let bytes = self.small(at, "index.json")?;
                let index: Index = serde_json::from_slice(&bytes)
                    .map_err(|error| Error::Malformed(format!("the archive's index.json: {error}")))?;
                match index.manifests.as_slice() {
                    [only] => only.digest.clone(),
                    // Which of them is looked up as in any index.
                    _ => return Ok((bytes.clone(), digest_of(&bytes))),
                }
            }
        };
        let bytes = self.small(self.find(&digest)?, &digest)?;
        let found = digest_of(&bytes);
        if found != digest {
            return Err(Error::Malformed(format!("the archive's {digest} is {found}")));
        }
        Ok((bytes, digest))
    }

    async fn blob(&self, part: &Descriptor) -> Result<BoxStream<'static, io::Result<Bytes>>, Error> {
        let (offset, length) = self.find(&part.digest)?;
        let (file, digest) = (self.file.clone(), part.digest.clone());
        let begin = (file, Sha256::new(), 0_u64);
        let stream = futures::stream::try_unfold(Some(begin), move |state| {
            let digest = digest.clone();
            async move {
                let Some((file, mut hash, done)) = state else { return Ok(None) };
                let take = usize::try_from(CHUNK.min(length - done)).unwrap_or(0);
                if take == 0 {
                    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
                    let lie = || io::Error::other(format!("the archive's {digest} is sha256:{hex}"));
                    return if digest == format!("sha256:{hex}") { Ok(None) } else { Err(lie()) };
                }
                let read = tokio::task::spawn_blocking(move || {
                    let mut bytes = vec![0; take];
                    file.read_exact_at(&mut bytes, offset + done)?;
                    hash.update(&bytes);
                    io::Result::Ok((Bytes::from(bytes), file, hash))
                });
                let (bytes, file, hash) = read.await.map_err(io::Error::other)??;
                Ok(Some((bytes, Some((file, hash, done + take as u64)))))
            }
        });
        Ok(stream.boxed())
    }
}
