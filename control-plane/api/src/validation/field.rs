//! A cursor over an object that knows its path, and the words of field errors.

use std::cell::OnceCell;
use std::fmt;
use std::rc::Rc;

use serde_json::Value;

use crate::error::{FieldErrors, FieldReason};

/// Where a field is: `spec.containers[0].name`. It takes memory once something below it is looked at: most
/// fields are leaves.
#[derive(Clone, Debug, Default)]
pub struct Path(Option<Step>);

#[derive(Clone, Debug)]
struct Step {
    parent: Option<Rc<Step>>,
    segment: Segment,
    /// This step, as those below it share it.
    shared: OnceCell<Rc<Step>>,
}

#[derive(Clone, Debug)]
enum Segment {
    Name(&'static str),
    Owned(Rc<str>),
    Index(usize),
    Key(Rc<str>),
}

impl Step {
    fn share(&self) -> Rc<Self> {
        self.shared.get_or_init(|| Rc::new(Self { shared: OnceCell::new(), ..self.clone() })).clone()
    }
}

impl Path {
    pub fn root() -> Self {
        Self(None)
    }

    pub fn new(name: &'static str) -> Self {
        Self::root().child(name)
    }

    fn step(&self, segment: Segment) -> Self {
        Self(Some(Step { parent: self.0.as_ref().map(Step::share), segment, shared: OnceCell::new() }))
    }

    /// A field below; several with dots between.
    pub fn child(&self, name: &'static str) -> Self {
        self.step(Segment::Name(name))
    }

    /// A field whose name comes from the object.
    pub fn named(&self, name: &str) -> Self {
        self.step(Segment::Owned(name.into()))
    }

    pub fn index(&self, index: usize) -> Self {
        self.step(Segment::Index(index))
    }

    /// An entry of a map: `data[key]`.
    pub fn key(&self, key: &str) -> Self {
        self.step(Segment::Key(key.into()))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |step| step.fmt(f))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut dot = "";
        if let Some(parent) = &self.parent {
            parent.fmt(f)?;
            dot = ".";
        }
        match &self.segment {
            Segment::Name("") => f.write_str("[]"),
            Segment::Name(name) => write!(f, "{dot}{name}"),
            Segment::Owned(name) => write!(f, "{dot}{name}"),
            Segment::Index(index) => write!(f, "[{index}]"),
            Segment::Key(key) => write!(f, "[{key}]"),
        }
    }
}

/// A value, or the absence of one, at a path.
#[derive(Clone, Debug)]
pub struct Field<'v> {
    value: Option<&'v Value>,
    path: Path,
}

impl<'v> Field<'v> {
    pub fn root(value: &'v Value) -> Self {
        Self { value: Some(value), path: Path::root() }
    }

    /// A part of an object at a path of its own.
    pub fn at(value: Option<&'v Value>, path: Path) -> Self {
        Self { value: value.filter(|value| !value.is_null()), path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn value(&self) -> Option<&'v Value> {
        self.value
    }

    /// The same value under another path.
    pub fn with_path(&self, path: Path) -> Self {
        Self { value: self.value, path }
    }

    pub fn child(&self, name: &'static str) -> Self {
        let value = self.value.and_then(|value| value.get(name));
        Self::at(value, self.path.child(name))
    }

    /// A field of a field of it.
    pub fn below(&self, names: &[&'static str]) -> Self {
        names.iter().fold(self.clone(), |field, name| field.child(name))
    }

    pub fn is_set(&self) -> bool {
        self.value.is_some()
    }

    /// Absent or the zero value of its type.
    pub fn is_empty(&self) -> bool {
        match self.value {
            None => true,
            Some(Value::String(text)) => text.is_empty(),
            Some(Value::Array(list)) => list.is_empty(),
            Some(Value::Object(map)) => map.is_empty(),
            Some(Value::Number(number)) => number.as_f64() == Some(0.0),
            Some(Value::Bool(flag)) => !flag,
            Some(Value::Null) => true,
        }
    }

    pub fn len(&self) -> usize {
        match self.value {
            Some(Value::Array(list)) => list.len(),
            Some(Value::Object(map)) => map.len(),
            Some(Value::String(text)) => text.len(),
            _ => 0,
        }
    }

    /// Text, empty where absent.
    pub fn str(&self) -> &'v str {
        self.value.and_then(Value::as_str).unwrap_or_default()
    }

    pub fn opt_str(&self) -> Option<&'v str> {
        self.value.and_then(Value::as_str)
    }

    /// A number, 0 where absent.
    pub fn int(&self) -> i64 {
        self.opt_int().unwrap_or_default()
    }

    pub fn opt_int(&self) -> Option<i64> {
        self.value.and_then(Value::as_i64)
    }

    pub fn bool(&self) -> bool {
        self.opt_bool().unwrap_or_default()
    }

    pub fn opt_bool(&self) -> Option<bool> {
        self.value.and_then(Value::as_bool)
    }

    /// The elements of a list.
    pub fn items(&self) -> impl DoubleEndedIterator<Item = Field<'v>> + ExactSizeIterator + use<'v> {
        let list = self.value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let path = self.path.clone();
        list.iter().enumerate().map(move |(i, value)| Field::at(Some(value), path.index(i)))
    }

    /// The entries of a map, each at `path[key]`.
    pub fn entries(&self) -> impl Iterator<Item = (&'v str, Field<'v>)> + use<'v> {
        let path = self.path.clone();
        let map = self.value.and_then(Value::as_object);
        map.into_iter().flatten().map(move |(key, value)| (key.as_str(), Field::at(Some(value), path.key(key))))
    }

    /// The strings of a list.
    pub fn strings(&self) -> impl Iterator<Item = &'v str> + use<'v> {
        self.value.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
    }
}

/// Text in quotes, as Go prints it.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0b' => out.push_str("\\v"),
            '\x0c' => out.push_str("\\f"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => out.push_str(&format!("\\x{:02x}", c as u32)),
            c if c.is_control() || (c.is_whitespace() && c != ' ') || c == '\u{feff}' => {
                out.push_str(&format!("\\u{:04x}", c as u32));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A rejected value as messages show it: text in quotes, else as JSON.
fn shown(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "null".to_owned(),
        Some(Value::String(text)) => quote(text),
        Some(other) => other.to_string(),
    }
}

fn with_detail(words: String, detail: &str) -> String {
    if detail.is_empty() { words } else { format!("{words}: {detail}") }
}

impl FieldErrors {
    pub fn required(&mut self, path: &Path, detail: &str) {
        self.push(FieldReason::Required, path.to_string(), with_detail("Required value".to_owned(), detail));
    }

    pub fn forbidden(&mut self, path: &Path, detail: impl AsRef<str>) {
        self.push(FieldReason::Forbidden, path.to_string(), with_detail("Forbidden".to_owned(), detail.as_ref()));
    }

    /// The field's own value is wrong.
    pub fn invalid(&mut self, field: &Field<'_>, detail: impl AsRef<str>) {
        self.invalid_shown(field.path(), &shown(field.value()), detail);
    }

    /// A text that stands for the value is wrong.
    pub fn invalid_str(&mut self, path: &Path, text: &str, detail: impl AsRef<str>) {
        self.invalid_shown(path, &quote(text), detail);
    }

    pub fn invalid_int(&mut self, path: &Path, number: i64, detail: impl AsRef<str>) {
        self.invalid_shown(path, &number.to_string(), detail);
    }

    /// The value is given as it shall be printed.
    pub fn invalid_shown(&mut self, path: &Path, value: &str, detail: impl AsRef<str>) {
        let message = with_detail(format!("Invalid value: {value}"), detail.as_ref());
        self.push(FieldReason::Invalid, path.to_string(), message);
    }

    /// One error a message about a text.
    pub fn invalid_all(&mut self, path: &Path, text: &str, details: Vec<String>) {
        for detail in details {
            self.invalid_str(path, text, detail);
        }
    }

    pub fn not_supported(&mut self, path: &Path, text: &str, supported: &[&str]) {
        self.not_supported_shown(path, &quote(text), supported);
    }

    pub fn not_supported_shown(&mut self, path: &Path, value: &str, supported: &[&str]) {
        let list: Vec<String> = supported.iter().map(|text| quote(text)).collect();
        let message = format!("Unsupported value: {value}: supported values: {}", list.join(", "));
        self.push(FieldReason::NotSupported, path.to_string(), message);
    }

    pub fn duplicate(&mut self, path: &Path, text: &str) {
        self.duplicate_shown(path, &quote(text));
    }

    pub fn duplicate_shown(&mut self, path: &Path, value: &str) {
        self.push(FieldReason::Duplicate, path.to_string(), format!("Duplicate value: {value}"));
    }

    pub fn not_found(&mut self, path: &Path, text: &str) {
        self.push(FieldReason::NotFound, path.to_string(), format!("Not found: {}", quote(text)));
    }

    pub fn too_long(&mut self, path: &Path, limit: usize) {
        let bytes = if limit == 1 { "byte" } else { "bytes" };
        let message = format!("Too long: may not be more than {limit} {bytes}");
        self.push(FieldReason::TooLong, path.to_string(), message);
    }

    pub fn too_many(&mut self, path: &Path, actual: usize, limit: usize) {
        let items = if limit == 1 { "item" } else { "items" };
        let message = format!("Too many: {actual}: must have at most {limit} {items}");
        self.push(FieldReason::TooMany, path.to_string(), message);
    }

    pub fn internal(&mut self, path: &Path, detail: &str) {
        self.push(FieldReason::InternalError, path.to_string(), format!("Internal error: {detail}"));
    }

    pub fn extend(&mut self, other: FieldErrors) {
        self.0.extend(other.0);
    }
}

/// A value as messages show it, in the field order of a Go struct: the order of `keys` first.
pub fn ordered(value: Option<&Value>, keys: &[&str]) -> String {
    let Some(Value::Object(map)) = value else {
        return shown(value);
    };
    let known = keys.iter().filter_map(|key| map.get_key_value(*key));
    let rest = map.iter().filter(|(key, _)| !keys.contains(&key.as_str()));
    let parts: Vec<String> =
        known.chain(rest).map(|(key, value)| format!("{}:{value}", Value::from(key.as_str()))).collect();
    format!("{{{}}}", parts.join(","))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_and_values() {
        let value = json!({"spec": {"list": [{"name": "x"}], "map": {"a/b": 1}, "none": null}});
        let spec = Field::root(&value).child("spec");
        let paths: Vec<String> = spec.child("list").items().map(|item| item.child("name").path().to_string()).collect();
        assert_eq!(paths, ["spec.list[0].name"]);
        let paths: Vec<String> = spec.child("map").entries().map(|(_, field)| field.path().to_string()).collect();
        assert_eq!(paths, ["spec.map[a/b]"]);
        assert!(!spec.child("none").is_set());
        assert_eq!(Path::new("").to_string(), "[]");
    }

    #[test]
    fn words() {
        let value = json!({"a": [1], "b": null});
        let root = Field::root(&value);
        let mut errors = FieldErrors::default();
        errors.invalid(&root.child("a"), "no");
        errors.invalid(&root.child("b"), "no");
        errors.too_many(root.path(), 2, 1);
        let messages: Vec<&str> = errors.0.iter().map(|error| error.message.as_str()).collect();
        assert_eq!(messages[0], "Invalid value: [1]: no");
        assert_eq!(messages[1], "Invalid value: null: no");
        assert_eq!(messages[2], "Too many: 2: must have at most 1 item");
        assert_eq!(quote("a\"\n\u{1}ü"), "\"a\\\"\\n\\x01ü\"");
    }
}
