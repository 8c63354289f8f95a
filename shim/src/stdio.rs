//! The FIFOs or files that containerd reads a container's output from.

use std::fs::File;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use nix::libc;

use crate::oci::User;

/// What containerd names; empty: none.
#[derive(Debug, Clone, Default)]
pub struct Stdio {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
    pub terminal: bool,
}

/// How long containerd may take to open its end.
const READER: Duration = Duration::from_secs(10);

/// Both streams as files below a container's directory, where the host may open them.
#[derive(Debug, Default)]
pub struct Streams {
    /// Names below the directory; empty: the stream goes nowhere.
    pub stdout: String,
    pub stderr: String,
    /// Open until the container has ended: between the guest's last byte and the reader's look
    /// nothing is lost, and the reader sees no end before that.
    pub held: Vec<File>,
}

impl Stdio {
    /// Places both streams in `dir`, writable for `user`.
    pub async fn place(&self, dir: &Path, user: User) -> anyhow::Result<Streams> {
        let mut streams = Streams::default();
        for (name, uri) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            let Some(path) = path(uri).with_context(|| name.to_owned())? else { continue };
            let target = dir.join(name);
            let task = tokio::task::spawn_blocking({
                let path = path.clone();
                move || prepare(&path, &target, user)
            });
            task.await?.with_context(|| format!("{name}: {uri}"))?;
            if is_fifo(&path) {
                streams.held.push(hold(&path).await.with_context(|| format!("{name}: {uri}"))?);
            }
            match name {
                "stdout" => streams.stdout = name.into(),
                _ => streams.stderr = name.into(),
            }
        }
        // A terminal is one stream.
        if self.terminal && streams.stderr.is_empty() {
            streams.stderr.clone_from(&streams.stdout);
        }
        Ok(streams)
    }
}

fn path(uri: &str) -> anyhow::Result<Option<PathBuf>> {
    match uri.split_once("://") {
        _ if uri.is_empty() => Ok(None),
        None | Some(("fifo", _)) => Ok(Some(uri.trim_start_matches("fifo://").into())),
        Some(("file", path)) => Ok(Some(path.split('?').next().unwrap_or_default().into())),
        Some((scheme, _)) => {
            anyhow::bail!("{uri}: logs by {scheme} are not supported; a FIFO or a file:// is")
        }
    }
}

fn is_fifo(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_fifo())
}

fn prepare(path: &Path, target: &Path, user: User) -> anyhow::Result<()> {
    if !path.exists() {
        File::options().create(true).append(true).mode(0o640).open(path)?;
    }
    // As other runtimes do: the file is the container's standard output.
    std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid))?;
    crate::mount::bind_file(path, target)
}

/// Opens the writing end, which waits for the reader, and then both ends.
async fn hold(path: &Path) -> anyhow::Result<File> {
    let both = |path: &Path| File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path);
    let writing = tokio::task::spawn_blocking({
        let path = path.to_owned();
        move || File::options().write(true).open(path)
    });
    match tokio::time::timeout(READER, writing).await {
        Ok(opened) => {
            let _reader_is_there = opened??;
            Ok(both(path)?)
        }
        // Nobody reads: opening both ends lets the waiting thread go.
        Err(_) => {
            tracing::warn!(path = %path.display(), "nobody reads");
            Ok(both(path)?)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_containerd_names() {
        assert_eq!(path("").unwrap(), None);
        assert_eq!(path("/run/f").unwrap(), Some("/run/f".into()));
        assert_eq!(path("file:///var/log/x?a=b").unwrap(), Some("/var/log/x".into()));
        assert!(path("binary:///bin/logger?id=1").unwrap_err().to_string().contains("logs by binary"));
    }
}
