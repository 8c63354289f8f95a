//! Getting an image for a container: by its pull policy, once at a time, with the first credentials
//! that a registry takes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::registry::{self, Content, Found};
use super::{Image, Images, Keyring, Origin, Reference};

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

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    pub image: Image,
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
    slots: Semaphore,
    /// One pull of a reference at a time: who comes second finds it here.
    turns: Mutex<HashMap<Reference, Arc<tokio::sync::Mutex<()>>>>,
}

impl Puller {
    pub fn new(images: Arc<Images>) -> Self {
        Self { images, slots: Semaphore::new(PARALLEL), turns: Mutex::default() }
    }

    /// The image as the policy wants it. `pulling` is called before a registry is asked.
    pub async fn ensure(
        &self,
        reference: &Reference,
        policy: Policy,
        keyring: &Keyring,
        pulling: impl FnOnce() + Send,
    ) -> Result<Pulled, Error> {
        if let Some(image) = self.present(reference, policy) {
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
            match self.present(reference, policy) {
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

    fn present(&self, reference: &Reference, policy: Policy) -> Option<Image> {
        let image = self.images.find(reference)?;
        // What was imported by hand comes from no registry, and a digest cannot mean anything else.
        let settled = image.manifest.is_none() || reference.digest.is_some();
        (policy != Policy::Always || settled).then_some(image)
    }

    async fn pull(&self, reference: &Reference, keyring: &Keyring) -> Result<Image, Error> {
        let failed =
            |problem: String| Error::Failed(format!("failed to pull and unpack image \"{reference}\": {problem}"));
        let found = resolve(reference, keyring)
            .await
            .map_err(|error| failed(format!("failed to resolve reference \"{reference}\": {error}")))?;
        let program = match &found.content {
            Content::Wasm(program) => program,
            Content::Linux => {
                return Err(failed(
                    "it is for containers of the machine's own system, and this node takes WebAssembly only".to_owned(),
                ));
            }
        };
        if let Some(image) = self.images.find(reference)
            && image.manifest.as_deref() == Some(found.digest.as_str())
        {
            return Ok(image);
        }
        let bytes = found.program(program).await.map_err(|error| failed(error.to_string()))?;
        let origin = Origin { manifest: Some(found.digest.clone()), defaults: program.defaults.clone() };
        self.images.store(reference, bytes, origin).await.map_err(|error| failed(error.to_string()))
    }
}

/// Asks with every set of credentials that fits, and as nobody where none does.
async fn resolve(reference: &Reference, keyring: &Keyring) -> Result<Found, registry::Error> {
    let mut last = None;
    for credentials in keyring.of(reference) {
        match registry::resolve(reference, Some(&credentials)).await {
            Err(error @ registry::Error::Denied(_)) => last = Some(error),
            result => return result,
        }
    }
    match last {
        Some(error) => Err(error),
        None => registry::resolve(reference, None).await,
    }
}
