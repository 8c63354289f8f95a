//! Reads `facts.txt`: what the Go types say and no source of ours does.

use std::path::Path;

use anyhow::{Context, Result, bail};

use super::{Field, Types};

pub fn apply(types: &mut Types, file: &Path) -> Result<()> {
    for (name, this) in types.iter_mut() {
        let top = this.kind.is_some();
        for (field, f) in &mut this.fields {
            by_rule(name, field, f, top);
        }
    }
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let mut current = String::new();
    for (number, line) in text.lines().enumerate() {
        let at = || format!("{}:{}", file.display(), number + 1);
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        if !line.starts_with(' ') {
            current = format!("io.k8s.{}", line.trim());
            if !types.contains_key(&current) {
                bail!("{}: no type {current}", at());
            }
            continue;
        }
        let this = types.get_mut(&current).with_context(at)?;
        let mut words = line.split_whitespace();
        let name = words.next().unwrap_or_default();
        if name == "." {
            for word in words {
                match word {
                    "atomic" => this.atomic = true,
                    _ => bail!("{}: unknown word {word}", at()),
                }
            }
            continue;
        }
        let field = this.fields.get_mut(name).with_context(|| format!("{}: no field {name}", at()))?;
        for word in words {
            apply_word(field, word).with_context(at)?;
        }
    }
    Ok(())
}

/// What holds for most fields, and is not repeated in the file.
fn by_rule(of: &str, name: &str, field: &mut Field, top: bool) {
    match field.kind.as_bytes().first() {
        // An optional struct is a pointer, but for what every kind has.
        Some(b'@' | b't' | b'u' | b'q' | b'x' | b'j') => {
            let meta = field.kind.ends_with("meta.v1.ObjectMeta") || field.kind.ends_with("meta.v1.ListMeta");
            let part = top && matches!(name, "spec" | "status");
            let template = field.kind.ends_with("PodTemplateSpec");
            let plain = field.required || meta || part || (template && !of.contains("ReplicationController"));
            field.pointer = !plain;
            field.always = plain && field.kind != "j";
            // k8s-openapi has it required everywhere; the API nowhere.
            field.required &= !meta;
        }
        // An optional scalar or list is left out when zero or empty.
        _ => field.always = field.required,
    }
}

fn apply_word(field: &mut Field, word: &str) -> Result<()> {
    match word.split_once('=') {
        None => match word {
            // A Go pointer, left out when nil.
            "pointer" => (field.pointer, field.always) = (true, false),
            // A Go pointer without omitempty: null when nil.
            "nullable" => (field.pointer, field.always) = (true, true),
            // No pointer, always written.
            "value" => (field.pointer, field.always) = (false, true),
            // No pointer, left out when zero.
            "omitzero" => (field.pointer, field.always) = (false, false),
            "atomic" => {
                field.atomic = true;
                field.list = None;
            }
            "optional" => field.required = false,
            "set" => field.list = Some("s".into()),
            _ => bail!("unknown word {word}"),
        },
        Some(("go", name)) => field.go = Some(name.into()),
        Some(("tag", tags)) => {
            field.tags = tags.split('.').map(str::parse).collect::<Result<_, _>>()?;
        }
        Some(("keys", keys)) => field.list = Some(format!("k:{keys}")),
        Some(("merge", key)) => field.merge = Some(format!("m:{key}")),
        Some(("default", value)) => field.default = Some(value.into()),
        Some(_) => bail!("unknown word {word}"),
    }
    Ok(())
}
