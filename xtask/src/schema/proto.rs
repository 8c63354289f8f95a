//! Reads k8s-pb: protobuf tags, and the markers in the comments of the Go types.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use regex::Regex;

use super::{Type, Types, rust_files};

#[derive(Debug, Default)]
struct Message {
    markers: Vec<String>,
    fields: Vec<Entry>,
}

#[derive(Clone, Debug, Default)]
struct Entry {
    /// Without underscores, in lower case.
    name: String,
    tag: u32,
    /// The message type it holds, as a name of the table.
    message: Option<String>,
    repeated: bool,
    markers: Vec<String>,
}

/// Adds tags and markers; returns `type field` of what has no tag.
pub fn add(types: &mut Types, folder: &Path) -> Result<Vec<String>> {
    let mut messages = BTreeMap::new();
    for file in rust_files(folder)? {
        let module: Vec<String> = file
            .parent()
            .and_then(|p| p.strip_prefix(folder).ok())
            .context("a file below the folder")?
            .components()
            .map(|c| c.as_os_str().to_string_lossy().into_owned())
            .collect();
        read(&std::fs::read_to_string(&file)?, &module, &mut messages)?;
    }
    let mut missing = Vec::new();
    for (name, this) in types.iter_mut() {
        let Some(message) = messages.get(&name.to_lowercase()) else {
            missing.extend(this.fields.keys().filter(|f| !type_meta(f)).map(|f| format!("{name} {f}")));
            continue;
        };
        if message.markers.iter().any(|m| m == "structType=atomic" || m == "mapType=atomic") {
            this.atomic = true;
        }
        fields(this, message, &messages, &[]);
        for (field, f) in &this.fields {
            if f.tags.is_empty() && !(type_meta(field) && this.kind.is_some()) {
                missing.push(format!("{name} {field}"));
            }
        }
    }
    Ok(missing)
}

fn type_meta(field: &str) -> bool {
    matches!(field, "apiVersion" | "kind")
}

fn plain(name: &str) -> String {
    name.chars().filter(|c| c.is_ascii_alphanumeric()).map(|c| c.to_ascii_lowercase()).collect()
}

fn fields(this: &mut Type, message: &Message, messages: &BTreeMap<String, Message>, outer: &[u32]) {
    for entry in &message.fields {
        let mut tags = outer.to_vec();
        tags.push(entry.tag);
        let found = this.fields.iter_mut().find(|(name, _)| plain(name) == entry.name);
        if let Some((_, field)) = found {
            if !field.tags.is_empty() {
                continue;
            }
            field.tags = tags;
            mark(field, &entry.markers);
        } else if let Some(inner) = entry.message.as_ref().filter(|_| !entry.repeated).and_then(|m| messages.get(m)) {
            // A message of which JSON has the fields inline.
            fields(this, inner, messages, &tags);
        }
    }
}

fn mark(field: &mut super::Field, markers: &[String]) {
    let value = |name: &str| {
        markers.iter().find_map(|m| m.strip_prefix(name).and_then(|m| m.strip_prefix('='))).map(str::to_owned)
    };
    let keys: Vec<String> = markers.iter().filter_map(|m| m.strip_prefix("listMapKey=")).map(str::to_owned).collect();
    let merge = value("patchStrategy").map(|strategy| {
        let mut letters = String::new();
        if strategy.contains("merge") {
            letters.push('m');
        }
        if strategy.contains("retainKeys") {
            letters.push('r');
        }
        format!("{letters}:{}", value("patchMergeKey").unwrap_or_default())
    });
    field.list = match value("listType").as_deref() {
        Some("set") => Some("s".into()),
        Some("map") => Some(format!("k:{}", keys.join(","))),
        Some(_) => None,
        // Without a marker of its own, server-side apply follows strategic merge.
        None => match &merge {
            Some(m) if field.kind.starts_with('[') && m.starts_with('m') => match m.split_once(':') {
                Some((_, key)) if !key.is_empty() => Some(format!("k:{key}")),
                _ => Some("s".into()),
            },
            _ => None,
        },
    };
    field.merge = merge;
    field.atomic = markers.iter().any(|m| m == "mapType=atomic" || m == "structType=atomic");
    field.default = value("default").filter(|d| serde_json::from_str::<serde_json::Value>(d).is_ok());
}

fn read(text: &str, module: &[String], messages: &mut BTreeMap<String, Message>) -> Result<()> {
    let structure = Regex::new(r"^pub struct (\w+)")?;
    let attribute = Regex::new(r#"^    #\[prost\((.*)tag = "(\d+)"\)\]"#)?;
    let field = Regex::new(r"^    pub (?:r#)?(\w+):(.*)$")?;
    let marker = Regex::new(r"^\s*///\s*\+(\S.*)$")?;
    let mut current: Option<(String, Message)> = None;
    let mut markers: Vec<String> = Vec::new();
    let mut pending: Option<Entry> = None;
    let mut pending_type = String::new();
    for line in text.lines() {
        if let Some(c) = marker.captures(line) {
            // Rustdoc escapes brackets and quotes nothing else we read.
            markers.push(c[1].trim().replace('\\', ""));
            continue;
        }
        if line.trim_start().starts_with("///") || line.starts_with("#[") {
            continue;
        }
        if let Some(c) = structure.captures(line) {
            let name = format!("io.k8s.{}.{}", module.join(".").replace('_', "-"), &c[1]);
            current = Some((name, Message { markers: std::mem::take(&mut markers), fields: Vec::new() }));
            if line.contains("{}")
                && let Some((name, message)) = current.take()
            {
                messages.insert(name.to_lowercase(), message);
            }
        } else if let Some(c) = attribute.captures(line) {
            pending = Some(Entry {
                tag: c[2].parse()?,
                repeated: c[1].contains("repeated") || c[1].contains("map"),
                message: c[1].contains("message").then(String::new),
                ..Entry::default()
            });
            pending_type.clear();
        } else if let Some(c) = field.captures(line)
            && let Some(entry) = &mut pending
        {
            entry.name = plain(&c[1]);
            pending_type.push_str(c[2].trim());
            finish(line, &mut pending, &mut pending_type, &mut markers, module, &mut current);
        } else if pending.is_some() && !line.trim_start().starts_with("#[") {
            pending_type.push_str(line.trim());
            finish(line, &mut pending, &mut pending_type, &mut markers, module, &mut current);
        } else if line == "}"
            && let Some((name, message)) = current.take()
        {
            messages.insert(name.to_lowercase(), message);
        }
    }
    Ok(())
}

/// Takes up a field whose type is read to its end.
fn finish(
    line: &str,
    pending: &mut Option<Entry>,
    rust: &mut String,
    markers: &mut Vec<String>,
    module: &[String],
    current: &mut Option<(String, Message)>,
) {
    if !line.trim_end().ends_with(',') || rust.matches('<').count() != rust.matches('>').count() {
        return;
    }
    if let (Some(mut entry), Some((_, message))) = (pending.take(), current.as_mut()) {
        entry.markers = std::mem::take(markers);
        if entry.message.is_some() {
            entry.message = Some(message_name(rust, module));
        }
        message.fields.push(entry);
    }
    rust.clear();
}

/// The table's name of the message in an `Option<…>`.
fn message_name(rust: &str, module: &[String]) -> String {
    let path = rust.trim_end_matches(',').trim_end_matches('>').rsplit('<').next().unwrap_or_default();
    let mut module = module.to_vec();
    let mut parts: Vec<&str> = path.split("::").filter(|p| !p.is_empty()).collect();
    let name = parts.pop().unwrap_or_default();
    if parts.first() == Some(&"crate") {
        module = parts.iter().skip(1).map(|p| (*p).to_owned()).collect();
    } else {
        for part in parts {
            if part == "super" {
                module.pop();
            } else {
                module.push(part.to_owned());
            }
        }
    }
    format!("io.k8s.{}.{name}", module.join(".").replace('_', "-")).to_lowercase()
}
