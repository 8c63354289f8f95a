//! A JSON document as read: order and duplicates kept, texts borrowed where possible. The errors are
//! worded as the reference's JSON scanner words them.

use std::borrow::Cow;

use serde_json::{Map, Number, Value};

/// Nesting beyond which a document is refused. Stored objects are read back by serde_json, which
/// stops at 128.
pub(crate) const MAX_DEPTH: usize = 120;

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Node<'a> {
    Null,
    Bool(bool),
    /// The literal.
    Number(Cow<'a, str>),
    String(Cow<'a, str>),
    Array(Vec<Node<'a>>),
    Object(Vec<(Cow<'a, str>, Node<'a>)>),
}

impl<'a> Node<'a> {
    /// What messages call this kind of value.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "bool",
            Self::Number(_) => "number",
            Self::String(_) => "string",
            Self::Array(_) => "array",
            Self::Object(_) => "object",
        }
    }

    pub(crate) fn from_value(value: &'a Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(b) => Self::Bool(*b),
            Value::Number(n) => Self::Number(n.to_string().into()),
            Value::String(s) => Self::String(s.as_str().into()),
            Value::Array(items) => Self::Array(items.iter().map(Node::from_value).collect()),
            Value::Object(map) => {
                Self::Object(map.iter().map(|(k, v)| (k.as_str().into(), Node::from_value(v))).collect())
            }
        }
    }

    /// The value as it is, for fields that hold any JSON. The last of duplicates wins.
    pub(crate) fn to_value(&self) -> Value {
        match self {
            Self::Null => Value::Null,
            Self::Bool(b) => Value::Bool(*b),
            Self::Number(text) => number(text).map_or(Value::Null, Value::Number),
            Self::String(s) => Value::String(s.to_string()),
            Self::Array(items) => Value::Array(items.iter().map(Node::to_value).collect()),
            Self::Object(entries) => {
                Value::Object(entries.iter().map(|(k, v)| (k.to_string(), v.to_value())).collect::<Map<_, _>>())
            }
        }
    }
}

/// The number a literal stands for: whole where it is written so and fits.
pub(crate) fn number(text: &str) -> Option<Number> {
    if let Ok(whole) = text.parse::<i64>() {
        return Some(whole.into());
    }
    if let Ok(whole) = text.parse::<u64>() {
        return Some(whole.into());
    }
    text.parse::<f64>().ok().and_then(Number::from_f64)
}

/// Reads a document.
pub(crate) fn parse(text: &[u8]) -> Result<Node<'_>, String> {
    let mut parser = Parser { text, at: 0 };
    let node = parser.value(0)?;
    parser.space();
    match parser.peek() {
        None => Ok(node),
        Some(byte) => Err(unexpected(byte, "after top-level value")),
    }
}

struct Parser<'a> {
    text: &'a [u8],
    at: usize,
}

fn unexpected(byte: u8, context: &str) -> String {
    let quoted = match byte {
        b'\'' => "\\'".into(),
        b'\\' => "\\\\".into(),
        b'\n' => "\\n".into(),
        b'\r' => "\\r".into(),
        b'\t' => "\\t".into(),
        0x07 => "\\a".into(),
        0x08 => "\\b".into(),
        0x0b => "\\v".into(),
        0x0c => "\\f".into(),
        0x20..=0x7e => char::from(byte).to_string(),
        _ => format!("\\x{byte:02x}"),
    };
    format!("invalid character '{quoted}' {context}")
}

fn end() -> String {
    "unexpected end of JSON input".into()
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn next(&mut self) -> Result<u8, String> {
        let byte = self.peek().ok_or_else(end)?;
        self.at += 1;
        Ok(byte)
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    fn value(&mut self, depth: usize) -> Result<Node<'a>, String> {
        if depth > MAX_DEPTH {
            return Err("exceeded max depth".into());
        }
        self.space();
        match self.next()? {
            b'{' => self.object(depth),
            b'[' => self.array(depth),
            b'"' => Ok(Node::String(self.string()?)),
            b't' => self.literal("true", Node::Bool(true)),
            b'f' => self.literal("false", Node::Bool(false)),
            b'n' => self.literal("null", Node::Null),
            byte @ (b'-' | b'0'..=b'9') => self.number(byte),
            byte => Err(unexpected(byte, "looking for beginning of value")),
        }
    }

    fn literal(&mut self, word: &str, node: Node<'a>) -> Result<Node<'a>, String> {
        for expected in word.bytes().skip(1) {
            let byte = self.next()?;
            if byte != expected {
                let context = format!("in literal {word} (expecting '{}')", char::from(expected));
                return Err(unexpected(byte, &context));
            }
        }
        Ok(node)
    }

    fn digits(&mut self) {
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
    }

    fn digit(&mut self, context: &str) -> Result<u8, String> {
        match self.next()? {
            byte @ b'0'..=b'9' => Ok(byte),
            byte => Err(unexpected(byte, context)),
        }
    }

    fn number(&mut self, first: u8) -> Result<Node<'a>, String> {
        let start = self.at - 1;
        let leading = if first == b'-' { self.digit("in numeric literal")? } else { first };
        if leading != b'0' {
            self.digits();
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digit("after decimal point in numeric literal")?;
            self.digits();
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digit("in exponent of numeric literal")?;
            self.digits();
        }
        let text = self.text.get(start..self.at).unwrap_or_default();
        Ok(Node::Number(String::from_utf8_lossy(text)))
    }

    /// The rest of a string whose quote is read.
    fn string(&mut self) -> Result<Cow<'a, str>, String> {
        let start = self.at;
        loop {
            match self.next()? {
                b'"' => {
                    let text = self.text.get(start..self.at - 1).unwrap_or_default();
                    return Ok(String::from_utf8_lossy(text));
                }
                b'\\' => break,
                byte if byte < 0x20 => return Err(unexpected(byte, "in string literal")),
                _ => {}
            }
        }
        let mut bytes = self.text.get(start..self.at - 1).unwrap_or_default().to_vec();
        self.escape(&mut bytes)?;
        loop {
            match self.next()? {
                b'"' => return Ok(Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())),
                b'\\' => self.escape(&mut bytes)?,
                byte if byte < 0x20 => return Err(unexpected(byte, "in string literal")),
                byte => bytes.push(byte),
            }
        }
    }

    fn escape(&mut self, out: &mut Vec<u8>) -> Result<(), String> {
        let byte = match self.next()? {
            b'b' => 0x08,
            b'f' => 0x0c,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            byte @ (b'"' | b'\\' | b'/') => byte,
            b'u' => {
                let unit = self.hex()?;
                let letter = self.surrogate(unit)?;
                let mut buffer = [0; 4];
                out.extend_from_slice(letter.encode_utf8(&mut buffer).as_bytes());
                return Ok(());
            }
            byte => return Err(unexpected(byte, "in string escape code")),
        };
        out.push(byte);
        Ok(())
    }

    fn hex(&mut self) -> Result<u32, String> {
        let mut value = 0;
        for _ in 0..4 {
            let byte = self.next()?;
            let digit =
                char::from(byte).to_digit(16).ok_or_else(|| unexpected(byte, "in \\u hexadecimal character escape"))?;
            value = value << 4 | digit;
        }
        Ok(value)
    }

    /// The letter of a code unit, taking up the second one of a pair.
    fn surrogate(&mut self, unit: u32) -> Result<char, String> {
        if let Some(letter) = char::from_u32(unit) {
            return Ok(letter);
        }
        let lone = Ok(char::REPLACEMENT_CHARACTER);
        if unit >= 0xdc00 || self.text.get(self.at..self.at + 2) != Some(b"\\u") {
            return lone;
        }
        let back = self.at;
        self.at += 2;
        let second = self.hex()?;
        if !(0xdc00..0xe000).contains(&second) {
            self.at = back;
            return lone;
        }
        let code = 0x10000 + ((unit - 0xd800) << 10) + (second - 0xdc00);
        Ok(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER))
    }

    fn array(&mut self, depth: usize) -> Result<Node<'a>, String> {
        let mut items = Vec::new();
        self.space();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(Node::Array(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            self.space();
            match self.next()? {
                b',' => {}
                b']' => return Ok(Node::Array(items)),
                byte => return Err(unexpected(byte, "after array element")),
            }
        }
    }

    fn object(&mut self, depth: usize) -> Result<Node<'a>, String> {
        let mut entries = Vec::new();
        self.space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(Node::Object(entries));
        }
        loop {
            self.space();
            let key = match self.next()? {
                b'"' => self.string()?,
                byte => {
                    return Err(unexpected(byte, "looking for beginning of object key string"));
                }
            };
            self.space();
            match self.next()? {
                b':' => {}
                byte => return Err(unexpected(byte, "after object key")),
            }
            let value = self.value(depth + 1)?;
            entries.push((key, value));
            self.space();
            match self.next()? {
                b',' => {}
                b'}' => return Ok(Node::Object(entries)),
                byte => return Err(unexpected(byte, "after object key:value pair")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn says_where_it_stopped_reading() {
        for (text, error) in [
            ("", "unexpected end of JSON input"),
            ("{\"a\": {", "unexpected end of JSON input"),
            ("{\"a\" 1}", "invalid character '1' after object key"),
            ("{\"a\":1 \"b\"}", "invalid character '\"' after object key:value pair"),
            ("{a:1}", "invalid character 'a' looking for beginning of object key string"),
            ("{\"a\":1,}", "invalid character '}' looking for beginning of object key string"),
            ("[1,]", "invalid character ']' looking for beginning of value"),
            ("[1 2]", "invalid character '2' after array element"),
            ("nul!", "invalid character '!' in literal null (expecting 'l')"),
            ("{} x", "invalid character 'x' after top-level value"),
            ("01", "invalid character '1' after top-level value"),
            ("-a", "invalid character 'a' in numeric literal"),
            ("1.x", "invalid character 'x' after decimal point in numeric literal"),
            ("1ex", "invalid character 'x' in exponent of numeric literal"),
            ("\"\n\"", "invalid character '\\n' in string literal"),
            ("\"\\x\"", "invalid character 'x' in string escape code"),
            ("\"\\u12g4\"", "invalid character 'g' in \\u hexadecimal character escape"),
            ("'a'", "invalid character '\\'' looking for beginning of value"),
            ("\u{81}", "invalid character '\\xc2' looking for beginning of value"),
        ] {
            assert_eq!(parse(text.as_bytes()).unwrap_err(), error, "{text}");
        }
        let deep = "[".repeat(100_000);
        assert_eq!(parse(deep.as_bytes()).unwrap_err(), "exceeded max depth");
    }

    #[test]
    fn reads_strings() {
        for (text, want) in [
            ("\"a\\n\\u00e9\\\"\"", "a\né\""),
            ("\"\\ud83d\\ude00\"", "😀"),
            ("\"\\ud83d\"", "\u{fffd}"),
            ("\"\\ud83d\\u0041\"", "\u{fffd}A"),
        ] {
            assert_eq!(parse(text.as_bytes()).unwrap(), Node::String(want.into()));
        }
        assert_eq!(parse(b"\"\xff\"").unwrap(), Node::String("\u{fffd}".into()));
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::String),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::Array),
                prop::collection::btree_map(".{0,4}", inner, 0..6).prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn never_panics_on_what_looks_like_json(text in "[\\[\\]{}\",:0-9a-e \\\\utrfnls.-]{0,64}") {
            let _ = parse(text.as_bytes());
        }

        #[test]
        fn reads_what_serde_writes(value in json()) {
            let text = serde_json::to_vec(&value).unwrap();
            prop_assert_eq!(parse(&text).unwrap().to_value(), value.clone());
            prop_assert_eq!(Node::from_value(&value).to_value(), value);
        }

        #[test]
        fn takes_what_serde_takes(text in "[\\[\\]{}\",:0-9 a.-]{0,24}") {
            let ours = parse(text.as_bytes()).is_ok();
            prop_assert_eq!(ours, serde_json::from_str::<Value>(&text).is_ok());
        }
    }
}
