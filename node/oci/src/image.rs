//! Images that containerd holds.

use std::path::PathBuf;

use serde::Deserialize;

use crate::client::{Containerd, SHORT, call};
use crate::error::Result;
use crate::json;
use crate::proto::cri;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Digest of its configuration.
    pub id: String,
    pub tags: Vec<String>,
    /// References with a digest.
    pub digests: Vec<String>,
    /// Bytes, compressed.
    pub size: u64,
    /// The user that its configuration names, as a number or by name; both `None`: root.
    pub uid: Option<i64>,
    pub username: Option<String>,
    pub pinned: bool,
    /// As in `linux/amd64`; only of a single image's status.
    pub platform: Option<String>,
    /// Only of a single image's status.
    pub config: Option<ImageConfig>,
}

/// What a container gets that says nothing else.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ImageConfig {
    #[serde(default, deserialize_with = "nullable")]
    pub entrypoint: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub cmd: Vec<String>,
    /// `NAME=value`.
    #[serde(default, deserialize_with = "nullable")]
    pub env: Vec<String>,
    #[serde(default)]
    pub working_dir: String,
    #[serde(default)]
    pub user: String,
    #[serde(default)]
    pub stop_signal: String,
    #[serde(default, deserialize_with = "nullable")]
    pub labels: std::collections::BTreeMap<String, String>,
}

/// Tools of Docker's line write null for "none".
fn nullable<'de, D: serde::Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// What a registry wants to see; empty: not given.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    pub username: String,
    pub password: String,
    /// Base64 of `username:password`.
    pub auth: String,
    pub server_address: String,
    /// To be exchanged for a bearer token.
    pub identity_token: String,
    pub registry_token: String,
}

/// Passwords are not for logs.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .field("server_address", &self.server_address)
            .finish_non_exhaustive()
    }
}

/// Where images lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSystem {
    pub mountpoint: PathBuf,
    pub used_bytes: u64,
    pub inodes_used: u64,
}

#[derive(Deserialize)]
struct Info {
    #[serde(rename = "imageSpec")]
    spec: Option<Spec>,
}

#[derive(Deserialize)]
struct Spec {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    config: Option<ImageConfig>,
}

fn image(image: cri::Image, spec: Option<Spec>) -> Image {
    let platform = spec.as_ref().map(|spec| format!("{}/{}", spec.os, spec.architecture));
    Image {
        id: image.id,
        tags: image.repo_tags,
        digests: image.repo_digests,
        size: image.size,
        uid: image.uid.map(|v| v.value),
        username: Some(image.username).filter(|name| !name.is_empty()),
        pinned: image.pinned,
        platform: platform.filter(|platform| platform.len() > 1),
        config: spec.and_then(|spec| spec.config),
    }
}

fn spec(reference: &str) -> Option<cri::ImageSpec> {
    Some(cri::ImageSpec { image: reference.to_owned(), ..Default::default() })
}

impl Containerd {
    pub async fn list_images(&self) -> Result<Vec<Image>> {
        let request = cri::ListImagesRequest { filter: None };
        let answer = call("ListImages", SHORT, self.images().list_images(request)).await?;
        Ok(answer.images.into_iter().map(|i| image(i, None)).collect())
    }

    /// By reference or id; `None`: it is not here.
    pub async fn image_status(&self, reference: &str) -> Result<Option<Image>> {
        let request = cri::ImageStatusRequest { image: spec(reference), verbose: true };
        let answer = call("ImageStatus", SHORT, self.images().image_status(request)).await?;
        let info: Option<Info> = json::info(&answer.info);
        let spec = info.and_then(|i| i.spec);
        Ok(answer.image.map(|i| image(i, spec)))
    }

    /// Pulls it from its registry and gives its id. Takes as long as it takes: drop the future to give up.
    pub async fn pull_image(&self, reference: &str, credentials: Option<&Credentials>) -> Result<String> {
        let auth = credentials.cloned().map(|c| cri::AuthConfig {
            username: c.username,
            password: c.password,
            auth: c.auth,
            server_address: c.server_address,
            identity_token: c.identity_token,
            registry_token: c.registry_token,
        });
        let request = cri::PullImageRequest { image: spec(reference), auth, sandbox_config: None };
        let answer = self.images().pull_image(request).await;
        Ok(answer.map_err(|status| crate::Error::rpc("PullImage", &status))?.into_inner().image_ref)
    }

    /// With all its names. One that is gone is fine.
    pub async fn remove_image(&self, reference: &str) -> Result<()> {
        let request = cri::RemoveImageRequest { image: spec(reference) };
        crate::sandbox::gone_is_fine(call("RemoveImage", SHORT, self.images().remove_image(request)).await)
    }

    pub async fn image_file_systems(&self) -> Result<Vec<FileSystem>> {
        let answer = call("ImageFsInfo", SHORT, self.images().image_fs_info(cri::ImageFsInfoRequest {})).await?;
        let row = |usage: cri::FilesystemUsage| FileSystem {
            mountpoint: usage.fs_id.unwrap_or_default().mountpoint.into(),
            used_bytes: usage.used_bytes.map_or(0, |v| v.value),
            inodes_used: usage.inodes_used.map_or(0, |v| v.value),
        };
        Ok(answer.image_filesystems.into_iter().map(row).collect())
    }
}
