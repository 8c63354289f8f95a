//! What a request is about: the parts of its path and query.

use http::{HeaderMap, Method, Uri};
use sampan_api::Error;

/// The parts of a path below `/api` or `/apis`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourcePath {
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub resource: String,
    pub name: String,
    pub subresource: String,
    /// What follows the subresource, of proxied requests.
    pub rest: String,
    /// The old way to ask for a watch: `/api/v1/watch/…`.
    pub watch: bool,
}

/// A path of the API, or what is to be discovered there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApiPath {
    /// `/api`, `/apis`
    Root {
        legacy: bool,
    },
    /// `/apis/GROUP`
    Group(String),
    /// `/api/v1`, `/apis/GROUP/VERSION`
    Version {
        group: String,
        version: String,
    },
    Resource(ResourcePath),
}

fn decode(segment: &str) -> String {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let mut ahead = rest.clone();
            let digits = ahead.next().zip(ahead.next());
            let value = digits.and_then(|(a, b)| {
                let digit = |c: u8| char::from(c).to_digit(16);
                u8::try_from(digit(a)? * 16 + digit(b)?).ok()
            });
            if let Some(value) = value {
                bytes.push(value);
                rest = ahead;
                continue;
            }
        }
        bytes.push(byte);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

impl ApiPath {
    /// `None`: not a path of the API.
    pub fn parse(path: &str) -> Option<Self> {
        let trimmed = path.trim_start_matches('/');
        let segments: Vec<&str> = trimmed.trim_end_matches('/').split('/').collect();
        let (legacy, rest) = match segments.split_first()? {
            (&"api", rest) => (true, rest),
            (&"apis", rest) => (false, rest),
            _ => return None,
        };
        let (group, rest) = match (legacy, rest) {
            (_, []) => return Some(Self::Root { legacy }),
            (true, rest) => (String::new(), rest),
            (false, [group]) => return Some(Self::Group((*group).to_owned())),
            (false, [group, rest @ ..]) => ((*group).to_owned(), rest),
        };
        let (version, rest) = rest.split_first()?;
        let version = (*version).to_owned();
        if rest.is_empty() {
            return Some(Self::Version { group, version });
        }
        let mut found = ResourcePath { group, version, ..ResourcePath::default() };
        let rest = match rest {
            ["watch", rest @ ..] if !rest.is_empty() => {
                found.watch = true;
                rest
            }
            rest => rest,
        };
        let rest = match rest {
            ["namespaces", namespace, rest @ ..] if !matches!(rest, [] | ["status" | "finalize", ..]) => {
                found.namespace = decode(namespace);
                rest
            }
            rest => rest,
        };
        let mut parts = rest.iter();
        found.resource = parts.next().map(|part| decode(part))?;
        found.name = parts.next().map(|part| decode(part)).unwrap_or_default();
        found.subresource = parts.next().map(|part| decode(part)).unwrap_or_default();
        // Proxied paths go on as they came.
        let taken = segments.len() - parts.as_slice().len();
        found.rest = trimmed.splitn(taken + 1, '/').nth(taken).unwrap_or_default().to_owned();
        Some(Self::Resource(found))
    }
}

/// The parameters of a query, in order.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(uri: &Uri) -> Self {
        let pairs = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(uri);
        Self(pairs.map(|axum::extract::Query(pairs)| pairs).unwrap_or_default())
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self, name: &str) -> &str {
        self.get(name).unwrap_or_default()
    }

    /// As the reference reads flags: anything but `false` and `0` is true.
    pub fn flag(&self, name: &str) -> Option<bool> {
        self.get(name).map(|value| !matches!(value.to_ascii_lowercase().as_str(), "false" | "0"))
    }

    pub fn int(&self, name: &str) -> Result<Option<i64>, Error> {
        let Some(text) = self.get(name).filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        text.parse()
            .map(Some)
            .map_err(|_| Error::BadRequest(format!("strconv.ParseInt: parsing {text:?}: invalid syntax")))
    }
}

/// Who the managed fields of a write belong to: `fieldManager`, else the first part of the agent.
pub fn field_manager(query: &Query, headers: &HeaderMap) -> String {
    match query.text("fieldManager") {
        "" => {
            let agent = headers.get(http::header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
            let first = agent.split('/').next().unwrap_or_default();
            let printable: String = first.chars().filter(|c| !c.is_control()).take(128).collect();
            if printable.is_empty() { "unknown".to_owned() } else { printable }
        }
        manager => manager.to_owned(),
    }
}

/// What a request does, in the words of authorization.
pub fn verb(method: &Method, path: &ResourcePath, query: &Query) -> &'static str {
    match *method {
        Method::GET | Method::HEAD => {
            if path.watch || (path.name.is_empty() && query.flag("watch") == Some(true)) {
                "watch"
            } else if path.name.is_empty() {
                "list"
            } else {
                "get"
            }
        }
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if path.name.is_empty() => "deletecollection",
        Method::DELETE => "delete",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(path: &str) -> ResourcePath {
        match ApiPath::parse(path) {
            Some(ApiPath::Resource(found)) => found,
            other => panic!("{path}: {other:?}"),
        }
    }

    #[test]
    fn paths() {
        assert_eq!(ApiPath::parse("/nope"), None);
        assert_eq!(ApiPath::parse("/api"), Some(ApiPath::Root { legacy: true }));
        assert_eq!(ApiPath::parse("/apis/apps/"), Some(ApiPath::Group("apps".to_owned())));
        assert_eq!(
            ApiPath::parse("/api/v1"),
            Some(ApiPath::Version { group: String::new(), version: "v1".to_owned() })
        );
        let found = resource("/api/v1/namespaces/a/pods/p/log");
        assert_eq!((found.namespace.as_str(), found.resource.as_str()), ("a", "pods"));
        assert_eq!((found.name.as_str(), found.subresource.as_str()), ("p", "log"));
        let found = resource("/api/v1/namespaces/a/status");
        assert_eq!(
            (found.resource.as_str(), found.name.as_str(), found.subresource.as_str()),
            ("namespaces", "a", "status")
        );
        let found = resource("/api/v1/namespaces/a");
        assert_eq!((found.resource.as_str(), found.name.as_str(), found.namespace.as_str()), ("namespaces", "a", ""));
        let found = resource("/apis/apps/v1/watch/namespaces/a/deployments");
        assert!(found.watch);
        assert_eq!((found.group.as_str(), found.resource.as_str()), ("apps", "deployments"));
        let found = resource("/api/v1/nodes/n/proxy/a%2Fb//c/");
        assert_eq!((found.subresource.as_str(), found.rest.as_str()), ("proxy", "a%2Fb//c/"));
        assert_eq!(resource("/api/v1/nodes/n%20m").name, "n m");
    }
}
