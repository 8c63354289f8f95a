//! Files of images, shown to pods as volumes.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use sampan_oci::{Containerd, mount_view};

use super::images::Linux;
use super::{Oci, spec};
use crate::pod::empty_dir::is_mount;

/// Where containerd does not tell.
const SNAPSHOTTER: &str = "overlayfs";

impl Oci {
    /// Mounts what is in an image, for a volume of a pod.
    pub async fn show(self: &Arc<Self>, image: &Linux, pod_uid: &str, volume: &str, dir: &Path) -> anyhow::Result<()> {
        let client = self.client().await?;
        let snapshotter = snapshotter(&client).await?;
        let mut labels = self.label();
        labels.insert(spec::POD_UID.to_owned(), pod_uid.to_owned());
        let key = format!("{}/{pod_uid}/{volume}", self.node());
        let mounts = client.view_image(&image.id, &snapshotter, &key, &labels).await?;
        let dir = dir.to_owned();
        let mounted = tokio::task::spawn_blocking(move || -> anyhow::Result<()> {
            // Containers of a pod start together, and the first of them does it for all.
            static TURN: Mutex<()> = Mutex::new(());
            let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
            std::fs::create_dir_all(&dir)?;
            if !is_mount(&dir)? {
                mount_view(&mounts, &dir)?;
            }
            Ok(())
        });
        mounted.await?
    }

    /// Lets containerd forget what was shown to pods, by their uids; to be called when nothing of it is
    /// mounted.
    pub async fn hide(&self, goes: impl Fn(&str) -> bool) -> anyhow::Result<()> {
        let Some(client) = self.running() else { return Ok(()) };
        let snapshotter = snapshotter(&client).await?;
        for view in client.list_views(&snapshotter, (spec::NODE, &self.node())).await? {
            if view.labels.get(spec::POD_UID).is_some_and(|uid| goes(uid)) {
                client.remove_view(&snapshotter, &view.key).await?;
            }
        }
        Ok(())
    }
}

async fn snapshotter(client: &Containerd) -> anyhow::Result<String> {
    Ok(client.settings().await?.snapshotter.unwrap_or_else(|| SNAPSHOTTER.to_owned()))
}
