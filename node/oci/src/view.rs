//! The files of an image as a directory: its layers, unpacked once, and read-only views of them that
//! outlive the image's name.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::mount::MountFlags;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tonic::metadata::{Ascii, MetadataValue};

use crate::client::{Containerd, LONG, SHORT, call, leased, namespaced};
use crate::error::{Error, Result};
use crate::lease::{Lease, rfc3339};
use crate::proto::containerd::services::content::v1 as content;
use crate::proto::containerd::services::diff::v1 as diff;
use crate::proto::containerd::services::images::v1 as images;
use crate::proto::containerd::services::snapshots::v1 as snapshots;
use crate::proto::containerd::types;
use content::content_client::ContentClient;
use diff::diff_client::DiffClient;
use images::images_client::ImagesClient;
use snapshots::snapshots_client::SnapshotsClient;

/// Manifests and configurations are a few kilobytes.
const DOCUMENT: usize = 8 << 20;
/// How long a layer may take to be unpacked.
const UNPACK: Duration = Duration::from_secs(30 * 60);

type Labels = BTreeMap<String, String>;

/// A view of an image that containerd keeps until it is removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    pub key: String,
    pub labels: Labels,
}

/// How a view is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ViewMount {
    kind: String,
    source: String,
    options: Vec<String>,
}

/// An index, or a manifest.
#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    manifests: Vec<Descriptor>,
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

#[derive(Deserialize, Clone)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    #[serde(default)]
    size: i64,
}

#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

/// What a directory is made of.
struct Layers {
    config: String,
    layers: Vec<Descriptor>,
    diff_ids: Vec<String>,
}

/// The name of each layer's snapshot with all below it.
fn chain(diff_ids: &[String]) -> Vec<String> {
    let mut chain: Vec<String> = Vec::new();
    for id in diff_ids {
        let name = match chain.last() {
            None => id.clone(),
            Some(below) => {
                let hash = Sha256::digest(format!("{below} {id}"));
                hash.iter().fold("sha256:".to_owned(), |text, byte| text + &format!("{byte:02x}"))
            }
        };
        chain.push(name);
    }
    chain
}

fn mounts(mounts: Vec<types::Mount>) -> Vec<ViewMount> {
    mounts.into_iter().map(|it| ViewMount { kind: it.r#type, source: it.source, options: it.options }).collect()
}

impl Containerd {
    /// Makes a view of an image (by its id) under a key of the caller's; asked again it is the same one.
    /// What is not unpacked yet is unpacked, which takes as long as it takes.
    pub async fn view_image(
        &self,
        image: &str,
        snapshotter: &str,
        key: &str,
        labels: &Labels,
    ) -> Result<Vec<ViewMount>> {
        let request = namespaced(snapshots::MountsRequest { snapshotter: snapshotter.into(), key: key.into() });
        match call("Snapshots.Mounts", SHORT, self.snapshots().mounts(request)).await {
            Err(error) if error.is_not_found() => {}
            other => return other.map(|answer| mounts(answer.mounts)),
        }
        let lease = Lease::take(self, "view").await?;
        let made = self.view_leased(image, snapshotter, key, labels, &lease.header).await;
        lease.give_back().await;
        made
    }

    async fn view_leased(
        &self,
        image: &str,
        snapshotter: &str,
        key: &str,
        labels: &Labels,
        lease: &MetadataValue<Ascii>,
    ) -> Result<Vec<ViewMount>> {
        let layers = self.layers(image).await?;
        let parent = self.unpack(&layers, snapshotter, lease).await?;
        let mut labels = labels.clone();
        // Nobody else refers to it.
        labels.insert("containerd.io/gc.root".into(), rfc3339(SystemTime::now()));
        let request =
            snapshots::ViewSnapshotRequest { snapshotter: snapshotter.into(), key: key.into(), parent, labels };
        match call("Snapshots.View", LONG, self.snapshots().view(leased(request, lease))).await {
            // Made meanwhile.
            Err(error) if error.is_already_exists() => {
                let request = snapshots::MountsRequest { snapshotter: snapshotter.into(), key: key.into() };
                let answer = call("Snapshots.Mounts", SHORT, self.snapshots().mounts(namespaced(request))).await?;
                Ok(mounts(answer.mounts))
            }
            made => made.map(|answer| mounts(answer.mounts)),
        }
    }

    /// The views that carry a label.
    pub async fn list_views(&self, snapshotter: &str, label: (&str, &str)) -> Result<Vec<View>> {
        let filter = format!("labels.{:?}=={:?}", label.0, label.1);
        let request = snapshots::ListSnapshotsRequest { snapshotter: snapshotter.into(), filters: vec![filter] };
        let name = "Snapshots.List";
        let mut answers = call(name, SHORT, self.snapshots().list(namespaced(request))).await?;
        let mut views = Vec::new();
        while let Some(answer) = answers.message().await.map_err(|status| Error::rpc(name, &status))? {
            views.extend(answer.info.into_iter().map(|info| View { key: info.name, labels: info.labels }));
        }
        Ok(views)
    }

    /// To be called once nothing of it is mounted. One that is gone is fine.
    pub async fn remove_view(&self, snapshotter: &str, key: &str) -> Result<()> {
        let request = snapshots::RemoveSnapshotRequest { snapshotter: snapshotter.into(), key: key.into() };
        let removed = call("Snapshots.Remove", LONG, self.snapshots().remove(namespaced(request))).await;
        crate::sandbox::gone_is_fine(removed)
    }

    fn snapshots(&self) -> SnapshotsClient<tonic::transport::Channel> {
        SnapshotsClient::new(self.channel())
    }

    async fn layers(&self, image: &str) -> Result<Layers> {
        let get = namespaced(images::GetImageRequest { name: image.to_owned() });
        let answer = call("Images.Get", SHORT, ImagesClient::new(self.channel()).get(get)).await?;
        let target = answer.image.and_then(|image| image.target);
        let target = target.ok_or(Error::Answer { call: "Images.Get", missing: "target" })?;
        let mut manifest: Document = self.document(&target.digest).await?;
        let mut found = manifest.config.take();
        if found.is_none() {
            // An image's id is its configuration's digest: that tells which platform's it is.
            for one in std::mem::take(&mut manifest.manifests) {
                match self.document::<Document>(&one.digest).await {
                    Ok(of) if of.config.as_ref().is_some_and(|config| config.digest == image) => {
                        found.clone_from(&of.config);
                        manifest = of;
                        break;
                    }
                    Ok(_) => {}
                    // Of other platforms, which were not pulled.
                    Err(error) if error.is_not_found() => {}
                    Err(error) => return Err(error),
                }
            }
        }
        let config = found.ok_or(Error::Answer { call: "Content.Read", missing: "manifest of this platform" })?.digest;
        let diff_ids = self.document::<Config>(&config).await?.rootfs.diff_ids;
        if diff_ids.len() != manifest.layers.len() {
            return Err(Error::Answer { call: "Content.Read", missing: "layer for each diff_id" });
        }
        Ok(Layers { config, layers: manifest.layers, diff_ids })
    }

    async fn document<T: for<'de> Deserialize<'de>>(&self, digest: &str) -> Result<T> {
        let name = "Content.Read";
        let request = namespaced(content::ReadContentRequest { digest: digest.to_owned(), offset: 0, size: 0 });
        let mut answers = call(name, SHORT, ContentClient::new(self.channel()).read(request)).await?;
        let mut bytes = Vec::new();
        while let Some(answer) = answers.message().await.map_err(|status| Error::rpc(name, &status))? {
            bytes.extend_from_slice(&answer.data);
            if bytes.len() > DOCUMENT {
                return Err(Error::Answer { call: name, missing: "document of a usual size" });
            }
        }
        serde_json::from_slice(&bytes).map_err(|_| Error::Answer { call: name, missing: "valid JSON" })
    }

    /// Unpacks the layers that are not; gives the name of the topmost.
    async fn unpack(&self, image: &Layers, snapshotter: &str, lease: &MetadataValue<Ascii>) -> Result<String> {
        let chain = chain(&image.diff_ids);
        let mut parent = String::new();
        for ((name, layer), diff_id) in chain.iter().zip(&image.layers).zip(&image.diff_ids) {
            let stat = snapshots::StatSnapshotRequest { snapshotter: snapshotter.into(), key: name.clone() };
            match call("Snapshots.Stat", SHORT, self.snapshots().stat(leased(stat, lease))).await {
                Err(error) if error.is_not_found() => {
                    self.unpack_layer(snapshotter, &parent, name, layer, diff_id, lease).await?;
                }
                other => drop(other?),
            }
            parent.clone_from(name);
        }
        if parent.is_empty() {
            return Err(Error::Answer { call: "Content.Read", missing: "layers" });
        }
        // As after any unpacking: the image keeps what it was unpacked to.
        let labels = Labels::from([(format!("containerd.io/gc.ref.snapshot.{snapshotter}"), parent.clone())]);
        let paths = labels.keys().map(|label| format!("labels.{label}")).collect();
        let info = Some(content::Info { digest: image.config.clone(), size: 0, labels });
        let update = content::UpdateRequest { info, update_mask: Some(prost_types::FieldMask { paths }) };
        call("Content.Update", SHORT, ContentClient::new(self.channel()).update(leased(update, lease))).await?;
        Ok(parent)
    }

    async fn unpack_layer(
        &self,
        snapshotter: &str,
        parent: &str,
        name: &str,
        layer: &Descriptor,
        diff_id: &str,
        lease: &MetadataValue<Ascii>,
    ) -> Result<()> {
        let key = format!("sampan-unpack-{} {name}", uuid::Uuid::new_v4());
        let prepare = snapshots::PrepareSnapshotRequest {
            snapshotter: snapshotter.into(),
            key: key.clone(),
            parent: parent.into(),
            labels: Labels::new(),
        };
        let prepared = call("Snapshots.Prepare", LONG, self.snapshots().prepare(leased(prepare, lease))).await?;
        let fill = async {
            let apply = diff::ApplyRequest {
                diff: Some(types::Descriptor {
                    media_type: layer.media_type.clone(),
                    digest: layer.digest.clone(),
                    size: layer.size,
                    annotations: Labels::new(),
                }),
                mounts: prepared.mounts,
            };
            let applied =
                call("Diff.Apply", UNPACK, DiffClient::new(self.channel()).apply(leased(apply, lease))).await?;
            if applied.applied.is_none_or(|applied| applied.digest != diff_id) {
                return Err(Error::Answer { call: "Diff.Apply", missing: "digest that the configuration names" });
            }
            let commit = snapshots::CommitSnapshotRequest {
                snapshotter: snapshotter.into(),
                name: name.into(),
                key: key.clone(),
                labels: Labels::new(),
            };
            call("Snapshots.Commit", LONG, self.snapshots().commit(leased(commit, lease))).await.map(drop)
        };
        let Err(error) = fill.await else { return Ok(()) };
        let _ = self.remove_view(snapshotter, &key).await;
        // Somebody else was first.
        if error.is_already_exists() { Ok(()) } else { Err(error) }
    }
}

/// Mounts a view at a directory, for reading only. Blocks.
pub fn mount_view(mounts: &[ViewMount], target: &Path) -> Result<()> {
    let [mount] = mounts else {
        return Err(Error::Answer { call: "Snapshots.View", missing: "single mount" });
    };
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    let at = |error: rustix::io::Errno| Error::io(target)(error.into());
    if mount.kind == "bind" || mount.options.iter().any(|option| matches!(option.as_str(), "bind" | "rbind")) {
        rustix::mount::mount_bind(mount.source.as_str(), target).map_err(at)?;
        return rustix::mount::mount_remount(target, flags | MountFlags::BIND, "").map_err(|error| {
            let _ = rustix::mount::unmount(target, rustix::mount::UnmountFlags::DETACH);
            at(error)
        });
    }
    let (base, options) = shortened(&mount.options);
    let target = std::path::absolute(target).map_err(Error::io(target))?;
    let data = CString::new(options.join(",")).map_err(|error| Error::io(&target)(error.into()))?;
    let (kind, source, place) = (mount.kind.clone(), mount.source.clone(), target.clone());
    // With a directory of its own to be in, which is not the process's.
    let mounting = std::thread::spawn(move || -> std::io::Result<()> {
        // SAFETY: file descriptors stay shared; what is not is this thread's directory alone.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS)? };
        std::env::set_current_dir(base)?;
        Ok(rustix::mount::mount(source, place, kind, flags, data.as_c_str())?)
    });
    let mounted = mounting.join().unwrap_or_else(|_| Err(std::io::Error::other("the thread that mounts ended")));
    mounted.map_err(Error::io(&target))
}

/// A mount's options are one page at most, which the paths of many layers are not: they are told from
/// the directory that all of them lie in.
fn shortened(options: &[String]) -> (PathBuf, Vec<String>) {
    const LOWER: &str = "lowerdir=";
    let none = (PathBuf::from("/"), options.iter().filter(|it| !matches!(it.as_str(), "ro" | "rw")).cloned().collect());
    let lower = options.iter().find_map(|option| option.strip_prefix(LOWER)).unwrap_or_default();
    let dirs: Vec<&str> = lower.split(':').collect();
    let first = dirs.first().map(Path::new).filter(|first| first.is_absolute() && dirs.len() > 1);
    let holds = |base: &&Path| dirs.iter().all(|dir| Path::new(dir).starts_with(base));
    let Some(base) = first.and_then(|first| first.ancestors().skip(1).find(holds)) else { return none };
    let relative: Option<Vec<&str>> =
        dirs.iter().map(|dir| Path::new(dir).strip_prefix(base).ok()?.to_str().filter(|dir| !dir.is_empty())).collect();
    let Some(relative) = relative else { return none };
    let lower = format!("{LOWER}{}", relative.join(":"));
    let options = none.1.into_iter().map(|it| if it.starts_with(LOWER) { lower.clone() } else { it }).collect();
    (base.to_owned(), options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_named_with_all_below_it() {
        let ids = ["sha256:aa", "sha256:bb", "sha256:cc"].map(str::to_owned);
        let names = chain(&ids);
        assert_eq!(names.first(), Some(&ids[0]));
        // echo -n "sha256:aa sha256:bb" | sha256sum
        let second = Sha256::digest("sha256:aa sha256:bb").iter().fold(String::new(), |t, b| t + &format!("{b:02x}"));
        assert_eq!(names.get(1), Some(&format!("sha256:{second}")));
        assert_eq!(names.len(), 3);
        assert_ne!(chain(&ids[1..]).last(), names.last());
    }

    #[test]
    fn paths_of_layers_are_told_from_where_they_lie() {
        let options = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let of = |texts: &[&str]| {
            let (base, options) = shortened(&options(texts));
            (base.display().to_string(), options.join(","))
        };
        let told = |base: &str, text: &str| (base.to_owned(), text.to_owned());
        assert_eq!(
            of(&["index=off", "lowerdir=/a/s/2/fs:/a/s/1/fs", "ro"]),
            told("/a/s", "index=off,lowerdir=2/fs:1/fs")
        );
        assert_eq!(of(&["lowerdir=/a/1:/b/1"]), told("/", "lowerdir=a/1:b/1"));
        // Nothing that can be shortened, or that must not be: one directory may not be told as none.
        assert_eq!(of(&["lowerdir=/a/1"]), told("/", "lowerdir=/a/1"));
        assert_eq!(of(&["lowerdir=/a/1:/a"]), told("/", "lowerdir=/a/1:/a"));
        assert_eq!(of(&["ro"]), told("/", ""));
    }
}
