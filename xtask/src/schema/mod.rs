//! Writes `control-plane/api/schema/{types,descriptions}.txt`: every type of the API, from the
//! sources of k8s-openapi (fields, types, prose) and k8s-pb (protobuf tags, markers), and from
//! `facts.txt`, which holds what neither knows: how the Go types encode zero values.

mod facts;
mod openapi;
mod proto;
mod write;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// One type while the table is put together.
#[derive(Debug, Default)]
pub struct Type {
    pub description: String,
    pub kind: Option<(String, String, String)>,
    /// Name of the list kind, where there is one.
    pub list_kind: Option<String>,
    pub fields: BTreeMap<String, Field>,
    pub atomic: bool,
}

#[derive(Clone, Debug, Default)]
pub struct Field {
    /// In the table's notation: `s`, `[s`, `{q`, `@io.k8s.api.core.v1.Pod`.
    pub kind: String,
    pub description: String,
    pub required: bool,
    /// Tags, the outermost first.
    pub tags: Vec<u32>,
    pub pointer: bool,
    pub always: bool,
    pub merge: Option<String>,
    pub list: Option<String>,
    pub atomic: bool,
    pub go: Option<String>,
    pub default: Option<String>,
}

pub type Types = BTreeMap<String, Type>;

pub fn generate() -> Result<()> {
    let own = std::env::var_os("CARGO_MANIFEST_DIR").context("run this as `cargo xtask`")?;
    let root = Path::new(&own).parent().context("the workspace's folder")?.to_owned();
    let mut types = openapi::read(&source(&root, "k8s-openapi")?.join("src/v1_36"))?;
    let missing = proto::add(&mut types, &source(&root, "k8s-pb")?.join("src"))?;
    let folder = root.join("control-plane/api/schema");
    facts::apply(&mut types, &folder.join("facts.txt"))?;
    openapi::add_lists(&mut types);
    for name in missing.iter().filter(|name| !has_tag(&types, name)) {
        eprintln!("no protobuf tag: {name}");
    }
    write::write(&types, &folder)
}

fn has_tag(types: &Types, name: &str) -> bool {
    name.split_once(' ')
        .is_some_and(|(of, field)| types.get(of).and_then(|t| t.fields.get(field)).is_some_and(|f| !f.tags.is_empty()))
}

/// The folder of a crate's source.
fn source(root: &Path, package: &str) -> Result<PathBuf> {
    let output = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()))
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(root)
        .output()
        .context("cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    }
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata.get("packages").and_then(Value::as_array).context("cargo metadata: packages")?;
    let manifest = packages
        .iter()
        .find(|p| p.get("name").and_then(Value::as_str) == Some(package))
        .and_then(|p| p.get("manifest_path"))
        .and_then(Value::as_str)
        .with_context(|| format!("cargo metadata does not name {package}"))?;
    Ok(Path::new(manifest).parent().context("a manifest lies in a folder")?.to_owned())
}

/// All Rust files below a folder, sorted.
fn rust_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}
