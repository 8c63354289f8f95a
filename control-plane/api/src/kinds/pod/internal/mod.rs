//! A pod's spec the way the reference prints it inside messages: every field of every type, in the
//! order and under the names of its own Go types.

mod types;

use std::fmt::Write;

use serde_json::Value;

use types::Kind::{self, External, Flag, Inline, IntOrString, List, Number, Pointer, Quantity, Struct, Text};
use types::{EPHEMERAL, POD_SPEC, SECURITY, Type};

/// Writes JSON, indented by one space a level, or on one line.
struct Writer<'a> {
    out: String,
    level: usize,
    pretty: bool,
    /// The pod's spec, for fields that the reference keeps elsewhere.
    spec: &'a Value,
}

impl Writer<'_> {
    fn line(&mut self) {
        if self.pretty {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', self.level));
        }
    }

    fn key(&mut self, name: &str, first: &mut bool) {
        if !std::mem::take(first) {
            self.out.push(',');
        }
        self.line();
        let _ = write!(self.out, "\"{name}\":{}", if self.pretty { " " } else { "" });
    }

    fn object(&mut self, of: &Type, value: Option<&Value>) {
        self.out.push('{');
        self.level += 1;
        let mut first = true;
        self.fields(of, value, &mut first);
        self.level -= 1;
        if !first {
            self.line();
        }
        self.out.push('}');
    }

    fn fields(&mut self, of: &Type, value: Option<&Value>, first: &mut bool) {
        for (name, json, kind) in of {
            if let Inline(inner) = kind {
                self.fields(inner, value, first);
                continue;
            }
            let field = match json.strip_prefix('/') {
                Some(outer) => self.spec.get(outer),
                None => value.and_then(|value| value.get(*json)),
            };
            let field = field.filter(|field| !field.is_null());
            // Metadata is inline, too, and leaves out what is empty.
            if name.is_empty() {
                if let (External(keys), Some(field)) = (kind, field) {
                    self.external_fields(keys, field, first);
                }
                continue;
            }
            self.key(name, first);
            self.value(*kind, field);
        }
    }

    fn value(&mut self, kind: Kind, field: Option<&Value>) {
        match (kind, field) {
            (Text, None) => self.out.push_str("\"\""),
            (Quantity, None) => self.out.push_str("\"0\""),
            (Number | IntOrString, None) => self.out.push('0'),
            (Flag, None) => self.out.push_str("false"),
            (Struct(of), field) => self.object(of, field),
            (_, None) => self.out.push_str("null"),
            (Pointer(of), field) => self.object(of, field),
            (List(of), Some(field)) => {
                let list = field.as_array().map(Vec::as_slice).unwrap_or_default();
                self.list(list.iter(), |this, item| this.object(of, Some(item)));
            }
            (External(keys), Some(field)) => {
                self.out.push('{');
                self.level += 1;
                let mut first = true;
                self.external_fields(keys, field, &mut first);
                self.level -= 1;
                if !first {
                    self.line();
                }
                self.out.push('}');
            }
            (_, Some(field)) => self.plain(field),
        }
    }

    fn external_fields(&mut self, keys: &[&str], field: &Value, first: &mut bool) {
        for key in keys {
            if let Some(value) = field.get(*key) {
                self.key(key, first);
                self.plain(value);
            }
        }
    }

    fn list<'v>(&mut self, items: impl Iterator<Item = &'v Value>, write: impl Fn(&mut Self, &'v Value)) {
        self.out.push('[');
        self.level += 1;
        let mut first = true;
        for item in items {
            if !std::mem::take(&mut first) {
                self.out.push(',');
            }
            self.line();
            write(self, item);
        }
        self.level -= 1;
        if !first {
            self.line();
        }
        self.out.push(']');
    }

    fn plain(&mut self, value: &Value) {
        match value {
            Value::Array(list) => self.list(list.iter(), Self::plain),
            Value::Object(map) => {
                self.out.push('{');
                self.level += 1;
                let mut first = true;
                for (key, value) in map {
                    self.key(key, &mut first);
                    self.plain(value);
                }
                self.level -= 1;
                if !first {
                    self.line();
                }
                self.out.push('}');
            }
            other => {
                let _ = write!(self.out, "{other}");
            }
        }
    }
}

fn print(of: &Type, value: Option<&Value>, spec: &Value, pretty: bool) -> String {
    let mut writer = Writer { out: String::new(), level: 0, pretty, spec };
    writer.object(of, value);
    writer.out
}

/// A pod's spec over many lines.
pub fn pod_spec(spec: &Value) -> String {
    print(POD_SPEC, Some(spec), spec, true)
}

/// A container put into a running pod, over many lines.
pub fn ephemeral_container(container: &Value) -> String {
    print(EPHEMERAL, Some(container), &Value::Null, true)
}

/// A container's security context on one line.
pub fn container_security(context: Option<&Value>) -> String {
    print(SECURITY, context, &Value::Null, false)
}
