//! Linux images, made here, for clusters that run them.

use sampan_oci::layout::Layout;
use sampan_oci::testing;

use crate::Cluster;

/// Whether Linux containers can be tried here; if not, says why.
pub fn runs_linux() -> bool {
    match testing::unavailable() {
        None => true,
        Some(why) => {
            println!("skipped: {why}");
            false
        }
    }
}

impl Cluster {
    /// Imports an image into the cluster's nodes.
    pub fn import_linux(&self, layout: &Layout, reference: &str) {
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("image.tar");
        testing::save(layout, &archive).unwrap();
        self.sampan(&["image", "import", archive.to_str().unwrap(), "--as", reference]);
    }

    /// Imports busybox as `localhost/busybox:1`.
    pub fn import_busybox(&self) {
        self.import_linux(&testing::busybox().unwrap(), "localhost/busybox:1");
    }
}
