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

    /// Imports an image made of Debian's packages, which the tests' set-up has made, as `localhost/NAME:v1`;
    /// false, and said so, if it has not.
    pub fn import_debian(&self, name: &str) -> bool {
        let dir = std::env::var_os("SAMPAN_IMAGES").map(std::path::PathBuf::from);
        let archive = dir.map(|dir| dir.join(format!("{name}.tar"))).filter(|archive| archive.is_file());
        let Some(archive) = archive else {
            println!("skipped: SAMPAN_IMAGES has no {name}.tar");
            return false;
        };
        self.sampan(&["image", "import", archive.to_str().unwrap(), "--as", &format!("localhost/{name}:v1")]);
        true
    }

    /// Imports busybox as `localhost/busybox:1`.
    pub fn import_busybox(&self) {
        self.import_linux(&testing::busybox().unwrap(), "localhost/busybox:1");
    }
}
