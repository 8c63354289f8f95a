//! Getting an image for a container: by its pull policy, once at a time, with the first credentials
//! that a registry takes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::grants::Grants;
use super::program::{Content, Found};
use super::registry;
use super::source;
use super::{Credentials, Image, Images, Keyring, Origin, Reference};
use crate::oci::Oci;
use crate::oci::images::Linux;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    Always,
    IfNotPresent,
    Never,
}

impl Policy {
    /// `imagePullPolicy`, which the API server has filled in.
    pub fn of(text: Option<&str>) -> Self {
        match text {
            Some("Always") => Self::Always,
            Some("Never") => Self::Never,
            _ => Self::IfNotPresent,
        }
    }
}

/// An image that is on the node, by what runs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held {
    Wasm(Image),
    Linux(Linux),
}

/// What runs an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Wasm,
    Linux,
}

impl Held {
    /// What stays the same whatever its names are.
    fn id(&self) -> &str {
        match self {
            Self::Wasm(image) => &image.digest,
            Self::Linux(image) => &image.id,
        }
    }

    fn is_by_hand(&self) -> bool {
        match self {
            Self::Wasm(image) => image.manifest.is_none(),
            Self::Linux(image) => image.by_hand,
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Self::Wasm(_) => Kind::Wasm,
            Self::Linux(_) => Kind::Linux,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    pub image: Held,
    /// How long the registry took, and all of it with the wait for others; `None`: it was here.
    pub took: Option<(Duration, Duration)>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("image \"{0}\" is not here and its pull policy is Never")]
    Never(Reference),
    #[error("{0}")]
    Failed(String),
}

/// How many pulls run at once.
const PARALLEL: usize = 4;

pub struct Puller {
    images: Arc<Images>,
    oci: Arc<Oci>,
    grants: Grants,
    slots: Semaphore,
    /// One pull of a reference at a time: who comes second finds it here.
    turns: Mutex<HashMap<Reference, Arc<tokio::sync::Mutex<()>>>>,
}

impl Puller {
    pub fn new(images: Arc<Images>, oci: Arc<Oci>) -> Self {
        let grants = Grants::open(images.dir());
        Self { images, oci, grants, slots: Semaphore::new(PARALLEL), turns: Mutex::default() }
    }

    /// The image as the policy wants it. `pulling` is called before a registry is asked.
    pub async fn ensure(
        &self,
        reference: &Reference,
        policy: Policy,
        keyring: &Keyring,
        pulling: impl FnOnce() + Send,
    ) -> Result<Pulled, Error> {
        if let Some(image) = self.usable(reference, policy, keyring).await {
            return Ok(Pulled { image, took: None });
        }
        if policy == Policy::Never {
            return Err(Error::Never(reference.clone()));
        }
        if !reference.has_registry() {
            return Err(Error::Failed(format!(
                "image \"{reference}\" is not on this node, and localhost names no registry: bring it with `sampan image import FILE --as {reference}`"
            )));
        }
        let wanted = Instant::now();
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.entry(reference.clone()).or_default().clone()
        };
        let result = {
            let _turn = turn.lock().await;
            match self.usable(reference, policy, keyring).await {
                Some(image) => Ok(Pulled { image, took: None }),
                None => {
                    let _slot = self.slots.acquire().await;
                    pulling();
                    let begun = Instant::now();
                    let pulled = self.pull(reference, keyring).await;
                    pulled.map(|image| Pulled { image, took: Some((begun.elapsed(), wanted.elapsed())) })
                }
            }
        };
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if Arc::strong_count(&turn) <= 2 {
            turns.remove(reference);
        }
        result
    }

    /// What runs an image, found out without pulling it; none if that cannot be told now.
    pub async fn kind(&self, reference: &Reference, policy: Policy, keyring: &Keyring) -> Option<Kind> {
        if let Some(image) = self.present(reference, policy).await {
            return Some(image.kind());
        }
        if policy == Policy::Never || !reference.has_registry() {
            return None;
        }
        let (found, _) = resolve(reference, keyring).await.ok()?;
        Some(match found.content {
            Content::Wasm(_) => Kind::Wasm,
            Content::Linux => Kind::Linux,
        })
    }

    /// What is here and may be used with these credentials.
    async fn usable(&self, reference: &Reference, policy: Policy, keyring: &Keyring) -> Option<Held> {
        let image = self.present(reference, policy).await?;
        // In somebody else's containerd others bring images too, and are not asked for whom.
        let preloaded = matches!(image, Held::Linux(_)) && self.oci.which.is_given() && !self.grants.knows(image.id());
        let allowed = preloaded || image.is_by_hand() || self.grants.allow(image.id(), reference, keyring);
        allowed.then_some(image)
    }

    /// Whether this node has pulled an image.
    pub fn knows(&self, id: &str) -> bool {
        self.grants.knows(id)
    }

    /// An image is gone from the node.
    pub fn forget(&self, id: &str) {
        self.grants.forget(id);
    }

    async fn present(&self, reference: &Reference, policy: Policy) -> Option<Held> {
        // What was imported by hand comes from no registry, and a digest cannot mean anything else.
        let image = match self.images.find(reference) {
            Some(image) => Held::Wasm(image),
            None => Held::Linux(self.oci.find(reference).await?),
        };
        let settled = image.is_by_hand() || reference.digest.is_some();
        (policy != Policy::Always || settled).then_some(image)
    }

    async fn pull(&self, reference: &Reference, keyring: &Keyring) -> Result<Held, Error> {
        let failed =
            |problem: String| Error::Failed(format!("failed to pull and unpack image \"{reference}\": {problem}"));
        let (found, credentials) = resolve(reference, keyring)
            .await
            .map_err(|error| failed(format!("failed to resolve reference \"{reference}\": {error}")))?;
        let held = self.bring(reference, &found, credentials.as_ref()).await.map_err(failed)?;
        self.grants.note(held.id(), reference, credentials.as_ref());
        Ok(held)
    }

    async fn bring(
        &self,
        reference: &Reference,
        found: &Found,
        credentials: Option<&Credentials>,
    ) -> Result<Held, String> {
        let program = match &found.content {
            Content::Wasm(program) => program,
            Content::Linux => {
                if let Err(why) = self.oci.available() {
                    return Err(format!("it is for Linux containers, and this node runs WebAssembly only: {why}"));
                }
                return self.oci.pull(reference, credentials).await.map(Held::Linux);
            }
        };
        if let Some(image) = self.images.find(reference)
            && image.manifest.as_deref() == Some(found.digest.as_str())
        {
            return Ok(Held::Wasm(image));
        }
        let bytes = found.program(program).await.map_err(|error| error.to_string())?;
        let origin = Origin { manifest: Some(found.digest.clone()), defaults: program.defaults.clone() };
        let stored = self.images.store(reference, bytes, origin).await;
        stored.map(Held::Wasm).map_err(|error| error.to_string())
    }
}

/// Asks with every set of credentials that fits, and as nobody where none does.
async fn resolve(reference: &Reference, keyring: &Keyring) -> Result<(Found, Option<Credentials>), source::Error> {
    let mut last = None;
    for credentials in keyring.of(reference) {
        match registry::resolve(reference, Some(&credentials)).await {
            Err(error @ source::Error::Denied(_)) => last = Some(error),
            result => return result.map(|found| (found, Some(credentials))),
        }
    }
    match last {
        Some(error) => Err(error),
        None => registry::resolve(reference, None).await.map(|found| (found, None)),
    }
}
