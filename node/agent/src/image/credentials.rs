//! What pull secrets say about a registry: the files that `docker login` writes, as Secrets.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::Reference;

#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub username: String,
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// Credentials by what they are for: `REGISTRY` or `REGISTRY/PATH`, a label of the host may be `*`.
#[derive(Clone, Debug, Default)]
pub struct Keyring(Vec<(String, Credentials)>);

#[derive(Deserialize)]
struct ConfigJson {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    username: Option<String>,
    password: Option<String>,
    /// Base64 of `USERNAME:PASSWORD`; where it is given it counts.
    auth: Option<String>,
}

impl Keyring {
    /// Adds what a Secret's `.dockerconfigjson` holds.
    pub fn add_config_json(&mut self, bytes: &[u8]) -> Result<(), String> {
        let config: ConfigJson =
            serde_json::from_slice(bytes).map_err(|error| format!(".dockerconfigjson: {error}"))?;
        self.add(config.auths)
    }

    /// Adds what a Secret's `.dockercfg` holds, the older form.
    pub fn add_config(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.add(serde_json::from_slice(bytes).map_err(|error| format!(".dockercfg: {error}"))?)
    }

    fn add(&mut self, entries: BTreeMap<String, Entry>) -> Result<(), String> {
        for (key, entry) in entries {
            let credentials = match (entry.auth.filter(|auth| !auth.is_empty()), entry.username, entry.password) {
                (Some(auth), _, _) => {
                    let bytes = STANDARD.decode(auth.trim()).ok();
                    let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
                    let (username, password) = text
                        .as_deref()
                        .and_then(|text| text.trim_end_matches('\0').split_once(':'))
                        .ok_or_else(|| format!("auths[{key}].auth: must be base64 of USERNAME:PASSWORD"))?;
                    Credentials { username: username.to_owned(), password: password.to_owned() }
                }
                (None, Some(username), password) => Credentials { username, password: password.unwrap_or_default() },
                (None, None, _) => continue,
            };
            self.0.push((normal(&key), credentials));
        }
        // What says more about where it belongs comes first.
        self.0.sort_by(|(one, _), (other, _)| other.len().cmp(&one.len()).then_with(|| one.cmp(other)));
        Ok(())
    }

    /// All that fit a repository, the one for the longest path first.
    pub fn of(&self, reference: &Reference) -> Vec<Credentials> {
        let matching = self.0.iter().filter(|(key, _)| fits(key, &reference.repository));
        matching.map(|(_, credentials)| credentials.clone()).collect()
    }
}

/// `https://index.docker.io/v1/` is `docker.io`.
fn normal(key: &str) -> String {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let key = key.trim_end_matches('/');
    let key = key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key);
    match key.strip_prefix("index.docker.io") {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("docker.io{rest}"),
        _ => key.to_owned(),
    }
}

fn fits(key: &str, repository: &str) -> bool {
    let split = |text: &str| -> (String, String) {
        let (host, path) = text.split_once('/').unwrap_or((text, ""));
        (host.to_owned(), path.to_owned())
    };
    let ((wanted, prefix), (host, path)) = (split(key), split(repository));
    let (wanted_name, wanted_port) = wanted.split_once(':').unwrap_or((&wanted, ""));
    let (name, port) = host.split_once(':').unwrap_or((&host, ""));
    let (wanted, labels) = (wanted_name.split('.'), name.split('.'));
    let host_fits = wanted.clone().count() == labels.clone().count()
        && wanted.zip(labels).all(|(wanted, label)| wanted == "*" || wanted == label)
        && wanted_port == port;
    let path_fits =
        prefix.is_empty() || path == prefix || path.strip_prefix(&prefix).is_some_and(|it| it.starts_with('/'));
    host_fits && path_fits
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn users(keyring: &Keyring, image: &str) -> Vec<String> {
        let reference = Reference::parse(image).unwrap();
        keyring.of(&reference).into_iter().map(|credentials| credentials.username).collect()
    }

    #[test]
    fn the_nearest_first() {
        let mut keyring = Keyring::default();
        let auth = STANDARD.encode("team:pass:word");
        let json = format!(
            r#"{{"auths": {{
                "https://index.docker.io/v1/": {{"username": "hub", "password": "x"}},
                "example.com:5000": {{"username": "all", "password": "x"}},
                "example.com:5000/team": {{"auth": "{auth}"}},
                "*.example.com": {{"username": "wild"}},
                "empty.example": {{}}
            }}}}"#
        );
        keyring.add_config_json(json.as_bytes()).unwrap();
        assert_eq!(users(&keyring, "nginx"), ["hub"]);
        assert_eq!(users(&keyring, "example.com:5000/team/app:v1"), ["team", "all"]);
        assert_eq!(users(&keyring, "example.com:5000/teamwork"), ["all"]);
        assert_eq!(users(&keyring, "a.example.com/x"), ["wild"]);
        assert_eq!(users(&keyring, "a.b.example.com/x"), Vec::<String>::new());
        assert_eq!(users(&keyring, "example.com/x"), Vec::<String>::new());
        let reference = Reference::parse("example.com:5000/team/app").unwrap();
        assert_eq!(keyring.of(&reference)[0].password, "pass:word");
    }

    #[test]
    fn wrong_ones_are_told_and_older_ones_taken() {
        let mut keyring = Keyring::default();
        assert!(keyring.add_config_json(b"{").unwrap_err().starts_with(".dockerconfigjson: "));
        let error = keyring.add_config_json(br#"{"auths":{"a.b":{"auth":"!"}}}"#).unwrap_err();
        assert!(error.contains("auths[a.b].auth"), "{error}");
        keyring.add_config(br#"{"a.b":{"username":"u","password":"p"}}"#).unwrap();
        assert_eq!(users(&keyring, "a.b/c"), ["u"]);
    }
}
