//! Getting an image for a container: by its pull policy, once at a time, with the first credentials
//! that a registry takes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::registry::{self, Content, Found};
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
    slots: Semaphore,
    /// One pull of a reference at a time: who comes second finds it here.
    turns: Mutex<HashMap<Reference, Arc<tokio::sync::Mutex<()>>>>,
}

impl Puller {
    pub fn new(images: Arc<Images>, oci: Arc<Oci>) -> Self {
        Self { images, oci, slots: Semaphore::new(PARALLEL), turns: Mutex::default() }
    }

    /// The image as the policy wants it. `pulling` is called before a registry is asked.
    pub async fn ensure(
        &self,
        reference: &Reference,
        policy: Policy,
        keyring: &Keyring,
        pulling: impl FnOnce() + Send,
    ) -> Result<Pulled, Error> {
        if let Some(image) = self.present(reference, policy).await {
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
            match self.present(reference, policy).await {
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

    async fn present(&self, reference: &Reference, policy: Policy) -> Option<Held> {
        // What was imported by hand comes from no registry, and a digest cannot mean anything else.
        let (by_hand, image) = match self.images.find(reference) {
            Some(image) => (image.manifest.is_none(), Held::Wasm(image)),
            None => {
                let image = self.oci.find(reference).await?;
                (image.by_hand, Held::Linux(image))
            }
        };
        let settled = by_hand || reference.digest.is_some();
        (policy != Policy::Always || settled).then_some(image)
    }

    async fn pull(&self, reference: &Reference, keyring: &Keyring) -> Result<Held, Error> {
        let failed =
            |problem: String| Error::Failed(format!("failed to pull and unpack image \"{reference}\": {problem}"));
        let (found, credentials) = resolve(reference, keyring)
            .await
            .map_err(|error| failed(format!("failed to resolve reference \"{reference}\": {error}")))?;
        let program = match &found.content {
            Content::Wasm(program) => program,
            Content::Linux => {
                if let Err(why) = self.oci.available() {
                    return Err(failed(format!(
                        "it is for Linux containers, and this node runs WebAssembly only: {why}"
                    )));
                }
                return self.oci.pull(reference, credentials.as_ref()).await.map(Held::Linux).map_err(failed);
            }
        };
        if let Some(image) = self.images.find(reference)
            && image.manifest.as_deref() == Some(found.digest.as_str())
        {
            return Ok(Held::Wasm(image));
        }
        let bytes = found.program(program).await.map_err(|error| failed(error.to_string()))?;
        let origin = Origin { manifest: Some(found.digest.clone()), defaults: program.defaults.clone() };
        let stored = self.images.store(reference, bytes, origin).await;
        stored.map(Held::Wasm).map_err(|error| failed(error.to_string()))
    }
}

/// Asks with every set of credentials that fits, and as nobody where none does.
async fn resolve(reference: &Reference, keyring: &Keyring) -> Result<(Found, Option<Credentials>), registry::Error> {
    let mut last = None;
    for credentials in keyring.of(reference) {
        match registry::resolve(reference, Some(&credentials)).await {
            Err(error @ registry::Error::Denied(_)) => last = Some(error),
            result => return result.map(|found| (found, Some(credentials))),
        }
    }
    match last {
        Some(error) => Err(error),
        None => registry::resolve(reference, None).await.map(|found| (found, None)),
    }
}
