//! Objects as protobuf, for clients that ask for nothing else.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::time;
use crate::schema::{FieldKind, TypeDef};

/// An object in its envelope.
pub(crate) fn envelope(of: &TypeDef, api_version: &str, kind: &str, object: &Map<String, Value>) -> Vec<u8> {
    let mut meta = Vec::new();
    bytes(&mut meta, 1, api_version.as_bytes());
    bytes(&mut meta, 2, kind.as_bytes());
    let mut out = b"k8s\0".to_vec();
    bytes(&mut out, 1, &meta);
    bytes(&mut out, 2, &message(of, object, 0));
    bytes(&mut out, 3, b"");
    bytes(&mut out, 4, b"");
    out
}

/// The fields of a type that lie in one message: below `outer`, the tags of messages that JSON has
/// inline.
fn message(of: &TypeDef, object: &Map<String, Value>, outer: u64) -> Vec<u8> {
    let mut parts: Vec<(u64, Vec<u8>)> = Vec::new();
    for (tags, index) in &of.tags {
        if tags >> 16 != outer {
            continue;
        }
        let Some(field) = of.fields.get(usize::from(*index)) else {
            continue;
        };
        if let Some(value) = object.get(field.name) {
            let tag = tags & 0xffff;
            let mut out = Vec::new();
            field_value(&mut out, tag, &field.kind, value);
            parts.push((tag, out));
        }
    }
    for tags in of.inlined.iter().filter(|tags| *tags >> 16 == outer) {
        let inner = message(of, object, *tags);
        if !inner.is_empty() {
            let mut out = Vec::new();
            bytes(&mut out, tags & 0xffff, &inner);
            parts.push((tags & 0xffff, out));
        }
    }
    parts.sort_by_key(|(tag, _)| *tag);
    parts.into_iter().flat_map(|(_, part)| part).collect()
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push((value & 0x7f) as u8);
}

fn number(out: &mut Vec<u8>, tag: u64, value: u64) {
    varint(out, tag << 3);
    varint(out, value);
}

fn bytes(out: &mut Vec<u8>, tag: u64, value: &[u8]) {
    varint(out, tag << 3 | 2);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

fn field_value(out: &mut Vec<u8>, tag: u64, kind: &FieldKind, value: &Value) {
    match (kind, value) {
        (_, Value::Null) => {}
        (FieldKind::List(of), Value::Array(items)) => items.iter().for_each(|item| item_value(out, tag, of, item)),
        (FieldKind::Map(of), Value::Object(entries)) => {
            for (key, item) in entries {
                let mut entry = Vec::new();
                bytes(&mut entry, 1, key.as_bytes());
                item_value(&mut entry, 2, of, item);
                bytes(out, tag, &entry);
            }
        }
        (kind, value) => item_value(out, tag, kind, value),
    }
}

#[allow(clippy::cast_sign_loss)]
fn item_value(out: &mut Vec<u8>, tag: u64, kind: &FieldKind, value: &Value) {
    let mut inner = Vec::new();
    match (kind, value) {
        (FieldKind::Bool, Value::Bool(b)) => return number(out, tag, u64::from(*b)),
        (FieldKind::Int32 | FieldKind::Int64, Value::Number(n)) => {
            return number(out, tag, n.as_i64().unwrap_or_default() as u64);
        }
        (FieldKind::Double, Value::Number(n)) => {
            varint(out, tag << 3 | 1);
            return out.extend_from_slice(&n.as_f64().unwrap_or_default().to_le_bytes());
        }
        (FieldKind::String, Value::String(s)) => return bytes(out, tag, s.as_bytes()),
        (FieldKind::Bytes, Value::String(s)) => {
            return bytes(out, tag, &STANDARD.decode(s).unwrap_or_default());
        }
        (FieldKind::Time | FieldKind::MicroTime, Value::String(s)) => {
            if let Ok(Some(time)) = time::parse(s, *kind == FieldKind::MicroTime) {
                let nanos = i64::from(time.subsec_nanosecond());
                // Before 1970 the seconds round down, the nanoseconds stay positive.
                let (seconds, nanos) =
                    if nanos < 0 { (time.as_second() - 1, nanos + 1_000_000_000) } else { (time.as_second(), nanos) };
                number(&mut inner, 1, seconds as u64);
                number(&mut inner, 2, nanos as u64);
            }
        }
        (FieldKind::Quantity, Value::String(s)) => bytes(&mut inner, 1, s.as_bytes()),
        (FieldKind::IntOrString, Value::String(s)) => {
            number(&mut inner, 1, 1);
            number(&mut inner, 2, 0);
            bytes(&mut inner, 3, s.as_bytes());
        }
        (FieldKind::IntOrString, Value::Number(n)) => {
            number(&mut inner, 1, 0);
            number(&mut inner, 2, n.as_i64().unwrap_or_default() as u64);
            bytes(&mut inner, 3, b"");
        }
        (FieldKind::Any, value) => bytes(&mut inner, 1, value.to_string().as_bytes()),
        (FieldKind::Type(of), Value::Object(object)) => inner = message(of.get(), object, 0),
        // A list as a map's value is a message of its own.
        (FieldKind::List(of), Value::Array(items)) => items.iter().for_each(|item| item_value(&mut inner, 1, of, item)),
        _ => {}
    }
    bytes(out, tag, &inner);
}
