//! The walk that turns a document into the canonical value of a type: what the reference would print
//! after decoding the document into its Go type.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::node::{Node, number};
use super::time;
use crate::quantity::Quantity;
use crate::schema::{Field, FieldKind, TypeDef};

/// How many strict errors are gathered at most.
const MAX_STRICT: usize = 100;

/// Walks a document. `strict` gets unknown and duplicate fields, where it is asked for.
pub(crate) fn canonical(
    of: &'static TypeDef,
    node: &Node<'_>,
    strict: Option<&mut Vec<String>>,
) -> Result<Value, String> {
    let mut walk = Walk { strict, path: String::new(), fields: Vec::new(), struct_name: "", error: None };
    let value = walk.structure(of, node, None)?;
    match walk.error {
        Some(error) => Err(error),
        None => Ok(Value::Object(value.unwrap_or_else(|| zero_struct(of)))),
    }
}

/// The canonical form of a type's zero value.
pub(crate) fn zero_struct(of: &TypeDef) -> Map<String, Value> {
    let mut map = Map::new();
    for field in of.fields.iter().filter(|f| f.always) {
        map.insert(field.name.to_owned(), zero_field(field));
    }
    map
}

fn zero_field(field: &Field) -> Value {
    if field.pointer { Value::Null } else { zero(&field.kind) }
}

/// How Go prints the zero value.
fn zero(kind: &FieldKind) -> Value {
    match kind {
        FieldKind::Bool => Value::Bool(false),
        FieldKind::Int32 | FieldKind::Int64 | FieldKind::Double | FieldKind::IntOrString => Value::from(0),
        FieldKind::String | FieldKind::Bytes => Value::String(String::new()),
        FieldKind::Quantity => Value::String("0".into()),
        FieldKind::Type(of) => Value::Object(zero_struct(of.get())),
        FieldKind::Time | FieldKind::MicroTime | FieldKind::Any | FieldKind::List(_) | FieldKind::Map(_) => Value::Null,
    }
}

/// Whether `omitempty` leaves the value of a plain field out.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

struct Walk<'s> {
    strict: Option<&'s mut Vec<String>>,
    /// Where we are, as strict errors show it: `spec.containers[0]`.
    path: String,
    /// Where we are, as type errors show it: without indices and map keys.
    fields: Vec<&'static str>,
    struct_name: &'static str,
    /// The first error that does not end the walk at once.
    error: Option<String>,
}

/// As Go prints the type of a field's value.
fn go_type(kind: &FieldKind, scalar: Option<&'static str>) -> Cow<'static, str> {
    match kind {
        FieldKind::Bool => scalar.unwrap_or("bool").into(),
        FieldKind::Int32 => scalar.unwrap_or("int32").into(),
        FieldKind::Int64 => scalar.unwrap_or("int64").into(),
        FieldKind::Double => scalar.unwrap_or("float64").into(),
        FieldKind::String => scalar.unwrap_or("string").into(),
        FieldKind::Bytes => "[]uint8".into(),
        FieldKind::Time => "v1.Time".into(),
        FieldKind::MicroTime => "v1.MicroTime".into(),
        FieldKind::Quantity => "resource.Quantity".into(),
        FieldKind::IntOrString => "intstr.IntOrString".into(),
        FieldKind::Any => "runtime.RawExtension".into(),
        FieldKind::Type(of) => of.get().go_name().into(),
        FieldKind::List(of) => format!("[]{}", go_type(of, scalar)).into(),
        FieldKind::Map(of) => match **of {
            FieldKind::Quantity => "v1.ResourceList".into(),
            FieldKind::List(_) => "v1.ExtraValue".into(),
            _ => format!("map[string]{}", go_type(of, scalar)).into(),
        },
    }
}

impl Walk<'_> {
    /// `value` is what was found: `string`, `number 1.5`.
    fn type_error(&self, value: &str, wanted: &str) -> String {
        if self.fields.is_empty() {
            return format!("json: cannot unmarshal {value} into Go value of type {wanted}");
        }
        let path = self.fields.join(".");
        format!("json: cannot unmarshal {value} into Go struct field {}.{path} of type {wanted}", self.struct_name)
    }

    fn save(&mut self, error: String) {
        self.error.get_or_insert(error);
    }

    fn mismatch(&mut self, node: &Node<'_>, kind: &FieldKind, scalar: Option<&'static str>) {
        let error = self.type_error(node.kind(), &go_type(kind, scalar));
        self.save(error);
    }

    fn strict(&mut self, message: &str, name: &str) {
        let Some(strict) = self.strict.as_deref_mut() else {
            return;
        };
        let full = if self.path.is_empty() { Cow::Borrowed(name) } else { format!("{}.{name}", self.path).into() };
        let text = format!("{message} {}", quote(&full));
        if strict.len() < MAX_STRICT && !strict.contains(&text) {
            strict.push(text);
        }
    }

    fn push(&mut self, key: &str) -> usize {
        let before = self.path.len();
        if self.strict.is_some() {
            if before > 0 {
                self.path.push('.');
            }
            self.path.push_str(key);
        }
        before
    }

    /// `None`: null. `into` is what an earlier duplicate of the field left.
    fn structure(
        &mut self,
        of: &'static TypeDef,
        node: &Node<'_>,
        into: Option<Map<String, Value>>,
    ) -> Result<Option<Map<String, Value>>, String> {
        let entries = match node {
            Node::Object(entries) => entries,
            Node::Null => return Ok(into),
            other => {
                let error = self.type_error(other.kind(), of.go_name());
                self.save(error);
                return Ok(into);
            }
        };
        let mut map = into.unwrap_or_default();
        let mut seen: u128 = 0;
        let outer = self.struct_name;
        for (key, node) in entries {
            let Ok(index) = of.fields.binary_search_by(|f| f.name.cmp(key)) else {
                self.strict("unknown field", key);
                continue;
            };
            let Some(field) = of.fields.get(index) else {
                continue;
            };
            let bit = 1_u128.checked_shl(u32::try_from(index).unwrap_or(u32::MAX)).unwrap_or(0);
            let duplicate = seen & bit != 0;
            if duplicate {
                self.strict("duplicate field", field.name);
            }
            seen |= bit;
            let before = self.push(field.name);
            self.fields.push(field.name);
            self.struct_name = of.short_name();
            let old = if duplicate { map.remove(field.name) } else { None };
            let value = self.value(&field.kind, field.go_type, node, old)?;
            self.struct_name = outer;
            self.fields.pop();
            self.path.truncate(before);
            store(&mut map, field, value);
        }
        for field in of.fields.iter().filter(|f| f.always) {
            if !map.contains_key(field.name) {
                map.insert(field.name.to_owned(), zero_field(field));
            }
        }
        Ok(Some(map))
    }

    /// `None`: null or of the wrong type.
    fn value(
        &mut self,
        kind: &FieldKind,
        scalar: Option<&'static str>,
        node: &Node<'_>,
        old: Option<Value>,
    ) -> Result<Option<Value>, String> {
        match (kind, node) {
            (FieldKind::Any, Node::Null) => Ok(None),
            (FieldKind::Any, node) => Ok(Some(node.to_value())),
            (FieldKind::Quantity, Node::Null) => Ok(None),
            (FieldKind::Quantity, node) => quantity(node).map(Some),
            (FieldKind::IntOrString, Node::Null) => Ok(Some(Value::from(0))),
            (FieldKind::IntOrString, node) => self.int_or_string(node).map(Some),
            (FieldKind::Time, node) => self.time(node, false),
            (FieldKind::MicroTime, node) => self.time(node, true),
            (_, Node::Null) => Ok(old),
            (FieldKind::Type(of), node) => {
                let old = match old {
                    Some(Value::Object(map)) => Some(map),
                    _ => None,
                };
                Ok(self.structure(of.get(), node, old)?.map(Value::Object))
            }
            (FieldKind::List(of), Node::Array(items)) => {
                let mut list = Vec::with_capacity(items.len());
                for (i, item) in items.iter().enumerate() {
                    let before = self.path.len();
                    if self.strict.is_some() {
                        self.path.push_str(&format!("[{i}]"));
                    }
                    list.push(self.value(of, scalar, item, None)?.unwrap_or_else(|| zero(of)));
                    self.path.truncate(before);
                }
                Ok(Some(Value::Array(list)))
            }
            (FieldKind::Map(of), Node::Object(entries)) => {
                let duplicate_before = old.is_some();
                let mut map = match old {
                    Some(Value::Object(map)) => map,
                    _ => Map::new(),
                };
                let mut seen = duplicate_before.then(std::collections::BTreeSet::new);
                for (key, item) in entries {
                    let again = match &mut seen {
                        Some(seen) => !seen.insert(key.as_ref()),
                        None => map.contains_key(key.as_ref()),
                    };
                    if again {
                        self.strict("duplicate field", key);
                    }
                    let before = self.push(key);
                    let value = self.value(of, scalar, item, None)?.unwrap_or_else(|| zero(of));
                    self.path.truncate(before);
                    map.insert(key.to_string(), value);
                }
                Ok(Some(Value::Object(map)))
            }
            (kind, node) => Ok(self.scalar(kind, scalar, node)),
        }
    }

    fn scalar(&mut self, kind: &FieldKind, scalar: Option<&'static str>, node: &Node<'_>) -> Option<Value> {
        match (kind, node) {
            (FieldKind::String, Node::String(s)) => return Some(Value::String(s.to_string())),
            (FieldKind::Bool, Node::Bool(b)) => return Some(Value::Bool(*b)),
            (FieldKind::Bytes, Node::String(s)) => match base64(s) {
                Ok(text) => return Some(Value::String(text)),
                Err(error) => self.save(error),
            },
            (FieldKind::Int32 | FieldKind::Int64 | FieldKind::Double, Node::Number(text)) => {
                let value = match kind {
                    FieldKind::Int32 => text.parse::<i32>().ok().map(Value::from),
                    FieldKind::Int64 => text.parse::<i64>().ok().map(Value::from),
                    _ => number(text).map(Value::Number),
                };
                if value.is_some() {
                    return value;
                }
                let error = self.type_error(&format!("number {text}"), &go_type(kind, scalar));
                self.save(error);
            }
            (kind, node) => self.mismatch(node, kind, scalar),
        }
        None
    }

    fn time(&self, node: &Node<'_>, micro: bool) -> Result<Option<Value>, String> {
        match node {
            Node::Null => Ok(None),
            Node::String(text) => Ok(time::parse(text, micro)?.map(|t| Value::String(time::print(t, micro)))),
            other => Err(self.type_error(other.kind(), "string")),
        }
    }

    fn int_or_string(&self, node: &Node<'_>) -> Result<Value, String> {
        match node {
            Node::String(text) => Ok(Value::String(text.to_string())),
            Node::Number(text) => match text.parse::<i32>() {
                Ok(number) => Ok(Value::from(number)),
                Err(_) => Err(self.type_error(&format!("number {text}"), "int32")),
            },
            other => Err(self.type_error(other.kind(), "int32")),
        }
    }
}

/// Puts a field's value where it belongs, or leaves it out as the encoding would.
fn store(map: &mut Map<String, Value>, field: &Field, value: Option<Value>) {
    let value = match value {
        // Storage does not tell an empty list or map from none.
        Some(Value::Array(items)) if items.is_empty() && field.always => Value::Null,
        Some(Value::Object(entries))
            if entries.is_empty() && field.always && matches!(field.kind, FieldKind::Map(_)) =>
        {
            Value::Null
        }
        Some(value) => value,
        None if field.always => zero_field(field),
        None => {
            map.remove(field.name);
            return;
        }
    };
    let keep = field.always || field.pointer || !is_zero(&value);
    if keep {
        map.insert(field.name.to_owned(), value);
    } else {
        map.remove(field.name);
    }
}

fn quantity(node: &Node<'_>) -> Result<Value, String> {
    let text = match node {
        Node::String(text) => text.trim(),
        Node::Number(text) => text,
        Node::Bool(true) => "true",
        Node::Bool(false) => "false",
        _ => "{}",
    };
    Quantity::parse(text).map(|q| Value::String(q.to_string())).map_err(|e| e.to_string())
}

/// Canonical base64, or where the text stops being base64.
fn base64(text: &str) -> Result<String, String> {
    let bytes: Vec<u8> = text.bytes().filter(|b| !matches!(b, b'\r' | b'\n')).collect();
    let engine = {
        use base64::alphabet;
        use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
        // Trailing bits are not looked at, padding is required.
        let config = GeneralPurposeConfig::new()
            .with_decode_allow_trailing_bits(true)
            .with_decode_padding_mode(DecodePaddingMode::RequireCanonical);
        GeneralPurpose::new(&alphabet::STANDARD, config)
    };
    match engine.decode(&bytes) {
        Ok(decoded) => Ok(STANDARD.encode(decoded)),
        Err(_) => Err(format!("illegal base64 data at input byte {}", corrupt(text.as_bytes()))),
    }
}

/// The position that Go's decoder reports.
fn corrupt(text: &[u8]) -> usize {
    let mut quantum = 0;
    let mut at = 0;
    let next = |mut at: usize| {
        while matches!(text.get(at), Some(b'\r' | b'\n')) {
            at += 1;
        }
        at
    };
    loop {
        at = next(at);
        match text.get(at) {
            // The text ends within a group of four: reported at the group's beginning.
            None => return at - quantum,
            Some(b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'+' | b'/') => {
                at += 1;
                quantum = (quantum + 1) % 4;
            }
            Some(b'=') => {
                let pad = at;
                at += 1;
                if quantum < 2 {
                    return pad;
                }
                if quantum == 2 {
                    at = next(at);
                    if text.get(at) != Some(&b'=') {
                        return if at >= text.len() { text.len() } else { at - 1 };
                    }
                    at += 1;
                }
                return next(at);
            }
            Some(_) => return at,
        }
    }
}

/// A text in quotes, as Go's `%q` prints it.
fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for letter in text.chars() {
        match letter {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
