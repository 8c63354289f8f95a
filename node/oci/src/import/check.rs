//! Whether an archive holds an image for this machine, and the one it claims to hold.

use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::archive::{Archive, Part};
use crate::layout::{CONFIG, INDEX, LAYER, MANIFEST, architecture, digest, finish};

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
/// An index may lead to another; no tool goes deeper.
const MAX_DEPTH: u32 = 3;

/// An image whose every byte was checked.
#[derive(Debug)]
pub(super) struct Plan {
    pub file: Arc<File>,
    pub manifest: Blob,
    pub config: Blob,
    pub layers: Vec<LayerBlob>,
}

#[derive(Debug)]
pub(super) struct Blob {
    pub media_type: String,
    pub digest: String,
    pub bytes: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct LayerBlob {
    pub digest: String,
    pub part: Part,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<Platform>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Platform {
    os: String,
    architecture: String,
}

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// Of an image's configuration, what has to be right.
#[derive(Deserialize)]
struct Config {
    #[serde(flatten)]
    platform: Platform,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

/// A row of what `docker save` writes.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    layers: Vec<String>,
}

impl Platform {
    fn own() -> Platform {
        Platform { os: "linux".into(), architecture: architecture().into() }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)
    }
}

impl Plan {
    pub fn of(file: File) -> Result<Plan, String> {
        let archive = Archive::open(file)?;
        if let Some(index) = archive.small("index.json")? {
            let index: Index = parse("index.json", &index)?;
            return Plan::of_layout(&archive, index);
        }
        if let Some(manifest) = archive.small("manifest.json")? {
            return Plan::of_saved(&archive, &parse::<Vec<Saved>>("manifest.json", &manifest)?);
        }
        Err("neither an OCI layout (no index.json) nor a docker archive (no manifest.json)".into())
    }

    fn of_layout(archive: &Archive, index: Index) -> Result<Plan, String> {
        let target = choose(archive, index, 0)?;
        let bytes = blob(archive, &target)?;
        let manifest: Manifest = parse("the manifest", &bytes)?;
        let config_type = &manifest.config.media_type;
        if config_type != CONFIG && config_type != DOCKER_CONFIG {
            let wasm = config_type.contains("wasm");
            let remedy = if wasm { "a Wasm artifact has no root file system" } else { "it is no image" };
            return Err(format!("its configuration is of type {config_type}: {remedy}"));
        }
        let config_bytes = blob(archive, &manifest.config)?;
        let config = checked_config(&config_bytes, manifest.layers.len())?;
        let mut layers = Vec::new();
        for (layer, diff_id) in manifest.layers.iter().zip(&config.rootfs.diff_ids) {
            layers.push(of_descriptor(archive, layer, diff_id)?);
        }
        let media_type = if target.media_type.is_empty() { MANIFEST.into() } else { target.media_type };
        Ok(Plan {
            file: archive.file.clone(),
            manifest: Blob { media_type, digest: target.digest, bytes },
            config: Blob {
                media_type: manifest.config.media_type,
                digest: manifest.config.digest,
                bytes: config_bytes,
            },
            layers,
        })
    }

    fn of_saved(archive: &Archive, images: &[Saved]) -> Result<Plan, String> {
        let [image] = images else {
            return Err(format!("holds {} images: save the one you want alone", images.len()));
        };
        let bytes = archive.small(&image.config)?.ok_or_else(|| format!("{} is missing", image.config))?;
        let config = checked_config(&bytes, image.layers.len())?;
        let (mut layers, mut descriptors) = (Vec::new(), Vec::new());
        for (path, diff_id) in image.layers.iter().zip(&config.rootfs.diff_ids) {
            let part = archive.find(path).ok_or_else(|| format!("layer {path} is missing"))?;
            let mut magic = Vec::new();
            archive.reader(part).take(4).read_to_end(&mut magic).map_err(|e| format!("layer {path}: {e}"))?;
            let gzip = magic.starts_with(&[0x1f, 0x8b]);
            let digest = layer_digest(archive, part, diff_id, Some(gzip)).map_err(|e| format!("layer {path}: {e}"))?;
            let media_type = if gzip { format!("{LAYER}+gzip") } else { LAYER.into() };
            descriptors.push(json!({"mediaType": media_type, "digest": digest, "size": part.size}));
            layers.push(LayerBlob { digest, part });
        }
        let config = Blob { media_type: CONFIG.into(), digest: digest(&bytes), bytes };
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": config.digest, "size": config.bytes.len()},
            "layers": descriptors})
        .to_string()
        .into_bytes();
        let manifest = Blob { media_type: MANIFEST.into(), digest: digest(&manifest), bytes: manifest };
        Ok(Plan { file: archive.file.clone(), manifest, config, layers })
    }
}

/// The one manifest for this machine.
fn choose(archive: &Archive, index: Index, depth: u32) -> Result<Descriptor, String> {
    let own = Platform::own();
    let all = index.manifests;
    let mut fitting: Vec<Descriptor> = Vec::new();
    for target in &all {
        // Without a platform, the configuration decides.
        let fits = target.platform.as_ref().is_none_or(|platform| *platform == own);
        if fits && !fitting.iter().any(|other| other.digest == target.digest) {
            fitting.push(target.clone());
        }
    }
    match fitting.as_slice() {
        [one] if [INDEX, DOCKER_INDEX].contains(&one.media_type.as_str()) => {
            if depth >= MAX_DEPTH {
                return Err("its indexes lead nowhere".into());
            }
            choose(archive, parse("an index", &blob(archive, one)?)?, depth + 1)
        }
        [one] if [MANIFEST, DOCKER_MANIFEST, ""].contains(&one.media_type.as_str()) => Ok(one.clone()),
        [one] => Err(format!("what it holds is of type {}, not an image", one.media_type)),
        [] if all.is_empty() => Err("its index names no image".into()),
        [] => {
            let others: Vec<_> = all.iter().filter_map(|m| m.platform.as_ref()).map(Platform::to_string).collect();
            Err(format!("an image for {}; this machine is {own}", others.join(", ")))
        }
        several => Err(format!("holds {} images: save the one you want alone", several.len())),
    }
}

fn checked_config(bytes: &[u8], layers: usize) -> Result<Config, String> {
    let config: Config = parse("the configuration", bytes)?;
    let own = Platform::own();
    if config.platform != own {
        return Err(format!("an image for {}; this machine is {own}", config.platform));
    }
    let named = config.rootfs.diff_ids.len();
    if named != layers {
        return Err(format!("the manifest has {layers} layers, the configuration {named}"));
    }
    Ok(config)
}

fn parse<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|error| format!("{what} cannot be read: {error}"))
}

/// Where a blob lies; the digest comes from outside, so it may not be a path.
fn find(archive: &Archive, descriptor: &Descriptor) -> Result<Part, String> {
    let digest = &descriptor.digest;
    let hex = digest.strip_prefix("sha256:").unwrap_or_default();
    if hex.len() != 64 || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(format!("{digest:?} is not a sha256 digest"));
    }
    let part = archive.find(&format!("blobs/sha256/{hex}")).ok_or_else(|| format!("blob {digest} is missing"))?;
    if part.size != descriptor.size {
        return Err(format!("blob {digest} has {} bytes, not the {} it should", part.size, descriptor.size));
    }
    Ok(part)
}

/// A small blob.
fn blob(archive: &Archive, descriptor: &Descriptor) -> Result<Vec<u8>, String> {
    find(archive, descriptor)?;
    let path = format!("blobs/{}", descriptor.digest.replace(':', "/"));
    let bytes = archive.small(&path)?.ok_or_else(|| format!("blob {} is missing", descriptor.digest))?;
    let found = digest(&bytes);
    if found != descriptor.digest {
        return Err(format!("blob {} is corrupt: its digest is {found}", descriptor.digest));
    }
    Ok(bytes)
}

fn of_descriptor(archive: &Archive, layer: &Descriptor, diff_id: &str) -> Result<LayerBlob, String> {
    let part = find(archive, layer)?;
    let kind = layer.media_type.strip_prefix(LAYER).or_else(|| layer.media_type.strip_prefix(DOCKER_LAYER));
    let gzip = match kind {
        Some("") => Some(false),
        Some("+gzip" | ".gzip") => Some(true),
        // containerd looks into it when it unpacks it.
        Some("+zstd" | ".zstd") => None,
        _ => return Err(format!("layer {} is of type {}, which cannot be unpacked", layer.digest, layer.media_type)),
    };
    let found = layer_digest(archive, part, diff_id, gzip).map_err(|e| format!("layer {}: {e}", layer.digest))?;
    if found != layer.digest {
        return Err(format!("layer {} is corrupt: its digest is {found}", layer.digest));
    }
    Ok(LayerBlob { digest: found, part })
}

/// The digest of a layer as it lies there; what it unpacks to has to be what the configuration says.
fn layer_digest(archive: &Archive, part: Part, diff_id: &str, gzip: Option<bool>) -> Result<String, String> {
    let mut packed = Hashing { inner: archive.reader(part), hash: Sha256::new() };
    let unpacked = match gzip {
        Some(true) => {
            let mut unpacked = Hashing { inner: flate2::read::MultiGzDecoder::new(&mut packed), hash: Sha256::new() };
            // Corrupt bytes often fail here already; the digest says more.
            let unpacked = drain(&mut unpacked).map(|()| finish(unpacked.hash));
            Some(unpacked)
        }
        Some(false) | None => None,
    };
    drain(&mut packed).map_err(|e| e.to_string())?;
    let digest = finish(packed.hash);
    let unpacked = match (unpacked, gzip) {
        (Some(Ok(unpacked)), _) => unpacked,
        (Some(Err(error)), _) => return Err(format!("is corrupt: {error}")),
        (None, Some(false)) => digest.clone(),
        (None, _) => return Ok(digest),
    };
    if unpacked != diff_id {
        return Err(format!("unpacks to {unpacked}, but the configuration names {diff_id}"));
    }
    Ok(digest)
}

/// Hashes what passes.
struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hash.update(buffer.get(..read).unwrap_or_default());
        Ok(read)
    }
}

fn drain(reader: &mut impl Read) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    while reader.read(&mut buffer)? > 0 {}
    Ok(())
}
