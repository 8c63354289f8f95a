//! Images of the machine's own kind, in containerd.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sampan_oci::{ContainerFilter, Credentials, Image};

use super::Oci;
use crate::image::{self, Reference};

/// An image that containerd holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linux {
    /// containerd's id of it: the digest of its configuration.
    pub id: String,
    /// As a container's status names it.
    pub identity: String,
    /// Bytes, compressed.
    pub size: u64,
    /// Brought by hand: no registry is known to have it under this name.
    pub by_hand: bool,
    /// The user that it runs as where a container says nothing; none where it names one.
    pub user: Option<i64>,
    /// What it is for, if that is another machine than this.
    pub foreign: Option<String>,
}

/// An image as garbage collection sees it.
pub struct Held {
    pub id: String,
    /// With tags, and with digests.
    pub names: Vec<String>,
    pub size: u64,
    /// Brought by hand, containerd's own, or of a container.
    pub kept: bool,
}

/// What containerd has from a registry, it has with a digest too.
fn pulled<'a>(image: &'a Image, reference: &Reference) -> Option<&'a String> {
    let of =
        |digest: &&String| digest.strip_prefix(reference.repository.as_str()).is_some_and(|rest| rest.starts_with('@'));
    image.digests.iter().find(of)
}

fn is_by_hand(image: &Image, tag: &str) -> bool {
    Reference::parse(tag).is_ok_and(|reference| pulled(image, &reference).is_none())
}

fn linux(image: Image, reference: &Reference) -> Linux {
    let digest = pulled(&image, reference).cloned();
    Linux {
        by_hand: digest.is_none(),
        identity: digest.unwrap_or_else(|| image.id.clone()),
        user: match (image.uid, &image.username) {
            (None, None) => Some(0),
            (uid, _) => uid,
        },
        foreign: image.platform.filter(|platform| *platform != sampan_oci::layout::platform()),
        id: image.id,
        size: image.size,
    }
}

impl Oci {
    /// An image that is here. A containerd that does not run yet has none that count.
    pub async fn find(&self, reference: &Reference) -> Option<Linux> {
        let client = self.running()?;
        match client.image_status(&reference.to_string()).await {
            Ok(image) => image.map(|image| linux(image, reference)),
            Err(error) => {
                tracing::warn!(image = %reference, %error, "image not looked up");
                None
            }
        }
    }

    pub async fn pull(
        self: &Arc<Self>,
        reference: &Reference,
        credentials: Option<&image::Credentials>,
    ) -> Result<Linux, String> {
        let client = self.client().await.map_err(|error| format!("{error:#}"))?;
        let credentials = credentials.map(|it| Credentials {
            username: it.username.clone(),
            password: it.password.clone(),
            ..Credentials::default()
        });
        client.pull_image(&reference.to_string(), credentials.as_ref()).await.map_err(|error| error.to_string())?;
        self.find(reference).await.ok_or_else(|| "containerd has pulled it and does not have it".to_owned())
    }

    /// Brings an archive under a name.
    pub async fn import(self: &Arc<Self>, archive: &Path, reference: &Reference) -> anyhow::Result<Linux> {
        let client = self.client().await?;
        client.import(archive, &reference.to_string()).await?;
        self.find(reference).await.ok_or_else(|| anyhow::anyhow!("containerd does not have what was imported"))
    }

    /// Names and images, with those of containerd's own left out.
    pub async fn images(&self) -> Vec<(String, Linux)> {
        let Some(client) = self.running() else { return Vec::new() };
        let Ok(all) = client.list_images().await else { return Vec::new() };
        let mut named = Vec::new();
        for image in all {
            let tags: Vec<String> = image.tags.iter().filter(|tag| *tag != sampan_oci::PAUSE_IMAGE).cloned().collect();
            let of = |tag: String| Some((tag.clone(), linux(image.clone(), &Reference::parse(&tag).ok()?)));
            named.extend(tags.into_iter().filter_map(of));
        }
        named.sort_by(|(one, _), (other, _)| one.cmp(other));
        named
    }

    /// All images, once each.
    pub async fn held(&self) -> Vec<Held> {
        let Some(client) = self.running() else { return Vec::new() };
        let all = client.list_images().await.unwrap_or_default();
        let Ok(containers) = client.list_containers(&ContainerFilter::default()).await else { return Vec::new() };
        let held = all.into_iter().map(|image| Held {
            kept: image.pinned
                || image.tags.iter().any(|tag| tag == sampan_oci::PAUSE_IMAGE || is_by_hand(&image, tag))
                // Also of who else uses this containerd.
                || containers.iter().any(|it| it.image == image.id || it.image_ref == image.id),
            names: image.tags.into_iter().chain(image.digests).collect(),
            id: image.id,
            size: image.size,
        });
        held.collect()
    }

    /// Where containerd has its images.
    pub async fn images_dir(&self) -> Option<PathBuf> {
        let systems = self.running()?.image_file_systems().await.ok()?;
        systems.into_iter().next().map(|system| system.mountpoint)
    }

    /// All names of the image that has this one: containerd removes an image with all of them.
    pub async fn names(&self, image: &Linux) -> Vec<String> {
        self.images().await.into_iter().filter(|(_, known)| known.id == image.id).map(|(name, _)| name).collect()
    }

    /// Takes an image away, with all its names; it is given by one of them or by its id.
    pub async fn remove_image(&self, image: &str) -> anyhow::Result<()> {
        if let Some(client) = self.running() {
            client.remove_image(image).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_was_brought_by_hand_stays_so_when_a_registry_has_it_too() {
        let image = Image {
            id: "sha256:1".into(),
            tags: vec!["localhost/app:v1".into(), "registry.example/app:v1".into()],
            digests: vec!["registry.example/app@sha256:2".into()],
            size: 1,
            uid: None,
            username: None,
            pinned: false,
            platform: None,
            config: None,
        };
        let of = |name: &str| linux(image.clone(), &Reference::parse(name).unwrap());
        assert!(of("localhost/app:v1").by_hand && is_by_hand(&image, "localhost/app:v1"));
        assert_eq!(of("localhost/app:v1").identity, "sha256:1");
        assert!(!of("registry.example/app:v1").by_hand && !is_by_hand(&image, "registry.example/app:v1"));
        assert_eq!(of("registry.example/app:v1").identity, "registry.example/app@sha256:2");
    }
}
