//! Image references, as the container world writes and completes them.

use std::fmt;

/// A reference with nothing left to be assumed: `localhost/hello:v1`,
/// `docker.io/library/nginx:latest`, `example.com/app@sha256:…`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// Registry and path.
    pub repository: String,
    pub tag: Option<String>,
    /// `sha256:…`
    pub digest: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("image reference \"{text}\": {problem}")]
pub struct Invalid {
    text: String,
    problem: &'static str,
}

const LONGEST: usize = 255;

impl Reference {
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let invalid = |problem| Invalid { text: text.to_owned(), problem };
        if text.is_empty() {
            return Err(invalid("is empty; write it as in localhost/hello:v1"));
        }
        let (named, digest) = match text.split_once('@') {
            Some((named, digest)) => {
                let hex = digest.strip_prefix("sha256:").unwrap_or_default();
                if hex.len() != 64 || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
                    return Err(invalid("what follows @ must be sha256: and 64 hexadecimal digits"));
                }
                (named, Some(digest.to_owned()))
            }
            None => (text, None),
        };
        // A colon after the last slash begins the tag; before it, a port.
        let slash = named.rfind('/').map_or(0, |at| at + 1);
        let (repository, tag) = match named[slash..].split_once(':') {
            Some((last, tag)) => (&named[..slash + last.len()], Some(tag)),
            None => (named, None),
        };
        if let Some(tag) = tag {
            let first = tag.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
            let rest = tag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
            if !first || !rest || tag.len() > 128 {
                return Err(invalid("the tag may have letters, digits, '_', '.' and '-' only, at most 128"));
            }
        }
        let (registry, path) = match repository.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest.to_owned()),
            Some(_) => ("docker.io", repository.to_owned()),
            None => ("docker.io", format!("library/{repository}")),
        };
        let host = registry.split(':').next().unwrap_or_default();
        let host_good = !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-'));
        let port_good = registry.split_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_ok());
        if !host_good || !port_good {
            return Err(invalid("the registry must be a host name, with a port if need be"));
        }
        let path_good = path.split('/').all(component);
        if !path_good {
            return Err(invalid(
                "names are lower-case letters and digits, joined by '.', '_' or '-', with '/' between them",
            ));
        }
        let repository = format!("{registry}/{path}");
        if repository.len() > LONGEST {
            return Err(invalid("is longer than 255 characters"));
        }
        let tag = match (tag, &digest) {
            (None, None) => Some("latest".to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(Self { repository, tag, digest })
    }

    /// Host and port of the registry.
    pub fn registry(&self) -> &str {
        self.repository.split('/').next().unwrap_or_default()
    }

    /// Whether it names a registry at all: `localhost` without a port is for images brought by hand.
    pub fn has_registry(&self) -> bool {
        self.registry() != "localhost"
    }

    /// The last word of the repository: what a program is called if nothing else names it.
    pub fn program(&self) -> &str {
        self.repository.rsplit('/').next().unwrap_or(&self.repository)
    }
}

/// `[a-z0-9]+` joined by `.`, `_`, `__` or any number of `-`.
fn component(part: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let (Some(first), Some(last)) = (part.bytes().next(), part.bytes().last()) else { return false };
    alphanumeric(first)
        && alphanumeric(last)
        && part.bytes().all(|b| alphanumeric(b) || matches!(b, b'.' | b'_' | b'-'))
        && !["..", "._", "_.", ".-", "-.", "_-", "-_", "___"].iter().any(|bad| part.contains(bad))
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn completed() {
        for (text, expected) in [
            ("localhost/hello:v1", "localhost/hello:v1"),
            ("hello", "docker.io/library/hello:latest"),
            ("me/hello:2", "docker.io/me/hello:2"),
            ("example.com/a/b", "example.com/a/b:latest"),
            ("localhost:5000/a", "localhost:5000/a:latest"),
            ("a:v_1.0-x", "docker.io/library/a:v_1.0-x"),
        ] {
            assert_eq!(Reference::parse(text).unwrap().to_string(), expected);
        }
        let digest = format!("localhost/a@sha256:{}", "0".repeat(64));
        assert_eq!(Reference::parse(&digest).unwrap().to_string(), digest);
    }

    #[test]
    fn refused() {
        for text in [
            "",
            "UPPER",
            "a:",
            "a:b c",
            "a//b",
            "/a",
            "a@sha256:12",
            "a..b",
            "local host/a",
            "x:99999/a",
            "a/b:c/d",
            "-a",
        ] {
            assert!(Reference::parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn completing_twice_changes_nothing(text in "([a-z]{1,5}(\\.[a-z]{2})?(:[0-9]{1,4})?/)?[a-z0-9]{1,6}(/[a-z0-9]{1,6})?(:[a-z0-9.]{1,5})?") {
            if let Ok(reference) = Reference::parse(&text) {
                let written = reference.to_string();
                prop_assert_eq!(Reference::parse(&written).unwrap(), reference);
            }
        }

        #[test]
        fn any_text_is_answered(text in ".{0,60}") {
            let _ = Reference::parse(&text);
        }
    }
}
