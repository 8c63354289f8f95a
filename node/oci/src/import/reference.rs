//! Names of images, as containerd knows them.

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name {
    repository: String,
    tag: String,
}

impl Name {
    /// Fills in what Docker's line lets people leave out: `busybox` is `docker.io/library/busybox:latest`.
    pub fn parse(reference: &str) -> Result<Name, String> {
        let bad = |why: &str| Err(format!("reference {reference:?} {why}; a right one is localhost/hello:1"));
        if reference.contains('@') {
            return bad("has a digest, which the archive decides");
        }
        let (repository, tag) = match reference.rsplit_once(':') {
            // Else the colon is a port's.
            Some((repository, tag)) if !tag.contains('/') => (repository, tag),
            _ => (reference, "latest"),
        };
        let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if tag.is_empty() || tag.len() > 128 || !tag.chars().all(word) || tag.starts_with(['.', '-']) {
            return bad("has no valid tag");
        }
        let (host, path) = match repository.split_once('/') {
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path.to_owned()),
            Some(_) => ("docker.io", repository.to_owned()),
            None => ("docker.io", format!("library/{repository}")),
        };
        let lower = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let component = |part: &str| {
            part.starts_with(lower)
                && part.ends_with(lower)
                && part.chars().all(|c| lower(c) || word(c))
                && !part.chars().any(|c| c.is_ascii_uppercase())
        };
        if host.is_empty() || !host.chars().all(|c| word(c) || c == ':') || !path.split('/').all(component) {
            return bad("is not a valid name");
        }
        Ok(Name { repository: format!("{host}/{path}"), tag: tag.to_owned() })
    }

    pub fn tagged(&self) -> String {
        format!("{}:{}", self.repository, self.tag)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn short_names_mean_what_they_mean_elsewhere() {
        for (short, long) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("me/app:1", "docker.io/me/app:1"),
            ("localhost/a/b-c:1.2_3", "localhost/a/b-c:1.2_3"),
            ("127.0.0.1:5000/app", "127.0.0.1:5000/app:latest"),
            ("r.example/App", ""),
            ("", ""),
            ("a:", ""),
            ("a b", ""),
            ("a//b", ""),
            ("a:x/../y:1", ""),
            ("a@sha256:00", ""),
        ] {
            assert_eq!(Name::parse(short).map(|n| n.tagged()).unwrap_or_default(), long, "{short}");
        }
    }
}
