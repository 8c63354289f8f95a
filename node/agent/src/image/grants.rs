//! Who may use an image that is on the node already: everybody if it was pulled without credentials or
//! brought by hand, else who has credentials that it was pulled with. Anybody else has to ask the
//! registry, so that no tenant runs what another has bought.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Credentials, Keyring, Reference};

/// What an image was pulled with, from one repository.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Grant {
    anonymous: bool,
    /// Salted hashes of credentials.
    credentials: BTreeSet<String>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    salt: String,
    /// By the image's id, then by repository.
    images: BTreeMap<String, BTreeMap<String, Grant>>,
}

pub struct Grants {
    path: PathBuf,
    record: Mutex<Record>,
}

impl Grants {
    /// A record that cannot be read grants nothing: what it told of is asked for again.
    pub fn open(dir: &Path) -> Self {
        let path = dir.join("grants.json");
        let read = fs::read(&path).and_then(|bytes| serde_json::from_slice(&bytes).map_err(io::Error::other));
        let record = match read {
            Ok(record) => record,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(path = %path.display(), %error, "who may use which image is not known");
                }
                Record { salt: uuid::Uuid::new_v4().simple().to_string(), images: BTreeMap::new() }
            }
        };
        Self { path, record: Mutex::new(record) }
    }

    /// Whether an image that was pulled may be used by who has these credentials. Of one without a note
    /// nobody knows, so nobody may: it is seen before it is noted, and a crash may come between.
    pub fn allow(&self, id: &str, reference: &Reference, keyring: &Keyring) -> bool {
        let record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        let grant = record.images.get(id).and_then(|image| image.get(&reference.repository));
        let has =
            |credentials: &Credentials, grant: &Grant| grant.credentials.contains(&hash(&record.salt, credentials));
        grant.is_some_and(|grant| grant.anonymous || keyring.of(reference).iter().any(|it| has(it, grant)))
    }

    /// Whether an image was pulled by this node.
    pub fn knows(&self, id: &str) -> bool {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).images.contains_key(id)
    }

    /// An image was pulled.
    pub fn note(&self, id: &str, reference: &Reference, credentials: Option<&Credentials>) {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        let hash = credentials.map(|it| hash(&record.salt, it));
        let grants = record.images.entry(id.to_owned()).or_default();
        let grant = grants.entry(reference.repository.clone()).or_default();
        let news = match hash {
            None => !std::mem::replace(&mut grant.anonymous, true),
            Some(hash) => grant.credentials.insert(hash),
        };
        if news && let Err(error) = self.write(&record) {
            tracing::warn!(path = %self.path.display(), %error, "who may use an image is not kept");
        }
    }

    /// An image is gone.
    pub fn forget(&self, id: &str) {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        if record.images.remove(id).is_some()
            && let Err(error) = self.write(&record)
        {
            tracing::warn!(path = %self.path.display(), %error, "who may use an image is not kept");
        }
    }

    fn write(&self, record: &Record) -> io::Result<()> {
        let temporary = self.path.with_extension("new");
        let bytes = serde_json::to_vec(record).map_err(io::Error::other)?;
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, &self.path)?;
        let dir = self.path.parent().unwrap_or(Path::new("."));
        fs::File::open(dir)?.sync_all()
    }
}

fn hash(salt: &str, credentials: &Credentials) -> String {
    let Credentials { username, password } = credentials;
    let digest = Sha256::digest(format!("{salt}\0{}\0{username}{password}", username.len()));
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn keyring(password: &str) -> Keyring {
        let mut keyring = Keyring::default();
        let auths = serde_json::json!({ "auths": { "registry.example": { "username": "u", "password": password } } });
        keyring.add_config_json(auths.to_string().as_bytes()).unwrap();
        keyring
    }

    #[test]
    fn what_was_pulled_with_credentials_is_for_who_has_them() {
        let dir = tempfile::tempdir().unwrap();
        let grants = Grants::open(dir.path());
        let secret = Reference::parse("registry.example/secret:v1").unwrap();
        let other = Reference::parse("registry.example/other:v1").unwrap();
        let (mine, wrong, none) = (keyring("mine"), keyring("wrong"), Keyring::default());
        // It is seen before it is known who has brought it.
        assert!(!grants.allow("sha256:1", &secret, &none) && !grants.allow("sha256:1", &secret, &mine));
        grants.note("sha256:1", &secret, mine.of(&secret).first());
        for grants in [&grants, &Grants::open(dir.path())] {
            assert!(grants.allow("sha256:1", &secret, &mine));
            assert!(!grants.allow("sha256:1", &secret, &wrong));
            assert!(!grants.allow("sha256:1", &secret, &none));
            // The same bytes under another name are somebody else's to give.
            assert!(!grants.allow("sha256:1", &other, &mine));
        }
        let kept = fs::read_to_string(dir.path().join("grants.json")).unwrap();
        assert!(!kept.contains("mine"), "{kept}");
        grants.note("sha256:1", &other, None);
        assert!(grants.allow("sha256:1", &other, &none) && !grants.allow("sha256:1", &secret, &none));
        grants.forget("sha256:1");
        assert!(!Grants::open(dir.path()).knows("sha256:1"));
    }

    #[test]
    fn a_record_that_is_damaged_is_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("grants.json"), "{").unwrap();
        let grants = Grants::open(dir.path());
        let image = Reference::parse("registry.example/a:v1").unwrap();
        assert!(!grants.allow("sha256:1", &image, &Keyring::default()));
        grants.note("sha256:1", &image, None);
        assert!(Grants::open(dir.path()).allow("sha256:1", &image, &Keyring::default()));
    }
}
