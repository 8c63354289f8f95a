//! Manifests: YAML or JSON, several documents a file, files or folders or standard input.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

/// One object, and where it came from.
pub struct Manifest {
    pub object: Value,
    pub origin: String,
}

impl Manifest {
    pub fn api_version(&self) -> &str {
        self.text("/apiVersion")
    }

    pub fn kind(&self) -> &str {
        self.text("/kind")
    }

    pub fn name(&self) -> &str {
        self.text("/metadata/name")
    }

    /// `None` where the object names none.
    pub fn namespace(&self) -> Option<&str> {
        self.object.pointer("/metadata/namespace").and_then(Value::as_str)
    }

    fn text(&self, pointer: &str) -> &str {
        self.object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }
}

/// All objects of these files, in their order.
pub fn read(paths: &[PathBuf]) -> Result<Vec<Manifest>> {
    let mut manifests = Vec::new();
    for path in paths {
        if path.as_os_str() == "-" {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("standard input")?;
            parse(&text, "standard input", &mut manifests)?;
            continue;
        }
        for file in files(path)? {
            let origin = file.display().to_string();
            let text = std::fs::read_to_string(&file).with_context(|| origin.clone())?;
            parse(&text, &origin, &mut manifests)?;
        }
    }
    ensure!(!manifests.is_empty(), "the manifests hold no object");
    Ok(manifests)
}

fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).with_context(|| path.display().to_string())? {
        let path = entry?.path();
        let known = path.extension().is_some_and(|ending| ["yaml", "yml", "json"].iter().any(|one| ending == *one));
        if known && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn parse(text: &str, origin: &str, manifests: &mut Vec<Manifest>) -> Result<()> {
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(text).map_err(|error| anyhow::anyhow!("{origin}: {}", error.without_snippet()))?;
    for document in documents {
        match document {
            Value::Null => {}
            Value::Object(mut list) if list.get("kind").and_then(Value::as_str) == Some("List") => {
                let Some(Value::Array(items)) = list.remove("items") else { continue };
                for object in items {
                    manifests.push(checked(object, origin)?);
                }
            }
            object => manifests.push(checked(object, origin)?),
        }
    }
    Ok(())
}

fn checked(object: Value, origin: &str) -> Result<Manifest> {
    let manifest = Manifest { object, origin: origin.to_owned() };
    for (field, value) in
        [("apiVersion", manifest.api_version()), ("kind", manifest.kind()), ("metadata.name", manifest.name())]
    {
        if value.is_empty() {
            bail!("{origin}: an object has no {field}");
        }
    }
    Ok(manifest)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parsed(text: &str) -> Result<Vec<Manifest>> {
        let mut manifests = Vec::new();
        parse(text, "x.yaml", &mut manifests)?;
        Ok(manifests)
    }

    #[test]
    fn several_documents_and_lists() {
        let text = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\n# nothing\n---\n\
                    apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Secret, metadata: {name: b}}\n";
        let names: Vec<_> = parsed(text).unwrap().iter().map(|manifest| manifest.name().to_owned()).collect();
        assert_eq!(names, ["a", "b"]);
    }

    #[test]
    fn errors_say_where() {
        let error = parsed("kind: Pod\nmetadata: {name: a}\n").err().unwrap().to_string();
        assert_eq!(error, "x.yaml: an object has no apiVersion");
        let error = parsed("a: [b\n").err().unwrap().to_string();
        assert!(error.starts_with("x.yaml: ") && error.contains("line") && !error.contains("error:"), "{error}");
    }
}
