//! The image of the process that holds a pod's namespaces: our own program, in a layout made at run time.

use std::fs::File;
use std::io::{Seek as _, Write as _};

use rustix::fs::MemfdFlags;

use crate::client::Containerd;
use crate::error::{Error, Result};
use crate::layout::{Layer, Layout};

pub const REFERENCE: &str = concat!("localhost/sampan/pause:", env!("CARGO_PKG_VERSION"));

static PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pause"));

fn layout() -> std::io::Result<Layout> {
    let mut layer = Layer::new();
    layer.file("pause", 0o755, PROGRAM)?;
    // Nobody: it needs nothing but to be there.
    Ok(Layout::new().layer(layer)?.entrypoint(&["/pause"]).user("65535:65535"))
}

/// Imports it unless this very one is here.
pub(crate) async fn ensure(client: &Containerd) -> Result<()> {
    let layout = layout().map_err(Error::io(REFERENCE))?;
    if client.image_status(REFERENCE).await?.is_some_and(|image| image.id == layout.id()) {
        return Ok(());
    }
    client.import_pause_image(REFERENCE).await
}

impl Containerd {
    /// Makes our pause image known under this name too: for a containerd that is not ours, whose
    /// [`crate::Settings::sandbox_image`] is not here and cannot be pulled.
    pub async fn import_pause_image(&self, reference: &str) -> Result<()> {
        let file = layout().and_then(|layout| in_memory(&layout)).map_err(Error::io(reference))?;
        self.import_file(file, reference.as_ref(), reference).await.map(drop)
    }
}

fn in_memory(layout: &Layout) -> std::io::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create("sampan-pause", MemfdFlags::CLOEXEC)?);
    layout.write(&mut file)?;
    file.flush()?;
    file.rewind()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn it_is_small_and_static() {
        assert!(PROGRAM.len() < 16 << 10, "{} bytes", PROGRAM.len());
        assert!(PROGRAM.starts_with(b"\x7fELF"));
        assert!(!PROGRAM.windows(8).any(|w| w == b"/ld-linu"), "asks for a dynamic loader");
    }

    #[test]
    fn it_ends_in_peace_when_asked_to() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pause");
        std::fs::write(&file, PROGRAM).unwrap();
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let mut child = std::process::Command::new(&file).spawn().unwrap();
        let status = || std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        // It sleeps nowhere but where it waits for signals; before, one would kill it.
        while !status().contains("State:\tS") {
            std::thread::yield_now();
        }
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = child.wait().unwrap();
        assert_eq!((status.code(), status.signal()), (Some(0), None));
    }
}
