//! YAML as JSON, the way sigs.k8s.io/yaml converts it: YAML 1.1 scalars, keys turned into strings.
//! The events come from a port of libyaml, of which the reference's parser is another: the texts of
//! syntax errors are the same.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use base64::Engine;
use libyaml_safer::{Error as YamlError, ErrorKind, EventData, Parser, ScalarStyle};
use serde_json::{Map, Value};

use super::node::MAX_DEPTH;

/// Nodes that a document may have after its aliases are followed, for each node it is written with.
const MAX_EXPANSION: usize = 100;
const FREE_NODES: usize = 100_000;

/// A converted document.
pub(crate) struct Document {
    pub(crate) value: Value,
    /// Keys that a mapping names twice, worded as strict decoding does.
    pub(crate) duplicates: Vec<String>,
}

/// Converts the first document; none is null.
pub(crate) fn convert(body: &[u8]) -> Result<Document, String> {
    // The port asserts some of its invariants; a body must not be able to end the process.
    std::panic::catch_unwind(|| read(body)).unwrap_or_else(|_| Err("yaml: invalid document".into()))
}

fn read(body: &[u8]) -> Result<Document, String> {
    let mut input = body;
    let mut parser = Parser::new();
    parser.set_input_string(&mut input);
    let mut reader = Reader { parser, anchors: BTreeMap::new(), duplicates: Vec::new(), written: 0, nodes: 0 };
    loop {
        let (data, line) = reader.next()?;
        match data {
            EventData::StreamStart { .. } | EventData::DocumentStart { .. } => {}
            EventData::StreamEnd => {
                return Ok(Document { value: Value::Null, duplicates: Vec::new() });
            }
            data => {
                let item = reader.item(data, line, 0)?;
                let value = json(&item)?;
                // The rest of the first document, so that its faults are found.
                while !matches!(reader.next()?.0, EventData::DocumentEnd { .. } | EventData::StreamEnd) {}
                let duplicates = match reader.duplicates.len() {
                    0 => Vec::new(),
                    _ => vec![format!("yaml: unmarshal errors:\n  {}", reader.duplicates.join("\n  "))],
                };
                return Ok(Document { value, duplicates });
            }
        }
    }
}

fn syntax(error: &YamlError) -> String {
    let mark = [error.context_mark(), error.problem_mark()].into_iter().flatten().find(|m| m.line != 0);
    let scanner = u64::from(error.kind() == ErrorKind::Scanner);
    let place = mark.map_or_else(String::new, |m| format!("line {}: ", m.line + scanner));
    let problem = match error.problem() {
        "" => "unknown problem parsing YAML content",
        problem => problem,
    };
    format!("yaml: {place}{problem}")
}

/// A YAML node with its scalars resolved.
#[derive(Clone, Debug)]
enum Item {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Float(f64),
    String(String),
    List(Vec<Item>),
    Map(Vec<(Item, Item)>),
}

struct Reader<'r, 'b> {
    parser: Parser<&'r mut &'b [u8]>,
    anchors: BTreeMap<String, Item>,
    duplicates: Vec<String>,
    /// Nodes as written, and with aliases followed.
    written: usize,
    nodes: usize,
}

impl Reader<'_, '_> {
    fn next(&mut self) -> Result<(EventData, u64), String> {
        let event = self.parser.parse().map_err(|e| syntax(&e))?;
        Ok((event.data, event.start_mark.line + 1))
    }

    fn count(&mut self, nodes: usize) -> Result<(), String> {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes > FREE_NODES && self.nodes / MAX_EXPANSION > self.written {
            return Err("yaml: document contains excessive aliasing".into());
        }
        Ok(())
    }

    fn item(&mut self, data: EventData, line: u64, depth: usize) -> Result<Item, String> {
        if depth > MAX_DEPTH {
            return Err("yaml: exceeded max depth".into());
        }
        self.written += 1;
        self.count(1)?;
        let (anchor, item) = match data {
            EventData::Alias { anchor } => {
                let Some(item) = self.anchors.get(&anchor).cloned() else {
                    return Err(format!("yaml: unknown anchor '{anchor}' referenced"));
                };
                self.count(size(&item))?;
                if depth + height(&item) > MAX_DEPTH {
                    return Err("yaml: exceeded max depth".into());
                }
                (None, item)
            }
            EventData::Scalar { anchor, tag, value, style, .. } => {
                let plain = style == ScalarStyle::Plain;
                (anchor, scalar(value, tag.as_deref(), plain).map_err(|e| format!("yaml: line {line}: {e}"))?)
            }
            EventData::SequenceStart { anchor, .. } => {
                let mut items = Vec::new();
                loop {
                    match self.next()? {
                        (EventData::SequenceEnd, _) => break,
                        (data, line) => items.push(self.item(data, line, depth + 1)?),
                    }
                }
                (anchor, Item::List(items))
            }
            EventData::MappingStart { anchor, .. } => (anchor, self.mapping(depth)?),
            _ => (None, Item::Null),
        };
        if let Some(anchor) = anchor {
            self.anchors.insert(anchor, item.clone());
        }
        Ok(item)
    }

    fn mapping(&mut self, depth: usize) -> Result<Item, String> {
        let mut entries: Vec<(Item, Item)> = Vec::new();
        let mut merged: Vec<(Item, Item)> = Vec::new();
        let mut seen = BTreeSet::new();
        loop {
            let (data, line) = match self.next()? {
                (EventData::MappingEnd, _) => break,
                event => event,
            };
            let merge = matches!(&data, EventData::Scalar { value, style: ScalarStyle::Plain, tag, .. }
                if value == "<<" && tag.as_deref().is_none_or(|t| t == "tag:yaml.org,2002:merge"));
            let key = self.item(data, line, depth + 1)?;
            let (data, value_line) = self.next()?;
            let value = self.item(data, value_line, depth + 1)?;
            if merge {
                merge_into(&mut merged, value)?;
                continue;
            }
            let name = key_text(&key)?;
            if !seen.insert(name.clone()) {
                self.duplicates.push(format!("line {line}: key {} already set in map", key_shown(&key, &name)));
                entries.retain(|(k, _)| key_text(k).ok().as_ref() != Some(&name));
            }
            entries.push((key, value));
        }
        for (key, value) in merged {
            if seen.insert(key_text(&key)?) {
                entries.push((key, value));
            }
        }
        Ok(Item::Map(entries))
    }
}

fn merge_into(merged: &mut Vec<(Item, Item)>, value: Item) -> Result<(), String> {
    match value {
        Item::Map(entries) => merged.extend(entries),
        Item::List(items) => {
            for item in items {
                match item {
                    Item::Map(entries) => merged.extend(entries),
                    _ => {
                        return Err("yaml: map merge requires map or sequence of maps as the value".into());
                    }
                }
            }
        }
        _ => return Err("yaml: map merge requires map or sequence of maps as the value".into()),
    }
    Ok(())
}

fn size(item: &Item) -> usize {
    match item {
        Item::List(items) => 1 + items.iter().map(size).sum::<usize>(),
        Item::Map(entries) => 1 + entries.iter().map(|(k, v)| size(k) + size(v)).sum::<usize>(),
        _ => 1,
    }
}

fn height(item: &Item) -> usize {
    match item {
        Item::List(items) => 1 + items.iter().map(height).max().unwrap_or(0),
        Item::Map(entries) => 1 + entries.iter().map(|(_, v)| height(v)).max().unwrap_or(0),
        _ => 0,
    }
}

/// A key as JSON has it.
fn key_text(key: &Item) -> Result<String, String> {
    Ok(match key {
        Item::String(text) => text.clone(),
        Item::Int(n) => n.to_string(),
        Item::Uint(n) => n.to_string(),
        Item::Float(n) => float_text(*n),
        Item::Bool(b) => b.to_string(),
        other => {
            let kind = match other {
                Item::Null => "<nil>",
                Item::List(_) => "[]interface {}",
                _ => "map[interface {}]interface {}",
            };
            return Err(format!("unsupported map key of type: {kind}, key: , value: "));
        }
    })
}

fn key_shown(key: &Item, name: &str) -> String {
    match key {
        Item::String(_) => format!("\"{name}\""),
        _ => name.to_owned(),
    }
}

fn float_text(n: f64) -> String {
    if n.is_infinite() {
        return if n > 0.0 { ".inf".into() } else { "-.inf".into() };
    }
    if n.is_nan() {
        return ".nan".into();
    }
    format!("{n}")
}

fn json(item: &Item) -> Result<Value, String> {
    Ok(match item {
        Item::Null => Value::Null,
        Item::Bool(b) => Value::Bool(*b),
        Item::Int(n) => Value::from(*n),
        Item::Uint(n) => Value::from(*n),
        Item::Float(n) => match whole(*n) {
            Some(n) => Value::from(n),
            None => serde_json::Number::from_f64(*n)
                .map(Value::Number)
                .ok_or_else(|| format!("json: unsupported value: {}", float_shown(*n)))?,
        },
        Item::String(text) => Value::String(text.clone()),
        Item::List(items) => Value::Array(items.iter().map(json).collect::<Result<_, _>>()?),
        Item::Map(entries) => {
            let mut map = Map::new();
            for (key, value) in entries {
                map.insert(key_text(key)?, json(value)?);
            }
            Value::Object(map)
        }
    })
}

fn float_shown(n: f64) -> &'static str {
    if n.is_nan() {
        "NaN"
    } else if n > 0.0 {
        "+Inf"
    } else {
        "-Inf"
    }
}

/// The whole number that a float's JSON text shows: Go prints 1.0 as 1.
#[allow(clippy::cast_possible_truncation)]
fn whole(n: f64) -> Option<i64> {
    (n.fract() == 0.0 && n.abs() < 1e15).then_some(n as i64)
}

/// Resolves a scalar as YAML 1.1 does.
fn scalar(text: String, tag: Option<&str>, plain: bool) -> Result<Item, String> {
    let short = tag.map(|t| t.strip_prefix("tag:yaml.org,2002:").unwrap_or(t));
    match short {
        None if plain => Ok(resolve(text)),
        Some("null") => Ok(Item::Null),
        Some("binary") => {
            let cleaned: String = text.split_ascii_whitespace().collect();
            let bytes = base64::engine::general_purpose::STANDARD
                .decode(cleaned)
                .map_err(|_| "!!binary value contains invalid base64 data".to_owned())?;
            Ok(Item::String(String::from_utf8_lossy(&bytes).into_owned()))
        }
        Some(kind @ ("int" | "float" | "bool")) => match (kind, resolve(text.clone())) {
            ("float", Item::Int(n)) => {
                #[allow(clippy::cast_precision_loss)]
                let n = n as f64;
                Ok(Item::Float(n))
            }
            ("int", item @ (Item::Int(_) | Item::Uint(_)))
            | ("float", item @ Item::Float(_))
            | ("bool", item @ Item::Bool(_)) => Ok(item),
            _ => Err(format!("cannot decode !!str `{text}` as a !!{kind}")),
        },
        _ => Ok(Item::String(text)),
    }
}

fn resolve(text: String) -> Item {
    match text.as_str() {
        "" | "~" | "null" | "Null" | "NULL" => return Item::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Item::Bool(true);
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Item::Bool(false);
        }
        ".nan" | ".NaN" | ".NAN" => return Item::Float(f64::NAN),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => {
            return Item::Float(f64::INFINITY);
        }
        "-.inf" | "-.Inf" | "-.INF" => return Item::Float(f64::NEG_INFINITY),
        _ => {}
    }
    if !text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) {
        return Item::String(text);
    }
    number(&text.replace('_', "")).unwrap_or(Item::String(text))
}

fn number(text: &str) -> Option<Item> {
    let (negative, unsigned) = match text.strip_prefix(['-', '+']) {
        Some(rest) => (text.starts_with('-'), rest),
        None => (false, text),
    };
    if unsigned.starts_with(['-', '+']) {
        return None;
    }
    // Go reads 0x, 0o, 0b and a leading 0 as bases of their own.
    let lower = unsigned.to_ascii_lowercase();
    let (radix, digits) = match lower.split_at_checked(2) {
        Some(("0x", digits)) => (16, digits),
        Some(("0o", digits)) => (8, digits),
        Some(("0b", digits)) => (2, digits),
        _ if lower.len() > 1 && lower.starts_with('0') && lower.bytes().all(|b| b.is_ascii_digit()) => {
            (8, lower.as_str())
        }
        _ => (10, lower.as_str()),
    };
    if !digits.starts_with(['-', '+'])
        && let Ok(magnitude) = u64::from_str_radix(digits, radix)
    {
        return match i64::try_from(magnitude) {
            Ok(n) => Some(Item::Int(if negative { -n } else { n })),
            Err(_) if !negative => Some(Item::Uint(magnitude)),
            Err(_) if magnitude == 1 << 63 => Some(Item::Int(i64::MIN)),
            Err(_) => text.parse().ok().map(Item::Float),
        };
    }
    let float = unsigned.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'))
        && unsigned.bytes().any(|b| b.is_ascii_digit());
    if float { text.parse::<f64>().ok().filter(|n| n.is_finite()).map(Item::Float) } else { None }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn value(text: &str) -> Value {
        convert(text.as_bytes()).unwrap().value
    }

    #[test]
    fn converts_as_yaml_1_1() {
        assert_eq!(
            value(
                "a: y\nb: 'y'\nc: 010\nd: 0x1f\ne: 1.0\nf: 1e3\ng: ~\nh: 1_000\ni: 2024-01-01\nj: off\nk: -5\nl: +1\n"
            ),
            json!({"a": true, "b": "y", "c": 8, "d": 31, "e": 1, "f": 1000, "g": null, "h": 1000, "i": "2024-01-01",
                   "j": false, "k": -5, "l": 1})
        );
        assert_eq!(value("1: a\ntrue: b\n"), json!({"1": "a", "true": "b"}));
        assert_eq!(value(""), Value::Null);
        assert_eq!(value("# nothing\n"), Value::Null);
        assert_eq!(
            value("a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}\n"),
            json!({"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 1, "e": 2}})
        );
        assert_eq!(value("a: |\n  x\n  y\n"), json!({"a": "x\ny\n"}));
        assert_eq!(value("{\"a\": [1, \"2\", null]}"), json!({"a": [1, "2", null]}));
        assert_eq!(value("a: 1.2.3\nb: 1.1\nc: 08\nd: 12e\n"), json!({"a": "1.2.3", "b": 1.1, "c": 8, "d": "12e"}));
        assert_eq!(value("a: 1\n---\nb: 2\n"), json!({"a": 1}));
    }

    #[test]
    fn says_what_is_wrong() {
        for (text, error) in [
            ("a: [b\n", "yaml: line 1: did not find expected ',' or ']'"),
            ("a: b: c\n", "yaml: mapping values are not allowed in this context"),
            ("a: 1\n b: 2\n", "yaml: line 2: mapping values are not allowed in this context"),
            ("a: *x\n", "yaml: unknown anchor 'x' referenced"),
            ("a:\n\t- b\n", "yaml: line 2: found character that cannot start any token"),
            // The port panics on this one.
            ("{!,", "yaml: invalid document"),
        ] {
            assert_eq!(convert(text.as_bytes()).err().unwrap(), error, "{text}");
        }
    }

    #[test]
    fn finds_duplicates() {
        let document = convert(b"data:\n  a: b\n  a: c\n").unwrap();
        assert_eq!(document.value, json!({"data": {"a": "c"}}));
        assert_eq!(document.duplicates, ["yaml: unmarshal errors:\n  line 3: key \"a\" already set in map"]);
    }

    #[test]
    fn aliases_cannot_fill_the_memory() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for i in 1..12 {
            let before = format!("*a{}", i - 1);
            text.push_str(&format!("a{i}: &a{i} [{}]\n", [before.as_str(); 10].join(", ")));
        }
        assert_eq!(convert(text.as_bytes()).err().unwrap(), "yaml: document contains excessive aliasing");
        let deep = "[".repeat(10_000);
        assert!(convert(deep.as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn never_ends_the_process(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = convert(&bytes);
        }

        #[test]
        fn never_ends_the_process_on_what_looks_like_yaml(text in "[ab01:,?!&*<>|%@'\"\\[\\]{}#~ \n\t.-]{0,48}") {
            let _ = convert(text.as_bytes());
        }

        #[test]
        fn reads_json(n in any::<i32>(), s in "[a-z 0-9\\n]{0,12}", b in any::<bool>()) {
            let json = json!({"n": n, "s": s, "b": b, "l": [n, s]});
            prop_assert_eq!(value(&json.to_string()), json);
        }
    }
}
