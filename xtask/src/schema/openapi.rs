//! Reads k8s-openapi: one file a type, with its name, fields, prose and merge strategies.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use regex::Regex;

use super::{Field, Type, Types, rust_files};

/// Types with an encoding of their own, by their OpenAPI name.
fn primitive(name: &str) -> Option<&'static str> {
    Some(match name {
        "io.k8s.apimachinery.pkg.apis.meta.v1.Time" => "t",
        "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime" => "u",
        "io.k8s.apimachinery.pkg.api.resource.Quantity" => "q",
        "io.k8s.apimachinery.pkg.util.intstr.IntOrString" => "x",
        "io.k8s.apimachinery.pkg.runtime.RawExtension"
        | "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1"
        | "io.k8s.apimachinery.pkg.apis.meta.v1.Patch"
        | "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON"
        | "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrArray"
        | "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrBool"
        | "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrStringArray" => "j",
        _ => return None,
    })
}

/// The OpenAPI name of a path in k8s-openapi.
fn openapi_name(path: &str) -> String {
    let path = path.trim_start_matches("crate::").replace("::", ".");
    let path = path
        .replace("apiextensions_apiserver.", "apiextensions-apiserver.")
        .replace("kube_aggregator.", "kube-aggregator.");
    // Groups lose their suffix in OpenAPI as in the modules: nothing else differs.
    format!("io.k8s.{path}")
}

/// The table's notation of a Rust type.
fn notation(rust: &str) -> Result<String> {
    let inner =
        |outer: &str| rust.strip_prefix(outer).and_then(|r| r.strip_prefix('<')).and_then(|r| r.strip_suffix('>'));
    if let Some(inner) = inner("Option").or_else(|| inner("std::boxed::Box")) {
        return notation(inner);
    }
    if let Some(inner) = inner("std::vec::Vec") {
        return Ok(format!("[{}", notation(inner)?));
    }
    if let Some(inner) = inner("std::collections::BTreeMap") {
        let value = inner.strip_prefix("std::string::String, ").context("a map's key is a string")?;
        return Ok(format!("{{{}", notation(value)?));
    }
    Ok(match rust {
        "bool" => "b".into(),
        "i32" => "i".into(),
        "i64" => "l".into(),
        "f64" => "d".into(),
        "std::string::String" => "s".into(),
        "crate::ByteString" => "y".into(),
        "crate::serde_json::Value" => "j".into(),
        _ if rust.starts_with("crate::") => {
            let name = openapi_name(rust);
            primitive(&name).map_or_else(|| format!("@{name}"), str::to_owned)
        }
        _ => bail!("unknown type {rust}"),
    })
}

/// A Rust string literal's text.
fn unescape(literal: &str) -> Result<String> {
    let unicode = Regex::new(r"\\u\{([0-9a-f]+)\}")?;
    let text = unicode.replace_all(literal, |c: &regex::Captures<'_>| {
        let value = u32::from_str_radix(&c[1], 16).unwrap_or(0xfffd);
        format!("\\u{value:04x}")
    });
    let text = text.replace("\\'", "'");
    serde_json::from_str(&format!("\"{text}\"")).with_context(|| literal.to_owned())
}

pub fn read(folder: &Path) -> Result<Types> {
    let mut types = Types::new();
    for file in rust_files(folder)? {
        let text = std::fs::read_to_string(&file)?;
        let Some(name) = text.lines().find_map(|l| l.strip_prefix("// Generated from definition ")) else {
            continue;
        };
        let name = name.trim().to_owned();
        if primitive(&name).is_some() || name.ends_with(".APIVersions") {
            continue;
        }
        if let Some(parsed) = parse(&text, &name).with_context(|| file.display().to_string())? {
            types.insert(name, parsed);
        }
    }
    Ok(types)
}

fn parse(text: &str, name: &str) -> Result<Option<Type>> {
    let short = name.rsplit('.').next().unwrap_or(name);
    let head = Regex::new(&format!(r"(?m)^pub struct {short}( \{{|;|\(|<)"))?;
    let Some(found) = head.captures(text) else {
        return Ok(None);
    };
    if found[1] == *"<" {
        return Ok(None);
    }
    if found[1] == *"(" {
        // An object without fields of its own.
        return Ok(text.contains("(pub crate::serde_json::Value)").then(Type::default));
    }
    let mut this = Type::default();
    // What the Rust field is called in JSON.
    let key = Regex::new(r#"(?m)^\s+"([^"]+)" => Field::Key_(\w+),"#)?;
    let json: BTreeMap<&str, &str> =
        key.captures_iter(text).filter_map(|c| Some((c.get(2)?.as_str(), c.get(1)?.as_str()))).collect();
    if found[1] == *" {" {
        let start = found.get(0).map_or(0, |m| m.end());
        let body = text.get(start..).and_then(|t| t.split("\n}").next()).unwrap_or_default();
        let field = Regex::new(r"(?m)^    pub (?:r#)?(\w+): (.+),$")?;
        for c in field.captures_iter(body) {
            let name = json.get(&c[1]).copied().with_context(|| format!("no JSON name for {}", &c[1]))?;
            this.fields.insert(name.into(), Field { kind: notation(&c[2])?, ..Field::default() });
        }
    }
    let constant = |name: &str| -> Option<String> {
        let c = Regex::new(&format!(r#"const {name}: &'static str = "([^"]*)";"#)).ok()?;
        c.captures(text).map(|c| c[1].to_owned())
    };
    if let (Some(group), Some(version), Some(kind)) = (constant("GROUP"), constant("VERSION"), constant("KIND")) {
        this.kind = Some((group, version, kind));
        for name in ["apiVersion", "kind"] {
            this.fields.entry(name.into()).or_insert_with(|| Field { kind: "s".into(), ..Field::default() });
        }
    }
    this.list_kind = constant("LIST_KIND");
    merges(text, &json, &mut this)?;
    prose(text, &mut this)?;
    Ok(Some(this))
}

/// Merge keys, from the `DeepMerge` impl. k8s-pb's markers, where they exist, win over these.
fn merges(text: &str, json: &BTreeMap<&str, &str>, this: &mut Type) -> Result<()> {
    let call = Regex::new(
        r"merge_strategies::(list|map)::(\w+)\(\s*&mut self\.(?:r#)?(\w+),([^;]*?)\n?\s*(?:\|current_item|\);)",
    )?;
    let key = Regex::new(r"lhs\.(?:r#)?(\w+) == ")?;
    for c in call.captures_iter(text) {
        let Some(field) = json.get(&c[3]).and_then(|name| this.fields.get_mut(*name)) else {
            continue;
        };
        match (&c[1], &c[2]) {
            ("list", "set") => field.list = Some("s".into()),
            ("list", "map") => {
                let keys: Vec<String> = key.captures_iter(&c[4]).map(|c| camel(&c[1])).collect();
                if let [only] = keys.as_slice() {
                    field.merge = Some(format!("m:{only}"));
                }
                field.list = Some(format!("k:{}", keys.join(",")));
            }
            ("map", "atomic") => field.atomic = true,
            _ => {}
        }
    }
    Ok(())
}

fn camel(snake: &str) -> String {
    let mut parts = snake.trim_end_matches('_').split('_');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let mut letters = part.chars();
        out.extend(letters.next().map(|c| c.to_ascii_uppercase()));
        out.push_str(letters.as_str());
    }
    // The one key with an abbreviation in it.
    if out == "ip" || out != "uid" { out } else { "uid".into() }
}

/// Descriptions and required fields, from the `JsonSchema` impl.
fn prose(text: &str, this: &mut Type) -> Result<()> {
    let Some(at) = text.find("impl crate::schemars::JsonSchema for") else { bail!("no JsonSchema impl") };
    let property = Regex::new(r#"^                "([^"]+)": "#)?;
    let description = Regex::new(r#""description"(?:: |\.into\(\), )"((?:[^"\\]|\\.)*)""#)?;
    let mut current: Option<String> = None;
    let mut required = false;
    for line in text.get(at..).unwrap_or_default().lines() {
        if line.starts_with("            \"required\": [") {
            required = true;
        } else if required && line.trim_start().starts_with(']') {
            required = false;
        } else if required {
            let name = line.trim().trim_matches([',', '"']);
            if let Some(field) = this.fields.get_mut(name) {
                field.required = true;
            }
        } else if let Some(c) = property.captures(line) {
            current = Some(c[1].to_owned());
        }
        if let Some(c) = description.captures(line) {
            let text = unescape(&c[1])?;
            match &current {
                None if this.description.is_empty() => this.description = text,
                Some(name) => {
                    if let Some(field) = this.fields.get_mut(name)
                        && field.description.is_empty()
                    {
                        field.description = text;
                    }
                }
                None => {}
            }
        }
    }
    Ok(())
}

/// The list of each kind: `PodList`.
pub fn add_lists(types: &mut Types) {
    let mut lists = Types::new();
    for (name, of) in types.iter() {
        let (Some(list), Some((group, version, kind))) = (&of.list_kind, &of.kind) else {
            continue;
        };
        let module = name.rsplit_once('.').map_or("", |(module, _)| module);
        let string =
            |description: &str| Field { kind: "s".into(), description: description.into(), ..Field::default() };
        let mut this = Type {
            description: format!("{list} is a list of {kind}."),
            kind: Some((group.clone(), version.clone(), list.clone())),
            ..Type::default()
        };
        let first = of.fields.get("apiVersion").map_or("", |f| &f.description);
        this.fields.insert("apiVersion".into(), string(first));
        let second = of.fields.get("kind").map_or("", |f| &f.description);
        this.fields.insert("kind".into(), string(second));
        this.fields.insert(
            "metadata".into(),
            Field {
                kind: "@io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta".into(),
                description: "Standard list metadata.".into(),
                always: true,
                tags: vec![1],
                ..Field::default()
            },
        );
        this.fields.insert(
            "items".into(),
            Field {
                kind: format!("[@{name}"),
                description: format!("items is the list of {kind} objects."),
                required: true,
                always: true,
                tags: vec![2],
                ..Field::default()
            },
        );
        lists.insert(format!("{module}.{list}"), this);
    }
    types.extend(lists);
}
