//! What an image is, and the WebAssembly program in it. A program comes as an artifact of its own (a
//! layer of `application/wasm`), or as the file that an image starts.

use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use flate2::read::GzDecoder;
use futures::StreamExt;
use futures::stream::BoxStream;
use serde::Deserialize;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::{StreamReader, SyncIoBridge};

use super::source::{Descriptor, Error, Source};
use super::{Defaults, LARGEST};

/// Manifests and configurations are small; one that is not is nobody's friend.
const CONFIG_BYTES: u64 = 4 << 20;
const CHUNK: usize = 64 << 10;

/// Layers that are a program and nothing else; the second is what older tools write.
const PROGRAMS: &[&str] = &["application/wasm", "application/vnd.wasm.content.layer.v1+wasm"];

/// What is there.
pub struct Found {
    /// Of the manifest that the reference names.
    pub digest: String,
    pub content: Content,
    source: Arc<dyn Source>,
}

pub enum Content {
    Wasm(Program),
    /// For containers of the machine's own system.
    Linux,
}

pub struct Program {
    pub defaults: Defaults,
    layers: Vec<Descriptor>,
    /// The file that an image starts; an artifact's layer is the program.
    file: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    #[serde(default)]
    artifact_type: Option<String>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
    /// An index has these in their place.
    #[serde(default)]
    manifests: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    digest: String,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
}

impl Platform {
    fn is_wasm(&self) -> bool {
        self.architecture.starts_with("wasm") || self.os.starts_with("wasi")
    }
}

#[derive(Deserialize)]
struct ImageConfig {
    #[serde(flatten)]
    platform: Platform,
    #[serde(default)]
    config: Option<RunConfig>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RunConfig {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
}

/// Finds out what an image is; `name` is for messages.
pub async fn resolve(name: &str, source: Arc<dyn Source>) -> Result<Found, Error> {
    let (bytes, digest) = source.manifest(None).await?;
    let mut manifest = parse(name, &bytes)?;
    if !manifest.manifests.is_empty() {
        let wasm = manifest.manifests.iter().find(|entry| entry.platform.as_ref().is_some_and(Platform::is_wasm));
        let Some(entry) = wasm else { return Ok(Found { digest, content: Content::Linux, source }) };
        let (bytes, _) = source.manifest(Some(&entry.digest)).await?;
        manifest = parse(name, &bytes)?;
    }
    let content = content(name, source.as_ref(), manifest).await?;
    Ok(Found { digest, content, source })
}

fn parse(name: &str, bytes: &[u8]) -> Result<Manifest, Error> {
    serde_json::from_slice(bytes).map_err(|error| Error::Malformed(format!("the manifest of {name}: {error}")))
}

async fn content(name: &str, source: &dyn Source, manifest: Manifest) -> Result<Content, Error> {
    let program = |layer: &Descriptor| PROGRAMS.contains(&layer.media_type.as_str());
    let artifact = manifest.artifact_type.as_deref().is_some_and(|kind| PROGRAMS.contains(&kind));
    if artifact || manifest.layers.iter().any(program) {
        let mut layers: Vec<_> = manifest.layers.into_iter().filter(program).collect();
        if layers.len() != 1 {
            let count = layers.len();
            return Err(Error::Malformed(format!(
                "{name}: a WebAssembly artifact has one layer of type application/wasm, this one has {count}"
            )));
        }
        layers.truncate(1);
        return Ok(Content::Wasm(Program { defaults: Defaults::default(), layers, file: None }));
    }
    let Some(config) = manifest.config else {
        return Err(Error::Malformed(format!("the manifest of {name} has neither config nor manifests")));
    };
    if config.size > CONFIG_BYTES {
        return Err(Error::Malformed(format!("{name}: its configuration is larger than 4 MiB")));
    }
    let bytes = small(name, source, &config).await?;
    let image: ImageConfig = serde_json::from_slice(&bytes)
        .map_err(|error| Error::Malformed(format!("the configuration of {name}: {error}")))?;
    let run = image.config.unwrap_or_default();
    let defaults = Defaults {
        entrypoint: run.entrypoint.unwrap_or_default(),
        cmd: run.cmd.unwrap_or_default(),
        env: run.env.unwrap_or_default(),
        working_dir: run.working_dir.filter(|dir| !dir.is_empty()),
    };
    let first = defaults.entrypoint.first().or(defaults.cmd.first());
    let is_module = first.is_some_and(|file| file.ends_with(".wasm"));
    if !image.platform.is_wasm() && !is_module {
        return Ok(Content::Linux);
    }
    let Some(file) = first else {
        return Err(Error::Malformed(format!("{name}: an image for wasi/wasm names its module as its entrypoint")));
    };
    let file = plain(Path::new(file));
    Ok(Content::Wasm(Program { defaults, layers: manifest.layers, file: Some(file) }))
}

/// A path as archives write it: relative, without `.`.
pub(super) fn plain(path: &Path) -> PathBuf {
    path.components().filter(|part| matches!(part, Component::Normal(_))).collect()
}

impl Found {
    /// The program's bytes. What the digests do not vouch for ends in an error.
    pub async fn program(&self, program: &Program) -> Result<BoxStream<'static, io::Result<Bytes>>, Error> {
        let Some(file) = &program.file else {
            let Some(layer) = program.layers.first() else { return Err(Error::Malformed("no layer".to_owned())) };
            return self.source.blob(layer).await;
        };
        // The uppermost layer that has the file says what it is.
        for layer in program.layers.iter().rev() {
            let zipped = match layer.media_type.as_str() {
                kind if kind.ends_with("tar+gzip") || kind.ends_with("tar.gzip") => true,
                kind if kind.ends_with(".tar") => false,
                kind => {
                    let message = format!("a layer of type {kind} cannot be read here; tar and tar+gzip can");
                    return Err(Error::Malformed(message));
                }
            };
            let bytes = self.source.blob(layer).await?;
            if let Some(found) = find(bytes, zipped, file.clone()).await? {
                return Ok(found.boxed());
            }
        }
        Err(Error::Malformed(format!("its entrypoint {} is in none of its layers", file.display())))
    }
}

/// A part that is read whole.
async fn small(name: &str, source: &dyn Source, part: &Descriptor) -> Result<Vec<u8>, Error> {
    let mut stream = source.blob(part).await?;
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.next().await {
        bytes.extend_from_slice(&chunk.map_err(|error| Error::Unreachable(format!("{name}: {error}")))?);
        if bytes.len() as u64 > CONFIG_BYTES {
            return Err(Error::Malformed(format!("{name}: its configuration is larger than 4 MiB")));
        }
    }
    Ok(bytes)
}

/// Reads an archive until it has a file, and then to its end: only there its digest is known.
async fn find(
    bytes: BoxStream<'static, io::Result<Bytes>>,
    zipped: bool,
    file: PathBuf,
) -> Result<Option<ReceiverStream<io::Result<Bytes>>>, Error> {
    let reader = SyncIoBridge::new(StreamReader::new(bytes));
    let (sender, receiver) = tokio::sync::mpsc::channel::<io::Result<Bytes>>(4);
    let (found, is_found) = tokio::sync::oneshot::channel();
    tokio::task::spawn_blocking(move || {
        let mut found = Some(found);
        let result = match zipped {
            true => walk(GzDecoder::new(reader), &file, &sender, &mut found),
            false => walk(reader, &file, &sender, &mut found),
        };
        match (result, found) {
            (Ok(()), Some(found)) => drop(found.send(Ok(false))),
            (Ok(()), None) => {}
            (Err(error), Some(found)) => drop(found.send(Err(error))),
            (Err(error), None) => drop(sender.blocking_send(Err(error))),
        }
    });
    match is_found.await {
        Ok(Ok(true)) => Ok(Some(ReceiverStream::new(receiver))),
        Ok(Ok(false)) => Ok(None),
        Ok(Err(error)) => Err(Error::Malformed(format!("a layer: {error}"))),
        Err(_) => Err(Error::Malformed("a layer could not be read".to_owned())),
    }
}

type Answer = tokio::sync::oneshot::Sender<io::Result<bool>>;

fn walk<R: Read>(
    reader: R,
    file: &Path,
    out: &tokio::sync::mpsc::Sender<io::Result<Bytes>>,
    found: &mut Option<Answer>,
) -> io::Result<()> {
    let mut archive = tar::Archive::new(reader);
    for entry in archive.entries()? {
        let mut entry = entry?;
        if found.is_none() || plain(&entry.path()?) != file || !entry.header().entry_type().is_file() {
            continue;
        }
        if let Some(found) = found.take() {
            let _ = found.send(Ok(true));
        }
        let mut left = LARGEST + 1;
        loop {
            let mut chunk = Vec::with_capacity(CHUNK);
            let read = entry.by_ref().take(left.min(CHUNK as u64)).read_to_end(&mut chunk)?;
            left -= read as u64;
            if read == 0 || out.blocking_send(Ok(chunk.into())).is_err() {
                break;
            }
        }
    }
    io::copy(&mut archive.into_inner(), &mut io::sink()).map(drop)
}
