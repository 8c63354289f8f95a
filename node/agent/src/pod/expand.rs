//! `$(VAR)` in env values, command and args, as Kubernetes expands it: `$$` is a dollar sign that
//! expands nothing, a name that is not known stays as it was written.

/// Expands `input` with what `lookup` knows.
pub fn expand<'a>(input: &str, lookup: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut out = String::with_capacity(input.len());
    let mut rest = input;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(following) = after.strip_prefix('$') {
            out.push('$');
            rest = following;
        } else if let Some((name, following)) = after.strip_prefix('(').and_then(|opened| opened.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = following;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn known(name: &str) -> Option<&'static str> {
        match name {
            "A" => Some("alpha"),
            "EMPTY" => Some(""),
            "LOOP" => Some("$(LOOP)"),
            _ => None,
        }
    }

    #[test]
    fn as_kubernetes() {
        for (input, expected) in [
            ("$(A)", "alpha"),
            ("___$(A)___", "___alpha___"),
            ("$(EMPTY)x", "x"),
            ("$(UNKNOWN)", "$(UNKNOWN)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$alpha"),
            ("$$$$(A)", "$$(A)"),
            ("$(A", "$(A"),
            ("$A", "$A"),
            ("$", "$"),
            ("foo$", "foo$"),
            ("$(LOOP)", "$(LOOP)"),
            ("$(A)$(A)", "alphaalpha"),
            ("$$(A)$(A)", "$(A)alpha"),
            ("ü$(A)ü", "üalphaü"),
        ] {
            assert_eq!(expand(input, known), expected, "{input}");
        }
    }

    proptest! {
        #[test]
        fn without_dollars_nothing_changes(input in "[^$]{0,40}") {
            prop_assert_eq!(expand(&input, known), input);
        }

        #[test]
        fn doubled_dollars_expand_nothing(input in "[a-zA-Z$()]{0,40}") {
            let escaped = input.replace('$', "$$");
            prop_assert_eq!(expand(&escaped, known), input);
        }

        #[test]
        fn parts_expand_on_their_own(left in "[a-z]{0,8}", right in "[a-z]{0,8}") {
            let whole = expand(&format!("{left}$(A){right}"), known);
            prop_assert_eq!(whole, format!("{left}alpha{right}"));
        }
    }
}
