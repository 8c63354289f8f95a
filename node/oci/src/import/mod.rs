//! Images out of archives: an OCI layout or what `docker save` writes, as a tar.
//!
//! Everything is checked before anything is written: digests, sizes, platform, and that the layers are
//! those the configuration names.

mod archive;
mod check;
mod content;
mod reference;

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use crate::client::Containerd;
use crate::error::{Error, Result};
use crate::image::Image;

/// How long containerd may take to hear of an image of its own.
const SEEN: Duration = Duration::from_secs(30);

impl Containerd {
    /// Makes the image of an archive known under a reference, in place of what had that name. The
    /// archive has to hold just one image for this machine. The same archive may be imported again.
    pub async fn import(&self, archive: &Path, reference: &str) -> Result<Image> {
        let path = archive.to_owned();
        let file =
            tokio::task::spawn_blocking(move || File::open(path)).await.map_err(|e| Error::io(archive)(e.into()))?;
        self.import_file(file.map_err(Error::io(archive))?, archive, reference).await
    }

    pub(crate) async fn import_file(&self, file: File, archive: &Path, reference: &str) -> Result<Image> {
        let refused = |reason: String| Error::Archive { archive: archive.to_owned(), reason };
        let name = reference::Name::parse(reference).map_err(refused)?;
        // Hashing blocks for as long as the archive is large.
        let plan = tokio::task::spawn_blocking(move || check::Plan::of(file)).await;
        let plan = plan.map_err(|e| Error::io(archive)(e.into()))?.map_err(refused)?;
        let id = plan.config.digest.clone();
        content::write(self, plan, &name).await?;
        // containerd's CRI plugin hears of it by an event of its own, and tells nobody when it has.
        let seen = async {
            loop {
                match self.image_status(&name.tagged()).await? {
                    Some(image) if image.id == id => return Ok(image),
                    _ => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        };
        let late = Error::Timeout { call: "import", seconds: SEEN.as_secs() };
        tokio::time::timeout(SEEN, seen).await.unwrap_or(Err(late))
    }
}
