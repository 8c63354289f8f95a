//! Forms that names take. Every function gives messages for what is wrong, none where nothing is.

const LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const SUBDOMAIN: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const DNS1035: &str = "[a-z]([-a-z0-9]*[a-z0-9])?";
const QUALIFIED: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const LABEL_VALUE: &str = "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?";

/// What a form looks like, with examples and the expression that decides.
pub fn regex_error(message: &str, form: &str, examples: &[&str]) -> String {
    let mut text = format!("{message} (");
    for (i, example) in examples.iter().enumerate() {
        text.push_str(if i == 0 { "e.g. " } else { " or " });
        text.push_str(&format!("'{example}', "));
    }
    format!("{text}regex used for validation is '{form}')")
}

pub fn max_length(length: usize) -> String {
    format!("must be no more than {length} bytes")
}

fn lower_or_digit(c: u8) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit()
}

fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    lower_or_digit(first) && lower_or_digit(last) && bytes.iter().all(|&c| lower_or_digit(c) || c == b'-')
}

/// The prefix of a generated name ends where the random part begins: a dash there is fine.
fn mask_trailing_dash(name: &str) -> String {
    match name.strip_suffix('-') {
        Some(rest) if !rest.is_empty() => format!("{rest}a"),
        _ => name.to_owned(),
    }
}

fn masked(name: &str, prefix: bool, check: impl Fn(&str) -> Vec<String>) -> Vec<String> {
    if prefix { check(&mask_trailing_dash(name)) } else { check(name) }
}

/// RFC 1123 label: namespaces, services.
pub fn dns_label(name: &str, prefix: bool) -> Vec<String> {
    masked(name, prefix, is_dns_label)
}

/// RFC 1123 subdomain: most kinds.
pub fn dns_subdomain(name: &str, prefix: bool) -> Vec<String> {
    masked(name, prefix, is_dns_subdomain)
}

/// Events take any name that fits into a path.
pub fn any(_: &str, _: bool) -> Vec<String> {
    Vec::new()
}

pub fn is_dns_label(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > 63 {
        errors.push(max_length(63));
    }
    if !is_label(text) {
        if is_subdomain(text) {
            errors.push("must not contain dots".to_owned());
        } else {
            let message = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
                           start and end with an alphanumeric character";
            errors.push(regex_error(message, LABEL, &["my-name", "123-abc"]));
        }
    }
    errors
}

fn is_subdomain(text: &str) -> bool {
    text.split('.').all(is_label)
}

pub fn is_dns_subdomain(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > 253 {
        errors.push(max_length(253));
    }
    if !is_subdomain(text) {
        let message = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and \
                       must start and end with an alphanumeric character";
        errors.push(regex_error(message, SUBDOMAIN, &["example.com"]));
    }
    errors
}

pub fn is_dns1035_label(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > 63 {
        errors.push(max_length(63));
    }
    if !is_label(text) || !text.starts_with(|c: char| c.is_ascii_lowercase()) {
        let message = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
                       character, and end with an alphanumeric character";
        errors.push(regex_error(message, DNS1035, &["my-name", "abc-123"]));
    }
    errors
}

fn is_qualified_part(text: &str) -> bool {
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    first.is_ascii_alphanumeric()
        && last.is_ascii_alphanumeric()
        && bytes.iter().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'))
}

/// `name` or `prefix.example/name`: keys of labels, annotations, finalizers, resources.
pub fn is_qualified_name(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    let parts: Vec<&str> = text.split('/').collect();
    let name = match parts.as_slice() {
        [name] => *name,
        [prefix, name] => {
            if prefix.is_empty() {
                errors.push("prefix part must be non-empty".to_owned());
            } else {
                errors.extend(is_dns_subdomain(prefix).into_iter().map(|message| format!("prefix part {message}")));
            }
            *name
        }
        _ => {
            let message = "a qualified name must consist of alphanumeric characters, '-', '_' or '.', and must start and end \
                           with an alphanumeric character";
            let error = regex_error(message, QUALIFIED, &["MyName", "my.name", "123-abc"]);
            return vec![format!("{error} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')")];
        }
    };
    if name.is_empty() {
        errors.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        errors.push(format!("name part {}", max_length(63)));
    }
    if !is_qualified_part(name) {
        let message = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
                       alphanumeric character";
        errors.push(regex_error(message, QUALIFIED, &["MyName", "my.name", "123-abc"]));
    }
    errors
}

pub fn is_label_value(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > 63 {
        errors.push(max_length(63));
    }
    if !text.is_empty() && !is_qualified_part(text) {
        let message = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must \
                       start and end with an alphanumeric character";
        errors.push(regex_error(message, LABEL_VALUE, &["MyValue", "my_value", "12345"]));
    }
    errors
}

/// What cannot stand between two slashes of a path.
pub fn path_segment(name: &str, prefix: bool) -> Vec<String> {
    let mut errors = Vec::new();
    if !prefix && matches!(name, "." | "..") {
        return vec![format!("may not be '{name}'")];
    }
    for illegal in ["/", "%"] {
        if name.contains(illegal) {
            errors.push(format!("may not contain '{illegal}'"));
        }
    }
    errors
}

/// Keys of ConfigMaps and Secrets: they become file names.
pub fn is_config_key(key: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if key.len() > 253 {
        errors.push(max_length(253));
    }
    if key.is_empty() || !key.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.' | b'_')) {
        let message = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";
        errors.push(regex_error(message, "[-._a-zA-Z0-9]+", &["key.name", "KEY_NAME", "key-name"]));
    }
    match key {
        "." => errors.push("must not be '.'".to_owned()),
        ".." => errors.push("must not be '..'".to_owned()),
        _ if key.starts_with("..") => errors.push("must not start with '..'".to_owned()),
        _ => {}
    }
    errors
}

/// Environment variables may have any printable name without `=`.
pub fn is_env_name(name: &str) -> Vec<String> {
    if name.is_empty() {
        return vec!["environment variable name must be non-empty".to_owned()];
    }
    if name.bytes().all(|c| (0x20..0x7f).contains(&c) && c != b'=') {
        return Vec::new();
    }
    vec!["a valid environment variable name must consist only of printable ASCII characters other than '='".to_owned()]
}

pub fn is_http_header(name: &str) -> Vec<String> {
    if !name.is_empty() && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-') {
        return Vec::new();
    }
    let message = "a valid HTTP header must consist of alphanumeric characters or '-'";
    vec![regex_error(message, "[-A-Za-z0-9]+", &["X-Header-Name"])]
}

/// A subdomain whose labels may begin with and hold underscores: search paths of a resolver.
pub fn is_dns_subdomain_with_underscore(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > 253 {
        errors.push(max_length(253));
    }
    let label = |label: &str| {
        let label = label.strip_prefix('_').unwrap_or(label).as_bytes();
        let (Some(&first), Some(&last)) = (label.first(), label.last()) else {
            return false;
        };
        lower_or_digit(first)
            && lower_or_digit(last)
            && label.iter().all(|&c| lower_or_digit(c) || matches!(c, b'-' | b'_'))
    };
    if !text.split('.').all(label) {
        let message = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', \
                       and must start and end with an alphanumeric character";
        let form = "_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*";
        errors.push(regex_error(message, form, &["example.com"]));
    }
    errors
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use regex::Regex;

    use super::*;

    fn matches(form: &str, text: &str) -> bool {
        Regex::new(&format!("^(?:{form})$")).is_ok_and(|form| form.is_match(text))
    }

    proptest! {
        /// The hand-written checks decide as the expressions that the messages name.
        #[test]
        fn forms_decide_as_their_expressions(text in "[a-zA-Z0-9._/ -]{0,12}") {
            prop_assert_eq!(is_label(&text), matches(LABEL, &text));
            prop_assert_eq!(is_subdomain(&text), matches(SUBDOMAIN, &text));
            prop_assert_eq!(is_dns1035_label(&text).is_empty(), matches(DNS1035, &text));
            prop_assert_eq!(is_qualified_part(&text), matches(QUALIFIED, &text));
            prop_assert_eq!(is_label_value(&text).is_empty(), matches(LABEL_VALUE, &text));
            prop_assert_eq!(is_http_header(&text).is_empty(), matches("[-A-Za-z0-9]+", &text));
        }
    }

    #[test]
    fn lengths_and_prefixes() {
        assert_eq!(is_dns_label(&"a".repeat(64)), ["must be no more than 63 bytes"]);
        assert_eq!(is_dns_label("a.b"), ["must not contain dots"]);
        assert!(dns_subdomain("web-", true).is_empty());
        assert!(!dns_subdomain("web-", false).is_empty());
        assert_eq!(is_qualified_name("/x"), ["prefix part must be non-empty"]);
        assert_eq!(path_segment("a/b%", false), ["may not contain '/'", "may not contain '%'"]);
    }
}
