//! Images out of archives, good and bad.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use common::{Pod, node, sandbox, shell};
use sampan_oci::layout::{Layer, Layout, digest};
use sampan_oci::testing::{self, BUSYBOX, Node, save};
use serde_json::{Value, json};

type Files = Vec<(String, Vec<u8>)>;

fn tar(file: &Path, files: &Files) {
    let mut tar = tar::Builder::new(std::fs::File::create(file).unwrap());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, bytes.as_slice()).unwrap();
    }
    tar.finish().unwrap();
}

fn files(layout: &Layout) -> Files {
    let mut bytes = Vec::new();
    layout.write(&mut bytes).unwrap();
    let mut tar = tar::Archive::new(bytes.as_slice());
    let file = |entry: std::io::Result<tar::Entry<&[u8]>>| {
        let mut entry = entry.unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        (entry.path().unwrap().to_str().unwrap().to_owned(), bytes)
    };
    tar.entries().unwrap().map(file).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn small() -> Layout {
    let mut layer = Layer::new();
    layer.file("hello", 0o644, b"hello").unwrap();
    Layout::new().layer(layer).unwrap().cmd(&["/hello"])
}

/// A layout with a compressed layer; `change` sees manifest and configuration before they are hashed.
fn compressed(change: impl Fn(&mut Value, &mut Value, &mut Vec<u8>)) -> Files {
    let of = files(&small());
    let value = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
    let (mut manifest, mut config) = (value(&of[2].1), value(&of[3].1));
    let mut layer = gzip(&of[4].1);
    let blob = |bytes: &[u8]| (format!("blobs/{}", digest(bytes).replace(':', "/")), bytes.to_vec());
    manifest["layers"][0] = json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
        "digest": digest(&layer), "size": layer.len()});
    let name = blob(&layer).0;
    change(&mut manifest, &mut config, &mut layer);
    let config = config.to_string();
    manifest["config"]["digest"] = json!(digest(config.as_bytes()));
    manifest["config"]["size"] = json!(config.len());
    let manifest = manifest.to_string();
    let index = json!({"schemaVersion": 2, "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": digest(manifest.as_bytes()), "size": manifest.len()}]});
    vec![
        ("index.json".into(), index.to_string().into_bytes()),
        blob(manifest.as_bytes()),
        blob(config.as_bytes()),
        (name, layer),
    ]
}

/// What `docker save` writes, with a layer that is a link as in its old versions.
fn saved(architecture: &str) -> (Files, String) {
    let mut layer = Layer::new();
    layer.file("bin/true", 0o755, b"x").unwrap();
    let of = files(&Layout::new().layer(layer).unwrap().platform("linux", architecture));
    let (config, layer) = (of[3].1.clone(), of[4].1.clone());
    let manifest = json!([{"Config": "abc.json", "RepoTags": ["x:1"], "Layers": ["1/layer.tar"]}]);
    let id = digest(&config);
    let files = vec![
        ("manifest.json".into(), manifest.to_string().into_bytes()),
        ("abc.json".into(), config),
        ("1/layer.tar".into(), layer),
    ];
    (files, id)
}

fn own() -> &'static str {
    if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" }
}

async fn fails(node: &Node, archive: &Path, words: &str) {
    let error = node.daemon.client().import(archive, "localhost/bad:1").await.unwrap_err().to_string();
    assert!(error.contains(words) && error.contains(archive.to_str().unwrap()), "{words:?} in {error}");
    assert_eq!(node.daemon.client().image_status("localhost/bad:1").await.unwrap(), None);
}

#[tokio::test]
async fn good_archives_become_images() {
    let Some(node) = node().await else { return };
    let client = node.daemon.client();
    let file = node.base().join("image.tar");
    let image = client.image_status(BUSYBOX).await.unwrap().unwrap();
    assert_eq!(image.id, testing::busybox().unwrap().id());
    assert_eq!(image.tags, [BUSYBOX]);
    assert!(image.digests.is_empty() && image.size > 100_000, "by hand: {image:?}");
    let config = image.config.unwrap();
    assert_eq!((config.cmd, config.env, config.entrypoint), (vec!["/bin/sh".into()], vec!["PATH=/bin".into()], vec![]));

    tar(&file, &compressed(|_, _, _| {}));
    for _ in 0..2 {
        let image = client.import(&file, "localhost/small").await.unwrap();
        assert_eq!(image.tags, ["localhost/small:latest"]);
    }
    let (stored, id) = saved(own());
    tar(&file, &stored);
    assert_eq!(client.import(&file, "localhost/small").await.unwrap().id, id);
    // Links lead to layers too.
    let mut links = tar::Builder::new(std::fs::File::create(&file).unwrap());
    for (name, bytes) in &stored {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        links.append_data(&mut header, name.replace("1/", "real/"), bytes.as_slice()).unwrap();
    }
    let mut link = tar::Header::new_gnu();
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_size(0);
    links.append_link(&mut link, "1/layer.tar", "../real/layer.tar").unwrap();
    links.finish().unwrap();
    assert_eq!(
        client.import(&file, "docked").await.unwrap().tags,
        ["docker.io/library/docked:latest", "localhost/small:latest"]
    );

    // One image of several, by platform.
    let (mut all, other) = (files(&small()), files(&small().platform("linux", "s390x")));
    let mut index: Value = serde_json::from_slice(&all[1].1).unwrap();
    let more: Value = serde_json::from_slice(&other[1].1).unwrap();
    index["manifests"].as_array_mut().unwrap().insert(0, more["manifests"][0].clone());
    all[1].1 = index.to_string().into_bytes();
    all.extend(other.into_iter().skip(2));
    tar(&file, &all);
    assert_eq!(client.import(&file, "localhost/several").await.unwrap().id, small().id());

    for image in ["localhost/several", "localhost/small", "docked"] {
        for _ in 0..2 {
            client.remove_image(image).await.unwrap();
        }
        assert_eq!(client.image_status(image).await.unwrap(), None);
    }
    // Removing collects garbage: what a name holds is not garbage.
    let pod = Pod::run(&node, sandbox(&node, "whole")).await;
    assert_eq!(pod.output(&shell("main", "echo whole")).await, "whole\n");
    let fs = client.image_file_systems().await.unwrap();
    assert!(fs[0].mountpoint.starts_with(&node.dir), "{fs:?}");
}

#[tokio::test]
async fn bad_archives_are_refused_in_words() {
    let Some(node) = node().await else { return };
    let file = node.base().join("bad.tar");
    let try_files = async |files: &Files, words: &str| {
        tar(&file, files);
        fails(&node, &file, words).await;
    };
    try_files(&vec![("README".into(), b"x".to_vec())], "neither an OCI layout").await;
    try_files(&compressed(|_, _, layer| *layer.last_mut().unwrap() ^= 1), "corrupt").await;
    try_files(&compressed(|_, _, layer| layer.truncate(layer.len() - 4)), "bytes, not the").await;
    try_files(
        &compressed(|_, config, _| config["rootfs"]["diff_ids"][0] = json!(digest(b"other"))),
        "but the configuration names",
    )
    .await;
    try_files(&compressed(|_, config, _| config["rootfs"]["diff_ids"] = json!([])), "1 layers, the configuration 0")
        .await;
    try_files(
        &compressed(|_, config, _| config["architecture"] = json!("s390x")),
        "for linux/s390x; this machine is linux/",
    )
    .await;
    try_files(
        &compressed(|manifest, _, _| manifest["layers"][0]["digest"] = json!("sha256:../../x")),
        "not a sha256 digest",
    )
    .await;
    try_files(&compressed(|manifest, _, _| manifest["layers"][0]["digest"] = json!(digest(b"no"))), "is missing").await;
    try_files(
        &compressed(|manifest, _, _| manifest["layers"][0]["mediaType"] = json!("application/wasm")),
        "cannot be unpacked",
    )
    .await;
    try_files(
        &compressed(|manifest, _, _| manifest["config"]["mediaType"] = json!("application/vnd.wasm.config.v0+json")),
        "a Wasm artifact",
    )
    .await;
    try_files(&compressed(|_, config, _| *config = json!(7)), "configuration cannot be read").await;
    let mut broken = compressed(|_, _, _| {});
    broken[1].1.push(b' ');
    try_files(&broken, "bytes, not the").await;
    let mut broken = compressed(|_, _, _| {});
    let end = broken[1].1.len() - 1;
    broken[1].1[end] = b' ';
    try_files(&broken, "is corrupt: its digest is").await;
    broken[0].1 = b"{}".to_vec();
    try_files(&broken, "names no image").await;
    try_files(&files(&small().platform("linux", "s390x")), "an image for linux/s390x").await;
    try_files(&files(&small().platform("windows", own())), "an image for windows").await;
    try_files(&saved("s390x").0, "for linux/s390x").await;
    let mut several = saved(own()).0;
    several[2].1.push(0);
    try_files(&several, "but the configuration names").await;
    several.remove(2);
    try_files(&several, "layer 1/layer.tar is missing").await;
    several[0].1 = b"[]".to_vec();
    try_files(&several, "holds 0 images").await;

    let mut bytes = Vec::new();
    small().write(&mut bytes).unwrap();
    std::fs::write(&file, gzip(&bytes)).unwrap();
    fails(&node, &file, "decompress it first").await;
    // Within the last layer: its end and the archive's are 1024 bytes each.
    std::fs::write(&file, &bytes[..bytes.len() - 2048]).unwrap();
    fails(&node, &file, "not a whole tar archive").await;
    std::fs::write(&file, b"MZ not an archive at all".repeat(100)).unwrap();
    fails(&node, &file, "not a whole tar archive").await;
    let missing: PathBuf = node.base().join("missing.tar");
    fails(&node, &missing, "No such file").await;
    save(&small(), &file).unwrap();
    let error = node.daemon.client().import(&file, "UPPER").await.unwrap_err().to_string();
    assert!(error.contains("UPPER"), "{error}");
    node.daemon.client().import(&file, "localhost/good:1").await.unwrap();
}

#[tokio::test]
async fn what_another_tool_writes_is_taken() {
    let Some(node) = node().await else { return };
    let (source, target) = (node.base().join("source.tar"), node.base().join("target.tar"));
    let layout = testing::busybox().unwrap().env(&["PATH=/bin", "BY=skopeo"]);
    save(&layout, &source).unwrap();
    for (format, reference) in [("docker-archive", "localhost/by/docker:1"), ("oci-archive", "localhost/by/oci:1")] {
        let _ = std::fs::remove_file(&target);
        let mut skopeo = std::process::Command::new("skopeo");
        skopeo.args(["--insecure-policy", "copy", "--quiet", "--dest-compress"]);
        skopeo.arg(format!("oci-archive:{}", source.display()));
        match skopeo.arg(format!("{format}:{}:{reference}", target.display())).output() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return eprintln!("skipped: no skopeo"),
            output => {
                let output = output.unwrap();
                assert!(output.status.success(), "{format}: {}", String::from_utf8_lossy(&output.stderr));
            }
        }
        node.daemon.client().import(&target, reference).await.unwrap();
        let pod = Pod::run(&node, sandbox(&node, format)).await;
        let mut container = shell("main", "echo by $BY");
        container.image = reference.into();
        assert_eq!(pod.output(&container).await, "by skopeo\n");
    }
}
