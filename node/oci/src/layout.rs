//! Making images: an OCI layout in a tar, as `import` takes it.

use std::io::{self, Write};

use serde_json::json;
use sha2::{Digest as _, Sha256};

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Such as `sha256:0123…`.
pub fn digest(bytes: &[u8]) -> String {
    finish(Sha256::new_with_prefix(bytes))
}

pub(crate) fn finish(hash: Sha256) -> String {
    use std::fmt::Write as _;
    hash.finalize().iter().fold("sha256:".to_owned(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// This machine, in the words of images.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// As in `linux/amd64`: what images for this machine are for.
pub fn platform() -> String {
    format!("linux/{}", architecture())
}

/// Files of a layer. Nothing but names, modes and contents goes in: the same files give the same digest.
pub struct Layer(tar::Builder<Vec<u8>>);

impl Default for Layer {
    fn default() -> Layer {
        Layer::new()
    }
}

impl Layer {
    pub fn new() -> Layer {
        Layer(tar::Builder::new(Vec::new()))
    }

    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        append(&mut self.0, path, mode, tar::EntryType::Regular, content)
    }

    pub fn directory(&mut self, path: &str, mode: u32) -> io::Result<()> {
        append(&mut self.0, path, mode, tar::EntryType::Directory, &[])
    }

    pub fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        let mut header = header(0o777, tar::EntryType::Symlink, 0);
        self.0.append_link(&mut header, path, target)
    }
}

fn header(mode: u32, kind: tar::EntryType, size: usize) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size as u64);
    header
}

fn append<W: Write>(
    tar: &mut tar::Builder<W>,
    path: &str,
    mode: u32,
    kind: tar::EntryType,
    content: &[u8],
) -> io::Result<()> {
    tar.append_data(&mut header(mode, kind, content.len()), path, content)
}

/// An image for this machine.
#[derive(Debug, Clone)]
pub struct Layout {
    layers: Vec<Vec<u8>>,
    os: String,
    architecture: String,
    config: serde_json::Map<String, serde_json::Value>,
}

impl Default for Layout {
    fn default() -> Layout {
        Layout::new()
    }
}

impl Layout {
    pub fn new() -> Layout {
        let (os, architecture) = ("linux".into(), architecture().into());
        Layout { layers: Vec::new(), os, architecture, config: serde_json::Map::new() }
    }

    pub fn layer(mut self, layer: Layer) -> io::Result<Layout> {
        self.layers.push(layer.0.into_inner()?);
        Ok(self)
    }

    /// For another machine.
    pub fn platform(mut self, os: &str, architecture: &str) -> Layout {
        (self.os, self.architecture) = (os.into(), architecture.into());
        self
    }

    pub fn entrypoint(self, command: &[&str]) -> Layout {
        self.with("Entrypoint", json!(command))
    }

    pub fn cmd(self, arguments: &[&str]) -> Layout {
        self.with("Cmd", json!(arguments))
    }

    pub fn env(self, variables: &[&str]) -> Layout {
        self.with("Env", json!(variables))
    }

    /// `USER`, `UID` or `UID:GID`.
    pub fn user(self, user: &str) -> Layout {
        self.with("User", json!(user))
    }

    pub fn working_dir(self, dir: &str) -> Layout {
        self.with("WorkingDir", json!(dir))
    }

    fn with(mut self, key: &str, value: serde_json::Value) -> Layout {
        self.config.insert(key.into(), value);
        self
    }

    fn config(&self) -> Vec<u8> {
        let layers: Vec<_> = self.layers.iter().map(|layer| digest(layer)).collect();
        let rootfs = json!({"type": "layers", "diff_ids": layers});
        json!({"os": self.os, "architecture": self.architecture, "config": self.config, "rootfs": rootfs})
            .to_string()
            .into_bytes()
    }

    /// The image's id: its configuration's digest.
    pub fn id(&self) -> String {
        digest(&self.config())
    }

    pub fn write(&self, out: impl Write) -> io::Result<()> {
        let descriptor =
            |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()});
        let config = self.config();
        let layers: Vec<_> = self.layers.iter().map(|layer| descriptor(LAYER, layer)).collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST,
            "config": descriptor(CONFIG, &config), "layers": layers})
        .to_string();
        let mut target = descriptor(MANIFEST, manifest.as_bytes());
        if let Some(target) = target.as_object_mut() {
            target.insert("platform".into(), json!({"os": self.os, "architecture": self.architecture}));
        }
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [target]}).to_string();
        let mut tar = tar::Builder::new(out);
        let mut file = |path: &str, content: &[u8]| append(&mut tar, path, 0o644, tar::EntryType::Regular, content);
        file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        file("index.json", index.as_bytes())?;
        for blob in [manifest.as_bytes(), &config].into_iter().chain(self.layers.iter().map(Vec::as_slice)) {
            file(&format!("blobs/{}", digest(blob).replace(':', "/")), blob)?;
        }
        tar.into_inner()?.flush()
    }
}
