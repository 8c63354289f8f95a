//! A registry of the test's own, and images for it.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use base64::Engine as _;
use sampan_oci::layout::Layout;
use sampan_oci::testing;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{PATIENCE, Process, http};

/// A running docker-registry on the machine's loopback.
pub struct Registry {
    pub address: String,
    process: Process,
    dir: tempfile::TempDir,
    authorization: Option<String>,
}

/// Who may use a registry with [`Registry::private`].
pub const USER: &str = "sailor";
pub const PASSWORD: &str = "s3cret";
/// bcrypt of the password.
const HASH: &str = "$2b$05$abcdefghijklmnopqrstuuLK7U1u6pVRmL7L1BBM2aS35PSZnDXlK";

impl Registry {
    /// Open to everybody.
    pub fn public() -> Self {
        Self::start(false)
    }

    /// For [`USER`] alone.
    pub fn private() -> Self {
        Self::start(true)
    }

    fn start(private: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = json!({
            "version": 0.1,
            "storage": { "filesystem": { "rootdirectory": dir.path().join("data") } },
            "http": { "addr": "127.0.0.1:0" },
        });
        if private {
            let file = dir.path().join("users");
            std::fs::write(&file, format!("{USER}:{HASH}\n")).unwrap();
            config["auth"] = json!({ "htpasswd": { "realm": "test", "path": file } });
        }
        let file = dir.path().join("config.yml");
        std::fs::write(&file, config.to_string()).unwrap();
        let process = Process::spawn(Path::new("docker-registry"), &["serve", file.to_str().unwrap()], &[]);
        let begun = Instant::now();
        let address = loop {
            let log = process.log();
            if let Some((_, rest)) = log.split_once("listening on ") {
                break rest.split('"').next().unwrap().to_owned();
            }
            assert!(begun.elapsed() < PATIENCE, "the registry does not listen:\n{log}");
            std::thread::sleep(std::time::Duration::from_millis(20));
        };
        let token = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{PASSWORD}"));
        let authorization = private.then(|| format!("Basic {token}"));
        Self { address, process, dir, authorization }
    }

    /// Lets it end.
    pub fn stop(self) {
        self.process.kill();
    }

    /// Pushes a module as an artifact: a manifest with one layer. Answers with the manifest's digest.
    pub fn push_artifact(&self, name: &str, tag: &str, module: &[u8]) -> String {
        let config = json!({ "architecture": "wasm", "os": "wasip2", "layerDigests": [digest(module)] });
        let config = self.push_blob(name, "application/vnd.wasm.config.v0+json", config.to_string().as_bytes());
        let layer = self.push_blob(name, "application/wasm", module);
        self.push_manifest(name, tag, &json!({ "config": config, "layers": [layer] }))
    }

    /// Pushes an image for wasi/wasm that starts a module with arguments, under an index of platforms.
    pub fn push_wasm_image(&self, name: &str, tag: &str, module: &[u8], cmd: &[&str]) {
        let other = layer(&[("etc/motd", b"hello")]);
        let own = layer(&[("usr/share/doc/readme", b"text"), ("app/module.wasm", module)]);
        let config = json!({
            "architecture": "wasm", "os": "wasi",
            "config": { "Entrypoint": ["/app/module.wasm"], "Cmd": cmd },
            "rootfs": { "type": "layers", "diff_ids": [] },
        });
        let kind = "application/vnd.oci.image.layer.v1.tar+gzip";
        let config = self.push_blob(name, "application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
        let layers = [self.push_blob(name, kind, &own), self.push_blob(name, kind, &other)];
        let manifest = manifest(&json!({ "config": config, "layers": layers }));
        let digest = self.push_raw(name, &digest(manifest.as_bytes()), MANIFEST, &manifest);
        let entry = json!({
            "mediaType": MANIFEST, "digest": digest, "size": manifest.len(),
            "platform": { "os": "wasi", "architecture": "wasm" },
        });
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] });
        self.push_raw(name, tag, INDEX, &index.to_string());
    }

    /// Pushes a Linux image, its layers as they are.
    pub fn push_linux(&self, name: &str, tag: &str, image: &Layout) {
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("image.tar");
        testing::save(image, &archive).unwrap();
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", "--preserve-digests"]);
        skopeo.arg(format!("oci-archive:{}", archive.display()));
        let pushed = skopeo.arg(format!("docker://{}/{name}:{tag}", self.address)).output().unwrap();
        assert!(pushed.status.success(), "{}", String::from_utf8_lossy(&pushed.stderr));
    }

    /// Changes a byte in every blob that has this in it, behind the registry's back.
    pub fn corrupt(&self, content: &[u8]) {
        let mut dirs = vec![self.dir.path().join("data")];
        let mut found = 0;
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(dir).unwrap().flatten() {
                if entry.file_type().unwrap().is_dir() {
                    dirs.push(entry.path());
                    continue;
                }
                let mut bytes = std::fs::read(entry.path()).unwrap();
                if let Some(at) = bytes.windows(content.len()).position(|it| it == content) {
                    bytes[at] ^= 1;
                    std::fs::write(entry.path(), bytes).unwrap();
                    found += 1;
                }
            }
        }
        assert!(found > 0, "no blob has it");
    }

    fn push_manifest(&self, name: &str, tag: &str, content: &Value) -> String {
        self.push_raw(name, tag, MANIFEST, &manifest(content))
    }

    fn push_raw(&self, name: &str, tag: &str, kind: &str, text: &str) -> String {
        let (status, _, body) = self.ask("PUT", &format!("/v2/{name}/manifests/{tag}"), kind, text.as_bytes());
        assert_eq!(status, 201, "{body}");
        digest(text.as_bytes())
    }

    fn push_blob(&self, name: &str, kind: &str, bytes: &[u8]) -> Value {
        let (status, head, body) = self.ask("POST", &format!("/v2/{name}/blobs/uploads/"), "", b"");
        assert_eq!(status, 202, "{body}");
        let location = head.lines().find_map(|line| line.strip_prefix("Location: ")).unwrap();
        let path = location.split_once(&self.address).map_or(location, |(_, path)| path);
        let digest = digest(bytes);
        let path = format!("{path}&digest={digest}");
        let (status, _, body) = self.ask("PUT", &path, "application/octet-stream", bytes);
        assert_eq!(status, 201, "{body}");
        json!({ "mediaType": kind, "digest": digest, "size": bytes.len() })
    }

    fn ask(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> (u16, String, String) {
        let mut stream = http::connect(&self.address).unwrap();
        let authorization = self.authorization.as_ref().map(|it| format!("Authorization: {it}\r\n"));
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nHost: {}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n{}\r\n",
            self.address,
            body.len(),
            authorization.unwrap_or_default(),
        )
        .unwrap();
        stream.write_all(body).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.replace('\r', ""), body.to_owned())
    }
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn manifest(content: &Value) -> String {
    let mut manifest = content.clone();
    manifest["schemaVersion"] = json!(2);
    manifest["mediaType"] = json!(MANIFEST);
    manifest.to_string()
}

pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// A zipped layer with these files.
fn layer(files: &[(&str, &[u8])]) -> Vec<u8> {
    let zip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut archive = tar::Builder::new(zip);
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, *content).unwrap();
    }
    archive.into_inner().unwrap().finish().unwrap()
}
