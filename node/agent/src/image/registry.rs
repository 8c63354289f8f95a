//! What a registry has under a reference, and the WebAssembly program in it. A program comes as an
//! artifact of its own (a layer of `application/wasm`), or as the file that an image starts.
//!
//! A client knows one pull's credentials: what one tenant may read is not cached for another.

use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use flate2::read::GzDecoder;
use futures::{Stream, StreamExt, TryStreamExt};
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;
use serde::Deserialize;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::{StreamReader, SyncIoBridge};

use super::{Credentials, Defaults, LARGEST, Reference};

/// Manifests and configurations are small; one that is not is nobody's friend.
const CONFIG_BYTES: i64 = 4 << 20;
const CONNECT: Duration = Duration::from_secs(30);
/// Without a byte.
const STALLED: Duration = Duration::from_secs(60);
const CHUNK: usize = 64 << 10;

const MANIFESTS: &[&str] = &[
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
/// Layers that are a program and nothing else; the second is what older tools write.
const PROGRAMS: &[&str] = &["application/wasm", "application/vnd.wasm.content.layer.v1+wasm"];

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

/// What is there.
pub struct Found {
    /// Of the manifest that the reference names.
    pub digest: String,
    pub content: Content,
    client: oci_client::Client,
    name: oci_client::Reference,
}

pub enum Content {
    Wasm(Program),
    /// For containers of the machine's own system.
    Linux,
}

pub struct Program {
    pub defaults: Defaults,
    layers: Vec<OciDescriptor>,
    /// The file that an image starts; an artifact's layer is the program.
    file: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    #[serde(default)]
    artifact_type: Option<String>,
    #[serde(default)]
    config: Option<OciDescriptor>,
    #[serde(default)]
    layers: Vec<OciDescriptor>,
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

/// Asks a registry, with one set of credentials or as nobody.
pub async fn resolve(reference: &Reference, credentials: Option<&Credentials>) -> Result<Found, Error> {
    let wrong = |error: OciDistributionError| told(reference, &error);
    let name: oci_client::Reference =
        reference.to_string().parse().map_err(|error| Error::Malformed(format!("{reference}: {error}")))?;
    let client = client(reference).map_err(wrong)?;
    let auth = match credentials {
        Some(Credentials { username, password }) => RegistryAuth::Basic(username.clone(), password.clone()),
        None => RegistryAuth::Anonymous,
    };
    let (bytes, digest) = client.pull_manifest_raw(&name, &auth, MANIFESTS).await.map_err(wrong)?;
    let mut manifest = parse(reference, &bytes)?;
    let mut name = name;
    if !manifest.manifests.is_empty() {
        let wasm = manifest.manifests.iter().find(|entry| entry.platform.as_ref().is_some_and(Platform::is_wasm));
        let Some(entry) = wasm else { return Ok(Found { digest, content: Content::Linux, client, name }) };
        name = name.clone_with_digest(entry.digest.clone());
        let (bytes, _) = client.pull_manifest_raw(&name, &auth, MANIFESTS).await.map_err(wrong)?;
        manifest = parse(reference, &bytes)?;
    }
    let content = content(reference, &client, &name, manifest).await?;
    Ok(Found { digest, content, client, name })
}

fn client(reference: &Reference) -> Result<oci_client::Client, OciDistributionError> {
    let registry = reference.registry();
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    // As everywhere in the container world: a registry on the machine itself needs no certificate.
    let local = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    oci_client::Client::try_from(ClientConfig {
        protocol: if local { ClientProtocol::Http } else { ClientProtocol::Https },
        connect_timeout: Some(CONNECT),
        read_timeout: Some(STALLED),
        user_agent: concat!("sampan/", env!("CARGO_PKG_VERSION")),
        ..ClientConfig::default()
    })
}

fn parse(reference: &Reference, bytes: &[u8]) -> Result<Manifest, Error> {
    serde_json::from_slice(bytes).map_err(|error| Error::Malformed(format!("the manifest of {reference}: {error}")))
}

async fn content(
    reference: &Reference,
    client: &oci_client::Client,
    name: &oci_client::Reference,
    manifest: Manifest,
) -> Result<Content, Error> {
    let program = |layer: &OciDescriptor| PROGRAMS.contains(&layer.media_type.as_str());
    let artifact = manifest.artifact_type.as_deref().is_some_and(|kind| PROGRAMS.contains(&kind));
    if artifact || manifest.layers.iter().any(program) {
        let mut layers: Vec<_> = manifest.layers.into_iter().filter(program).collect();
        if layers.len() != 1 {
            let count = layers.len();
            return Err(Error::Malformed(format!(
                "{reference}: a WebAssembly artifact has one layer of type application/wasm, this one has {count}"
            )));
        }
        layers.truncate(1);
        return Ok(Content::Wasm(Program { defaults: Defaults::default(), layers, file: None }));
    }
    let Some(config) = manifest.config else {
        return Err(Error::Malformed(format!("the manifest of {reference} has neither config nor manifests")));
    };
    if config.size > CONFIG_BYTES {
        return Err(Error::Malformed(format!("{reference}: its configuration is larger than 4 MiB")));
    }
    let mut bytes = Vec::new();
    client.pull_blob(name, &config, &mut bytes).await.map_err(|error| told(reference, &error))?;
    let image: ImageConfig = serde_json::from_slice(&bytes)
        .map_err(|error| Error::Malformed(format!("the configuration of {reference}: {error}")))?;
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
        return Err(Error::Malformed(format!(
            "{reference}: an image for wasi/wasm names its module as its entrypoint"
        )));
    };
    let file = plain(Path::new(file));
    Ok(Content::Wasm(Program { defaults, layers: manifest.layers, file: Some(file) }))
}

/// A path as archives write it: relative, without `.`.
fn plain(path: &Path) -> PathBuf {
    path.components().filter(|part| matches!(part, Component::Normal(_))).collect()
}

impl Found {
    /// The program's bytes. What the digests do not vouch for ends in an error.
    pub async fn program(
        &self,
        program: &Program,
    ) -> Result<impl Stream<Item = io::Result<Bytes>> + Unpin + use<>, Error> {
        let Some(file) = &program.file else {
            let Some(layer) = program.layers.first() else { return Err(Error::Malformed("no layer".to_owned())) };
            return Ok(self.layer(layer).await?.boxed());
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
            let bytes = self.layer(layer).await?;
            if let Some(found) = find(bytes, zipped, file.clone()).await? {
                return Ok(found.boxed());
            }
        }
        Err(Error::Malformed(format!("its entrypoint {} is in none of its layers", file.display())))
    }

    async fn layer(&self, layer: &OciDescriptor) -> Result<impl Stream<Item = io::Result<Bytes>> + use<>, Error> {
        let bytes = self.client.pull_blob_stream(&self.name, layer).await;
        Ok(bytes.map_err(|error| Error::Unreachable(error.to_string()))?.stream)
    }
}

/// Reads an archive until it has a file, and then to its end: only there its digest is known.
async fn find(
    bytes: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    zipped: bool,
    file: PathBuf,
) -> Result<Option<ReceiverStream<io::Result<Bytes>>>, Error> {
    let reader = SyncIoBridge::new(StreamReader::new(Box::pin(bytes.map_err(io::Error::other))));
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

fn told(reference: &Reference, error: &OciDistributionError) -> Error {
    use OciDistributionError as E;
    match error {
        E::ImageManifestNotFoundError(_) => Error::NotFound(reference.clone()),
        E::ServerError { code: 404, .. } => Error::NotFound(reference.clone()),
        E::RegistryError { envelope, url } => {
            let codes: Vec<String> = envelope.errors.iter().map(|error| format!("{:?}", error.code)).collect();
            let has = |code: &str| codes.iter().any(|it| it == code);
            if has("ManifestUnknown") || has("NameUnknown") || has("NotFound") {
                Error::NotFound(reference.clone())
            } else if has("Unauthorized") || has("Denied") {
                Error::Denied(url.clone())
            } else {
                Error::Unreachable(error.to_string())
            }
        }
        E::UnauthorizedError { url } => Error::Denied(url.clone()),
        E::AuthenticationFailure(message) => Error::Denied(message.clone()),
        E::RequestError(error) => {
            // The innermost cause says what happened: refused, no such name, not trusted.
            let mut cause: &dyn std::error::Error = error;
            while let Some(inner) = cause.source() {
                cause = inner;
            }
            Error::Unreachable(format!("{}: {cause}", reference.registry()))
        }
        E::DigestError(error) => Error::Malformed(format!("{reference}: {error}")),
        error => Error::Unreachable(error.to_string()),
    }
}
