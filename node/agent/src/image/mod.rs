//! The images of this node: bytes by their digest, names in one index file. Whatever moment the
//! power goes, the index names only blobs that are whole.

mod archive;
pub mod collect;
mod credentials;
mod grants;
mod program;
mod pull;
mod reference;
mod registry;
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;

pub use credentials::{Credentials, Keyring};
pub use pull::{Error as PullError, Held, Kind, Policy, Pulled, Puller};
pub use reference::{Invalid, Reference};

/// Turns bytes into what a host can map, once.
#[async_trait]
pub trait Compiler: Send + Sync + 'static {
    /// What kind of program it is, in a word; the error tells a user what is wrong with it.
    async fn compile(&self, digest: &str, file: &Path) -> Result<String, String>;
    /// Its bytes are gone.
    fn forget(&self, digest: &str);
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Reference(#[from] Invalid),
    #[error("a reference with a digest cannot be given to a file; name it with a tag, as in localhost/hello:v1")]
    Digest,
    #[error("{0}")]
    Module(String),
    #[error("{0}")]
    Archive(String),
    #[error("the file is larger than {} MiB", .0 >> 20)]
    TooLarge(u64),
    #[error("the body ended early: {0}")]
    Body(String),
    #[error("image \"{0}\" is not on this node")]
    NotFound(String),
    #[error("image \"{image}\" is in use by pod {pod}")]
    InUse { image: String, pod: String },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: {reason}; remove it to begin with no images")]
    Damaged { path: PathBuf, reason: String },
}

/// One named image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// `sha256:…` of the bytes.
    pub digest: String,
    pub size: u64,
    /// core, command or proxy.
    pub kind: String,
    pub imported: Timestamp,
    /// `sha256:…` of the manifest it was pulled by; none if it was brought as a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<String>,
    #[serde(default, skip_serializing_if = "Defaults::is_none")]
    pub defaults: Defaults,
}

/// What an image says about how it is run, where a container does not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Defaults {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// `NAME=VALUE`
    pub env: Vec<String>,
    pub working_dir: Option<String>,
}

impl Defaults {
    fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// Where an image comes from.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    pub manifest: Option<String>,
    pub defaults: Defaults,
}

impl Image {
    /// What names it for good: the manifest's digest, else that of the bytes.
    pub fn identity(&self) -> &str {
        self.manifest.as_deref().unwrap_or(&self.digest)
    }

    /// Names its bytes.
    pub fn hex(&self) -> &str {
        self.digest.strip_prefix("sha256:").unwrap_or(&self.digest)
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Index {
    version: u32,
    images: BTreeMap<String, Image>,
}

const VERSION: u32 = 1;
const NEW_INDEX: &str = ".index.json";
const IMPORT: &str = ".import-";
/// The largest file taken.
pub const LARGEST: u64 = 512 << 20;

pub struct Images {
    dir: PathBuf,
    compiler: Arc<dyn Compiler>,
    index: Mutex<BTreeMap<String, Image>>,
    /// One import or removal at a time decides what becomes of a blob.
    changing: tokio::sync::Mutex<()>,
    changed: watch::Sender<u64>,
}

impl Images {
    pub fn open(dir: &Path, compiler: Arc<dyn Compiler>) -> Result<Self, Error> {
        let blobs = dir.join("blobs/sha256");
        fs::create_dir_all(&blobs).map_err(|source| Error::Io { path: blobs.clone(), source })?;
        let path = dir.join("index.json");
        let damaged = |reason: String| Error::Damaged { path: path.clone(), reason };
        let images = match fs::read(&path) {
            Ok(bytes) => {
                let index: Index = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
                if index.version != VERSION {
                    return Err(damaged(format!("version {} is not known here, only {VERSION}", index.version)));
                }
                index.images
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(source) => return Err(Error::Io { path, source }),
        };
        let this = Self {
            dir: dir.to_owned(),
            compiler,
            index: Mutex::new(images),
            changing: tokio::sync::Mutex::default(),
            changed: watch::Sender::new(0),
        };
        this.sweep()?;
        Ok(this)
    }

    /// Removes what an interrupted import left.
    fn sweep(&self) -> Result<(), Error> {
        let blobs = self.dir.join("blobs/sha256");
        let known: BTreeSet<String> = self.list().into_iter().map(|(_, image)| image.hex().to_owned()).collect();
        let entries = fs::read_dir(&blobs).map_err(|source| Error::Io { path: blobs.clone(), source })?;
        for entry in entries.flatten() {
            if !known.contains(entry.file_name().to_string_lossy().as_ref()) {
                let _ = fs::remove_file(entry.path());
            }
        }
        let entries = fs::read_dir(&self.dir).map_err(|source| Error::Io { path: self.dir.clone(), source })?;
        for entry in entries.flatten() {
            let name = entry.file_name();
            if name == NEW_INDEX || name.to_string_lossy().starts_with(IMPORT) {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(())
    }

    /// Where an archive lies while it is taken.
    pub fn temporary(&self) -> PathBuf {
        self.dir.join(format!("{IMPORT}{}", uuid::Uuid::new_v4().simple()))
    }

    /// Counts up with every change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Tells those who wait that an image has come elsewhere.
    pub fn touch(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    pub fn list(&self) -> Vec<(String, Image)> {
        let index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        index.iter().map(|(name, image)| (name.clone(), image.clone())).collect()
    }

    /// The image that a reference names, if it is here.
    pub fn find(&self, reference: &Reference) -> Option<Image> {
        let index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        match &reference.digest {
            None => index.get(&reference.to_string()).cloned(),
            Some(digest) => index
                .iter()
                .find(|(name, image)| {
                    (image.digest == *digest || image.manifest.as_ref() == Some(digest))
                        && Reference::parse(name).is_ok_and(|known| known.repository == reference.repository)
                })
                .map(|(_, image)| image.clone()),
        }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the bytes of an image are.
    pub fn blob(&self, hex: &str) -> PathBuf {
        self.dir.join("blobs/sha256").join(hex)
    }

    /// Takes a file that was brought by hand.
    pub async fn import<S, E>(&self, name: &str, body: S) -> Result<(Reference, Image), Error>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: std::fmt::Display,
    {
        let reference = Reference::parse(name)?;
        if reference.digest.is_some() {
            return Err(Error::Digest);
        }
        let image = self.store(&reference, body, Origin::default()).await?;
        Ok((reference, image))
    }

    /// Takes an archive that was brought by hand, if what it holds is WebAssembly.
    pub async fn import_archive(&self, reference: &Reference, file: &Path) -> Result<Option<Image>, Error> {
        let told = |error: source::Error| Error::Archive(error.to_string());
        let Some(found) = archive::resolve(file).await.map_err(told)? else { return Ok(None) };
        let program::Content::Wasm(program) = &found.content else { return Ok(None) };
        let bytes = found.program(program).await.map_err(told)?;
        let origin = Origin { manifest: None, defaults: program.defaults.clone() };
        self.store(reference, bytes, origin).await.map(Some)
    }

    /// Takes bytes under a reference, compiled and kept before the name is given.
    pub async fn store<S, E>(&self, reference: &Reference, mut body: S, origin: Origin) -> Result<Image, Error>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: std::fmt::Display,
    {
        let temporary = self.blob(&format!(".tmp-{}", uuid::Uuid::new_v4().simple()));
        let removal = Removal(Some(temporary.clone()));
        let io = |source| Error::Io { path: temporary.clone(), source };
        let mut file = tokio::fs::File::create(&temporary).await.map_err(io)?;
        let mut hash = Sha256::new();
        let mut size = 0_u64;
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|error| Error::Body(error.to_string()))?;
            size += chunk.len() as u64;
            if size > LARGEST {
                return Err(Error::TooLarge(LARGEST));
            }
            hash.update(&chunk);
            file.write_all(&chunk).await.map_err(io)?;
        }
        file.sync_all().await.map_err(io)?;
        drop(file);
        let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let kind = self.compiler.compile(&hex, &temporary).await.map_err(Error::Module)?;

        let _changing = self.changing.lock().await;
        let blob = self.blob(&hex);
        fs::rename(&temporary, &blob).map_err(|source| Error::Io { path: blob.clone(), source })?;
        removal.keep();
        sync_dir(&self.dir.join("blobs/sha256"))?;
        let Origin { manifest, defaults } = origin;
        let digest = format!("sha256:{hex}");
        let image = Image { digest, size, kind, imported: Timestamp::now(), manifest, defaults };
        let old = self.change(|images| images.insert(reference.to_string(), image.clone()))?;
        if let Some(old) = old {
            self.drop_blob(&old);
        }
        Ok(image)
    }

    /// Takes a name away, and the bytes with the last name. `user` tells which pod runs a digest.
    pub async fn remove(&self, name: &str, user: impl Fn(&str) -> Option<String>) -> Result<Image, Error> {
        let reference = Reference::parse(name)?.to_string();
        let _changing = self.changing.lock().await;
        let found = self.list().into_iter().find(|(name, _)| *name == reference);
        let Some((_, image)) = found else { return Err(Error::NotFound(reference)) };
        if let Some(pod) = user(&image.digest) {
            return Err(Error::InUse { image: reference, pod });
        }
        self.change(|images| images.remove(&reference))?;
        self.drop_blob(&image);
        Ok(image)
    }

    fn drop_blob(&self, image: &Image) {
        if !self.list().iter().any(|(_, other)| other.digest == image.digest) {
            let _ = fs::remove_file(self.blob(image.hex()));
            self.compiler.forget(image.hex());
        }
    }

    /// Changes the index on disk first; a failure leaves everything as it was.
    fn change<T>(&self, change: impl FnOnce(&mut BTreeMap<String, Image>) -> T) -> Result<T, Error> {
        let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        let mut images = index.clone();
        let result = change(&mut images);
        let path = self.dir.join("index.json");
        let io = |source| Error::Io { path: path.clone(), source };
        let bytes = serde_json::to_vec_pretty(&Index { version: VERSION, images: images.clone() })
            .map_err(|error| io(io::Error::other(error)))?;
        let temporary = self.dir.join(NEW_INDEX);
        let write = || -> io::Result<()> {
            let mut file = fs::File::create(&temporary)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)
        };
        write().map_err(io)?;
        sync_dir(&self.dir)?;
        *index = images;
        drop(index);
        self.changed.send_modify(|count| *count += 1);
        Ok(result)
    }
}

/// Removes a file unless it was kept.
struct Removal(Option<PathBuf>);

impl Removal {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Removal {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

fn sync_dir(dir: &Path) -> Result<(), Error> {
    fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(|source| Error::Io { path: dir.to_owned(), source })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[derive(Default)]
    struct Simulated {
        forgotten: Mutex<Vec<String>>,
    }

    #[async_trait]
    impl Compiler for Simulated {
        async fn compile(&self, _: &str, file: &Path) -> Result<String, String> {
            let bytes = fs::read(file).unwrap();
            if bytes.starts_with(b"\0asm") { Ok("core".to_owned()) } else { Err("not Wasm".to_owned()) }
        }

        fn forget(&self, digest: &str) {
            self.forgotten.lock().unwrap().push(digest.to_owned());
        }
    }

    fn body(parts: &[&str]) -> impl Stream<Item = Result<Bytes, io::Error>> + Unpin + use<> {
        let parts: Vec<_> = parts.iter().map(|part| Ok(Bytes::from((*part).to_owned()))).collect();
        futures::stream::iter(parts)
    }

    fn open(dir: &Path) -> (Images, Arc<Simulated>) {
        let compiler = Arc::new(Simulated::default());
        (Images::open(dir, compiler.clone()).unwrap(), compiler)
    }

    fn blobs(dir: &Path) -> usize {
        fs::read_dir(dir.join("blobs/sha256")).unwrap().count()
    }

    #[tokio::test]
    async fn kept_over_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let (images, _) = open(dir.path());
        let (reference, image) = images.import("hello:v1", body(&["\0as", "m1"])).await.unwrap();
        assert_eq!(reference.to_string(), "docker.io/library/hello:v1");
        assert_eq!(image.size, 5);
        drop(images);
        let (images, _) = open(dir.path());
        assert_eq!(images.find(&reference), Some(image.clone()));
        let by_digest = Reference::parse(&format!("docker.io/library/hello@{}", image.digest)).unwrap();
        assert_eq!(images.find(&by_digest), Some(image.clone()));
        assert_eq!(fs::read(images.blob(image.hex())).unwrap(), b"\0asm1");
    }

    #[tokio::test]
    async fn bad_bytes_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (images, _) = open(dir.path());
        assert!(matches!(images.import("a", body(&["MZ"])).await, Err(Error::Module(_))));
        let broken = futures::stream::iter([Ok(Bytes::from("\0asm")), Err(io::Error::other("cut"))]);
        assert!(matches!(images.import("a", broken).await, Err(Error::Body(_))));
        assert!(matches!(images.import("A", body(&["\0asm"])).await, Err(Error::Reference(_))));
        assert_eq!(images.list(), []);
        assert_eq!(blobs(dir.path()), 0);
    }

    #[tokio::test]
    async fn the_last_name_takes_the_bytes_along() {
        let dir = tempfile::tempdir().unwrap();
        let (images, compiler) = open(dir.path());
        images.import("a", body(&["\0asm1"])).await.unwrap();
        images.import("b", body(&["\0asm1"])).await.unwrap();
        assert_eq!(blobs(dir.path()), 1);
        images.remove("a", |_| None).await.unwrap();
        assert_eq!(blobs(dir.path()), 1);
        assert!(matches!(images.remove("a", |_| None).await, Err(Error::NotFound(_))));
        assert!(matches!(images.remove("b", |_| Some("x".to_owned())).await, Err(Error::InUse { .. })));
        // Named anew: the old bytes have no name left.
        images.import("b", body(&["\0asm2"])).await.unwrap();
        assert_eq!(blobs(dir.path()), 1);
        assert_eq!(compiler.forgotten.lock().unwrap().len(), 1);
    }

    #[test]
    fn damage_is_told_and_leftovers_go() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path()));
        fs::write(dir.path().join("blobs/sha256/.tmp-1"), "half").unwrap();
        let (images, _) = open(dir.path());
        let half = [images.temporary(), images.temporary(), dir.path().join(".index.json")];
        half.iter().for_each(|path| fs::write(path, "half").unwrap());
        fs::write(dir.path().join("other"), "").unwrap();
        drop(open(dir.path()));
        assert_eq!(blobs(dir.path()), 0);
        assert!(dir.path().join("other").exists() && !half.iter().any(|path| path.exists()));
        fs::write(dir.path().join("index.json"), "{").unwrap();
        assert!(matches!(Images::open(dir.path(), Arc::new(Simulated::default())), Err(Error::Damaged { .. })));
        fs::write(dir.path().join("index.json"), r#"{"version":9,"images":{}}"#).unwrap();
        assert!(matches!(Images::open(dir.path(), Arc::new(Simulated::default())), Err(Error::Damaged { .. })));
    }
}
