//! Label and field selectors, as queries write them.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::Error;
use crate::validation::names::{is_label_value, is_qualified_name};

/// A label selector of a query: all its requirements hold. Empty: everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    operator: Operator,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Operator {
    Exists,
    DoesNotExist,
    In(BTreeSet<String>),
    NotIn(BTreeSet<String>),
    GreaterThan(i64),
    LessThan(i64),
}

impl LabelSelector {
    /// Reads `a=b,c!=d,e in (f,g),!h,i>1`; errors are worded as the reference words them.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut parser = Parser { tokens: tokens(text), at: 0 };
        parser.selector().map_err(Error::BadRequest)
    }

    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether an object with these labels (`metadata.labels`; `None` without any) is selected.
    pub fn matches(&self, labels: Option<&Map<String, Value>>) -> bool {
        self.matches_with(|key| labels?.get(key)?.as_str())
    }

    /// As [`Self::matches`], for labels kept in another form.
    pub fn matches_with<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements.iter().all(|requirement| requirement.operator.matches(label(&requirement.key)))
    }
}

impl Operator {
    fn matches(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|value| value.parse::<i64>().ok());
        match self {
            Self::Exists => value.is_some(),
            Self::DoesNotExist => value.is_none(),
            Self::In(values) => value.is_some_and(|value| values.contains(value)),
            Self::NotIn(values) => !value.is_some_and(|value| values.contains(value)),
            Self::GreaterThan(bound) => number().is_some_and(|number| number > *bound),
            Self::LessThan(bound) => number().is_some_and(|number| number < *bound),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Open,
    Close,
    Comma,
    Not,
    Equals,
    DoubleEquals,
    NotEquals,
    Greater,
    Less,
    In,
    NotIn,
    Word,
    Unknown,
    End,
}

#[derive(Clone, Debug)]
struct Token<'a> {
    kind: Kind,
    text: &'a str,
}

const SPECIAL: &str = "=!(),><";

fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', '\r', '\n']);
        let Some(first) = rest.chars().next() else { break };
        let length = if SPECIAL.contains(first) {
            // The longest run of special letters that is an operator.
            if ["==", "!="].iter().any(|operator| rest.starts_with(operator)) { 2 } else { first.len_utf8() }
        } else {
            rest.find(|letter: char| SPECIAL.contains(letter) || letter.is_ascii_whitespace()).unwrap_or(rest.len())
        };
        let (word, after) = rest.split_at(length);
        let kind = match word {
            "(" => Kind::Open,
            ")" => Kind::Close,
            "," => Kind::Comma,
            "!" => Kind::Not,
            "=" => Kind::Equals,
            "==" => Kind::DoubleEquals,
            "!=" => Kind::NotEquals,
            ">" => Kind::Greater,
            "<" => Kind::Less,
            "in" => Kind::In,
            "notin" => Kind::NotIn,
            _ if SPECIAL.contains(first) => Kind::Unknown,
            _ => Kind::Word,
        };
        tokens.push(Token { kind, text: word });
        rest = after;
    }
    tokens.push(Token { kind: Kind::End, text: "" });
    tokens
}

const OPERATORS: &str = "in, notin, =, ==, !=, gt, lt";

struct Parser<'a> {
    tokens: Vec<Token<'a>>,
    at: usize,
}

impl<'a> Parser<'a> {
    /// The next token; inside values `in` and `notin` are words like others.
    fn peek(&self, values: bool) -> Token<'a> {
        let end = Token { kind: Kind::End, text: "" };
        let mut token = self.tokens.get(self.at).cloned().unwrap_or(end);
        if values && matches!(token.kind, Kind::In | Kind::NotIn) {
            token.kind = Kind::Word;
        }
        token
    }

    fn take(&mut self, values: bool) -> Token<'a> {
        let token = self.peek(values);
        self.at += 1;
        token
    }

    fn selector(&mut self) -> Result<LabelSelector, String> {
        let mut requirements = Vec::new();
        loop {
            let token = self.peek(true);
            match token.kind {
                Kind::Word | Kind::Not => {
                    let requirement =
                        self.requirement().map_err(|error| format!("unable to parse requirement: {error}"))?;
                    requirements.push(requirement);
                    let token = self.take(false);
                    match token.kind {
                        Kind::End => break,
                        Kind::Comma => {
                            let next = self.peek(true);
                            if !matches!(next.kind, Kind::Word | Kind::Not) {
                                return Err(format!("found '{}', expected: identifier after ','", next.text));
                            }
                        }
                        _ => return Err(format!("found '{}', expected: ',' or 'end of string'", token.text)),
                    }
                }
                Kind::End => break,
                _ => return Err(format!("found '{}', expected: !, identifier, or 'end of string'", token.text)),
            }
        }
        requirements.sort_by(|one: &Requirement, other| one.key.cmp(&other.key));
        Ok(LabelSelector { requirements })
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let not = self.peek(true).kind == Kind::Not;
        if not {
            self.at += 1;
        }
        let token = self.take(true);
        if token.kind != Kind::Word {
            return Err(format!("found '{}', expected: identifier", token.text));
        }
        let key = token.text;
        check_key(key)?;
        let requirement = |operator| Ok(Requirement { key: key.to_owned(), operator });
        if not {
            return requirement(Operator::DoesNotExist);
        }
        if matches!(self.peek(false).kind, Kind::End | Kind::Comma) {
            return requirement(Operator::Exists);
        }
        let operator = self.take(false);
        match operator.kind {
            Kind::In | Kind::NotIn => {
                let values = self.values()?;
                check_values(key, &values)?;
                requirement(if operator.kind == Kind::In { Operator::In(values) } else { Operator::NotIn(values) })
            }
            Kind::Equals | Kind::DoubleEquals | Kind::NotEquals => {
                let values = BTreeSet::from([self.exact_value()?.to_owned()]);
                check_values(key, &values)?;
                requirement(if operator.kind == Kind::NotEquals {
                    Operator::NotIn(values)
                } else {
                    Operator::In(values)
                })
            }
            Kind::Greater | Kind::Less => {
                let value = self.exact_value()?;
                let bound = value.parse().map_err(|_| {
                    format!("values[0][{key}]: Invalid value: {value:?}: for 'Gt', 'Lt' operators, the value must be an integer")
                })?;
                let greater = operator.kind == Kind::Greater;
                requirement(if greater { Operator::GreaterThan(bound) } else { Operator::LessThan(bound) })
            }
            _ => Err(format!("found '{}', expected: {OPERATORS}", operator.text)),
        }
    }

    fn values(&mut self) -> Result<BTreeSet<String>, String> {
        let token = self.take(true);
        if token.kind != Kind::Open {
            return Err(format!("found '{}' expected: '('", token.text));
        }
        let mut values = BTreeSet::new();
        loop {
            let token = self.take(true);
            match token.kind {
                Kind::Word => {
                    values.insert(token.text.to_owned());
                    match self.take(true) {
                        Token { kind: Kind::Comma, .. } => {
                            // `(a,)` and `(a,,b)` name the empty value.
                            if matches!(self.peek(true).kind, Kind::Close | Kind::Comma) {
                                values.insert(String::new());
                            }
                        }
                        Token { kind: Kind::Close, .. } => return Ok(values),
                        token => return Err(format!("found '{}', expected: ',' or ')'", token.text)),
                    }
                }
                Kind::Comma => {
                    values.insert(String::new());
                    if self.peek(true).kind == Kind::Close {
                        self.at += 1;
                        return Ok(values);
                    }
                }
                Kind::Close => {
                    values.insert(String::new());
                    return Ok(values);
                }
                _ => return Err(format!("found '{}', expected: ',', ')' or identifier", token.text)),
            }
        }
    }

    fn exact_value(&mut self) -> Result<&'a str, String> {
        if matches!(self.peek(true).kind, Kind::End | Kind::Comma) {
            return Ok("");
        }
        let token = self.take(true);
        if token.kind == Kind::Word {
            Ok(token.text)
        } else {
            Err(format!("found '{}', expected: identifier", token.text))
        }
    }
}

fn check_key(key: &str) -> Result<(), String> {
    let errors = is_qualified_name(key);
    if errors.is_empty() { Ok(()) } else { Err(format!("key: Invalid value: {key:?}: {}", errors.join("; "))) }
}

fn check_values(key: &str, values: &BTreeSet<String>) -> Result<(), String> {
    for (index, value) in values.iter().enumerate() {
        let errors = is_label_value(value);
        if !errors.is_empty() {
            return Err(format!("values[{index}][{key}]: Invalid value: {value:?}: {}", errors.join("; ")));
        }
    }
    Ok(())
}

/// A field selector of a query: all its terms hold. Empty: everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    terms: Vec<FieldTerm>,
}

/// One `path=value` or `path!=value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldTerm {
    pub path: String,
    pub value: String,
    pub equal: bool,
}

impl FieldSelector {
    /// Reads `metadata.name=a,status.phase!=Running`; `\` escapes `,`, `=` and itself.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut terms = Vec::new();
        for term in split_unescaped(text, ',') {
            if term.is_empty() {
                continue;
            }
            let Some((path, equal, value)) = split_operator(term) else {
                return Err(Error::BadRequest(format!("invalid selector: '{text}'; can't understand '{term}'")));
            };
            let value = unescape(value).map_err(Error::BadRequest)?;
            terms.push(FieldTerm { path: path.to_owned(), value, equal });
        }
        Ok(Self { terms })
    }

    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    pub fn terms(&self) -> &[FieldTerm] {
        &self.terms
    }

    /// The value that `path` must have, where the selector says so.
    pub fn exact(&self, path: &str) -> Option<&str> {
        self.terms.iter().find(|term| term.equal && term.path == path).map(|term| term.value.as_str())
    }

    /// `field` answers with the value of a path; unknown ones are the empty text.
    pub fn matches(&self, field: impl Fn(&str) -> String) -> bool {
        self.terms.iter().all(|term| (field(&term.path) == term.value) == term.equal)
    }
}

fn split_unescaped(text: &str, separator: char) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (index, letter) in text.char_indices() {
        if escaped {
            escaped = false;
        } else if letter == '\\' {
            escaped = true;
        } else if letter == separator {
            parts.push(&text[start..index]);
            start = index + letter.len_utf8();
        }
    }
    parts.push(&text[start..]);
    parts
}

fn split_operator(term: &str) -> Option<(&str, bool, &str)> {
    for (index, _) in term.char_indices() {
        let rest = &term[index..];
        for (operator, equal) in [("!=", false), ("==", true), ("=", true)] {
            if let Some(value) = rest.strip_prefix(operator) {
                return Some((&term[..index], equal, value));
            }
        }
    }
    None
}

fn unescape(value: &str) -> Result<String, String> {
    let mut out = String::with_capacity(value.len());
    let mut letters = value.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => match letters.next() {
                Some(escaped @ ('\\' | ',' | '=')) => out.push(escaped),
                other => {
                    let sequence = other.map_or_else(|| "\\".to_owned(), |other| format!("\\{other}"));
                    return Err(format!("invalid field selector: invalid escape sequence: {sequence}"));
                }
            },
            ',' | '=' => return Err(format!("invalid field selector: unescaped character in value: {letter}")),
            letter => out.push(letter),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn selects(selector: &str, labels: Value) -> bool {
        LabelSelector::parse(selector).unwrap().matches(labels.as_object())
    }

    fn refused(selector: &str) -> String {
        LabelSelector::parse(selector).unwrap_err().to_string()
    }

    #[test]
    fn operators() {
        let labels = || json!({ "app": "a", "n": "3", "in": "x" });
        for (selector, expected) in [
            ("", true),
            ("app", true),
            ("!app", false),
            ("app=a", true),
            ("app == a", true),
            ("app!=a", false),
            ("other!=a", true),
            ("app in (a,b)", true),
            ("app notin (a, b),n", false),
            ("other notin (a)", true),
            ("n>2,n<4", true),
            ("n>3", false),
            ("app>1", false),
            ("other=", false),
            ("in in (x)", true),
        ] {
            assert_eq!(selects(selector, labels()), expected, "{selector}");
        }
        assert!(selects("e in (,x)", json!({ "e": "" })));
        assert!(selects("!a", Value::Null));
    }

    #[test]
    fn errors_are_the_references() {
        assert_eq!(refused("app in a"), "unable to parse requirement: found 'a' expected: '('");
        assert_eq!(refused("="), "found '=', expected: !, identifier, or 'end of string'");
        assert_eq!(refused("a b"), format!("unable to parse requirement: found 'b', expected: {OPERATORS}"));
        assert_eq!(refused("a=b,"), "found '', expected: identifier after ','");
        assert!(refused("a=!").contains("expected: identifier"));
        assert!(refused("-a").starts_with("unable to parse requirement: key: Invalid value: \"-a\": name part must"));
    }

    #[test]
    fn fields() {
        let selector = FieldSelector::parse("metadata.name=a,status.phase!=Running").unwrap();
        let of = |name: &'static str, phase: &'static str| {
            selector.matches(move |path| if path == "metadata.name" { name.to_owned() } else { phase.to_owned() })
        };
        assert!(of("a", "Pending") && !of("a", "Running") && !of("b", "Pending"));
        assert_eq!(selector.exact("metadata.name"), Some("a"));
        assert_eq!(FieldSelector::parse(r"a=b\,c\=d").unwrap().terms()[0].value, "b,c=d");
        let error = FieldSelector::parse("a").unwrap_err().to_string();
        assert_eq!(error, "invalid selector: 'a'; can't understand 'a'");
    }

    proptest! {
        #[test]
        fn never_panics(text in "[a-c=!(),><\\\\ é]{0,20}") {
            let _ = LabelSelector::parse(&text);
            let _ = FieldSelector::parse(&text);
        }

        /// A requirement and its negation never select the same object.
        #[test]
        fn negations_exclude(key in "[a-c]", value in "[x-z]", label in "[a-c]", of in "[x-z]") {
            let labels = json!({ label: of });
            prop_assert_ne!(selects(&format!("{key}={value}"), labels.clone()), selects(&format!("{key}!={value}"), labels.clone()));
            prop_assert_ne!(selects(&key, labels.clone()), selects(&format!("!{key}"), labels));
        }
    }
}
