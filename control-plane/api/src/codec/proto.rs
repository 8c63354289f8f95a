//! Protobuf bodies: the envelope (`k8s\0` and a `runtime.Unknown`) and messages, read by the tags of
//! the schema into a document that the walk makes canonical.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;

use super::node::{self, MAX_DEPTH, Node};
use super::time;
use crate::schema::{Field, FieldKind, TypeDef};

const MAGIC: &[u8] = b"k8s\0";

/// What stands around a message.
pub(crate) struct Envelope<'a> {
    pub(crate) api_version: String,
    pub(crate) kind: String,
    pub(crate) raw: &'a [u8],
}

pub(crate) fn envelope(body: &[u8]) -> Result<Envelope<'_>, String> {
    let Some(rest) = body.strip_prefix(MAGIC) else {
        return Err("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]".into());
    };
    let mut envelope = Envelope { api_version: String::new(), kind: String::new(), raw: &[] };
    for part in Parts(rest) {
        match part? {
            (1, Wire::Bytes(meta)) => {
                for part in Parts(meta) {
                    match part? {
                        (1, Wire::Bytes(text)) => envelope.api_version = string(text),
                        (2, Wire::Bytes(text)) => envelope.kind = string(text),
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(raw)) => envelope.raw = raw,
            _ => {}
        }
    }
    Ok(envelope)
}

fn string(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A message as the document that JSON would hold.
pub(crate) fn decode(of: &'static TypeDef, message: &[u8]) -> Result<Node<'static>, String> {
    struct_node(of, message, 0)
}

enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32,
    Bytes(&'a [u8]),
}

/// The tag and value pairs of a message.
struct Parts<'a>(&'a [u8]);

fn end() -> String {
    "unexpected EOF".into()
}

impl<'a> Parts<'a> {
    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or_else(end)?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("proto: integer overflow".into())
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or_else(end)?;
        self.0 = rest;
        Ok(taken)
    }

    fn part(&mut self) -> Result<(u64, Wire<'a>), String> {
        let key = self.varint()?;
        let tag = key >> 3;
        if tag == 0 {
            return Err("proto: illegal tag 0 (wire type 0)".into());
        }
        let value = match key & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed64(u64::from_le_bytes(self.take(8)?.try_into().map_err(|_| end())?)),
            2 => {
                let length =
                    usize::try_from(self.varint()?).map_err(|_| "proto: negative length found during unmarshaling")?;
                Wire::Bytes(self.take(length)?)
            }
            5 => {
                self.take(4)?;
                Wire::Fixed32
            }
            wire => return Err(format!("proto: illegal wireType {wire}")),
        };
        Ok((tag, value))
    }
}

impl<'a> Iterator for Parts<'a> {
    type Item = Result<(u64, Wire<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let part = self.part();
        if part.is_err() {
            self.0 = &[];
        }
        Some(part)
    }
}

fn struct_node(of: &'static TypeDef, message: &[u8], depth: usize) -> Result<Node<'static>, String> {
    let mut values: Vec<Option<Node<'static>>> = of.fields.iter().map(|_| None).collect();
    read(of, message, 0, depth, &mut values)?;
    let entries = of.fields.iter().zip(values).filter_map(|(field, value)| Some((field.name.into(), value?))).collect();
    Ok(Node::Object(entries))
}

/// Reads a message into a type's fields; `outer` holds the tags of the messages that JSON has inline.
fn read(
    of: &'static TypeDef,
    message: &[u8],
    outer: u64,
    depth: usize,
    values: &mut [Option<Node<'static>>],
) -> Result<(), String> {
    if depth > MAX_DEPTH {
        return Err("exceeded max depth".into());
    }
    for part in Parts(message) {
        let (tag, wire) = part?;
        if tag > 0xffff || outer >> 48 != 0 {
            continue;
        }
        let tags = outer << 16 | tag;
        if let Ok(at) = of.tags.binary_search_by_key(&tags, |(tags, _)| *tags) {
            let index = of.tags.get(at).map_or(usize::MAX, |(_, index)| usize::from(*index));
            if let (Some(field), Some(slot)) = (of.fields.get(index), values.get_mut(index)) {
                field_value(field, &wire, depth, slot)?;
            }
        } else if let (true, Wire::Bytes(inner)) = (of.inlined.binary_search(&tags).is_ok(), &wire) {
            read(of, inner, tags, depth + 1, values)?;
        }
    }
    Ok(())
}

fn field_value(field: &Field, wire: &Wire<'_>, depth: usize, slot: &mut Option<Node<'static>>) -> Result<(), String> {
    match (&field.kind, wire) {
        (FieldKind::List(of), Wire::Bytes(packed)) if matches!(**of, FieldKind::Int32 | FieldKind::Int64) => {
            let mut parts = Parts(packed);
            while !parts.0.is_empty() {
                let number = Wire::Varint(parts.varint()?);
                push(slot, value(of, &number, depth, field)?);
            }
        }
        (FieldKind::List(of), wire) => push(slot, value(of, wire, depth, field)?),
        (FieldKind::Map(of), Wire::Bytes(entry)) => {
            let mut key = String::new();
            let mut item = None;
            for part in Parts(entry) {
                match part? {
                    (1, Wire::Bytes(text)) => key = string(text),
                    (2, wire) => item = Some(value(of, &wire, depth, field)?),
                    _ => {}
                }
            }
            let entries = match slot {
                Some(Node::Object(entries)) => entries,
                slot => match slot.insert(Node::Object(Vec::new())) {
                    Node::Object(entries) => entries,
                    _ => return Ok(()),
                },
            };
            // Of a key named twice the last counts, as in the reference's map.
            entries.retain(|(name, _)| *name != key);
            entries.push((key.into(), item.unwrap_or(Node::Null)));
        }
        (kind, wire) => *slot = Some(value(kind, wire, depth, field)?),
    }
    Ok(())
}

fn push(slot: &mut Option<Node<'static>>, item: Node<'static>) {
    match slot {
        Some(Node::Array(items)) => items.push(item),
        slot => *slot = Some(Node::Array(vec![item])),
    }
}

#[allow(clippy::cast_possible_wrap, clippy::cast_possible_truncation)]
fn value(kind: &FieldKind, wire: &Wire<'_>, depth: usize, field: &Field) -> Result<Node<'static>, String> {
    Ok(match (kind, wire) {
        (FieldKind::Bool, Wire::Varint(n)) => Node::Bool(*n != 0),
        (FieldKind::Int32, Wire::Varint(n)) => Node::Number((*n as i32).to_string().into()),
        (FieldKind::Int64, Wire::Varint(n)) => Node::Number((*n as i64).to_string().into()),
        (FieldKind::Double, Wire::Fixed64(bits)) => {
            let number = f64::from_bits(*bits);
            Node::Number(if number.is_finite() { format!("{number:?}").into() } else { "0".into() })
        }
        (FieldKind::String, Wire::Bytes(text)) => Node::String(string(text).into()),
        (FieldKind::Bytes, Wire::Bytes(bytes)) => Node::String(STANDARD.encode(bytes).into()),
        (FieldKind::Time, Wire::Bytes(message)) => timestamp(message, false)?,
        (FieldKind::MicroTime, Wire::Bytes(message)) => timestamp(message, true)?,
        (FieldKind::Quantity, Wire::Bytes(message)) => {
            Node::String(inner_string(message, 1)?.filter(|s| !s.is_empty()).unwrap_or_else(|| "0".into()).into())
        }
        (FieldKind::IntOrString, Wire::Bytes(message)) => int_or_string(message)?,
        (FieldKind::Any, Wire::Bytes(message)) => any(message)?,
        (FieldKind::Type(of), Wire::Bytes(message)) => struct_node(of.get(), message, depth + 1)?,
        // A map's value that is a list is a message with the list as its first field.
        (FieldKind::List(of), Wire::Bytes(message)) => {
            let mut items = Vec::new();
            for part in Parts(message) {
                if let (1, wire) = part? {
                    items.push(value(of, &wire, depth + 1, field)?);
                }
            }
            Node::Array(items)
        }
        _ => return Err(format!("proto: wrong wireType for field {}", field.name)),
    })
}

fn inner_string(message: &[u8], wanted: u64) -> Result<Option<String>, String> {
    let mut found = None;
    for part in Parts(message) {
        if let (tag, Wire::Bytes(text)) = part?
            && tag == wanted
        {
            found = Some(string(text));
        }
    }
    Ok(found)
}

#[allow(clippy::cast_possible_wrap, clippy::cast_possible_truncation)]
fn timestamp(message: &[u8], micro: bool) -> Result<Node<'static>, String> {
    if message.is_empty() {
        return Ok(Node::Null);
    }
    let (mut seconds, mut nanos) = (0_i64, 0_i32);
    for part in Parts(message) {
        match part? {
            (1, Wire::Varint(n)) => seconds = n as i64,
            (2, Wire::Varint(n)) => nanos = n as i32,
            _ => {}
        }
    }
    let time = Timestamp::new(seconds, if micro { nanos / 1000 * 1000 } else { 0 })
        .map_err(|_| "time is out of range".to_owned())?;
    Ok(Node::String(time::print(time, micro).into()))
}

#[allow(clippy::cast_possible_wrap, clippy::cast_possible_truncation)]
fn int_or_string(message: &[u8]) -> Result<Node<'static>, String> {
    let (mut is_string, mut number, mut text) = (false, 0_i32, String::new());
    for part in Parts(message) {
        match part? {
            (1, Wire::Varint(n)) => is_string = n == 1,
            (2, Wire::Varint(n)) => number = n as i32,
            (3, Wire::Bytes(s)) => text = string(s),
            _ => {}
        }
    }
    Ok(if is_string { Node::String(text.into()) } else { Node::Number(number.to_string().into()) })
}

/// JSON inside protobuf: RawExtension, FieldsV1 and the like hold its bytes in their first field.
fn any(message: &[u8]) -> Result<Node<'static>, String> {
    for part in Parts(message) {
        if let (1, Wire::Bytes(json)) = part? {
            if json.is_empty() || json.starts_with(MAGIC) {
                return Ok(Node::Null);
            }
            return node::parse(json).map(owned);
        }
    }
    Ok(Node::Null)
}

fn owned(node: Node<'_>) -> Node<'static> {
    match node {
        Node::Null => Node::Null,
        Node::Bool(b) => Node::Bool(b),
        Node::Number(text) => Node::Number(text.into_owned().into()),
        Node::String(text) => Node::String(text.into_owned().into()),
        Node::Array(items) => Node::Array(items.into_iter().map(owned).collect()),
        Node::Object(entries) => {
            Node::Object(entries.into_iter().map(|(k, v)| (k.into_owned().into(), owned(v))).collect())
        }
    }
}
