//! From a program's name in an image to a compiled module in the node's cache.

use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rustix::fs::{FlockOperation, OFlags};
use sampan_wasm::{Cache, Module, compile};
use sha2::{Digest as _, Sha256};

use crate::mount;
use crate::oci::Process;
use crate::oci::Spec;

/// The node's cache of compiled modules, shared with the shims of other pods.
pub struct Modules {
    cache: Cache,
    locks: PathBuf,
}

impl Modules {
    pub fn open(dir: &Path) -> anyhow::Result<Modules> {
        let cache = Cache::open(dir.join("modules"), compile::Options::default())?;
        let locks = dir.join("locks");
        std::fs::create_dir_all(&locks).with_context(|| locks.display().to_string())?;
        Ok(Modules { cache, locks })
    }

    pub fn dir(&self) -> &Path {
        self.cache.dir()
    }

    /// Finds the program in a root and compiles it, unless some shim did before.
    pub async fn of(&self, root: &Path, spec: &Spec) -> anyhow::Result<Module> {
        let (name, file) = find(root, &spec.process)?;
        let file = File::from(file);
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let source = file.try_clone()?;
        let digest = tokio::task::spawn_blocking(move || digest(source)).await?.with_context(|| name.clone())?;
        if let Some(module) = self.cache.get(&digest) {
            return Ok(module);
        }
        let lock = self.locks.join(&digest);
        let held = tokio::task::spawn_blocking({
            let lock = lock.clone();
            move || -> anyhow::Result<File> {
                let file = File::create(&lock)?;
                rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
                Ok(file)
            }
        });
        let held = held.await?.with_context(|| lock.display().to_string())?;
        let module = self.cache.ensure(&digest, &path).await;
        // Who waits for the lock finds the module; who comes later needs no lock.
        let _ = std::fs::remove_file(&lock);
        drop(held);
        module.map_err(|error| anyhow::anyhow!("process.args[0] ({name}): {error}"))
    }
}

fn digest(mut file: File) -> std::io::Result<String> {
    let mut feed = Sha256::new();
    std::io::copy(&mut file, &mut feed)?;
    Ok(feed.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Opens the program as `exec` would, in the container's root.
fn find(root: &Path, process: &Process) -> anyhow::Result<(String, OwnedFd)> {
    let name = process.args.first().filter(|name| !name.is_empty());
    let name = name.context("process.args: empty; command or entrypoint has to name the .wasm file in the image")?;
    let directory = mount::open_root(root)?;
    let cwd = Path::new(if process.cwd.is_empty() { "/" } else { &process.cwd });
    let candidates: Vec<PathBuf> = match name.contains('/') {
        true => vec![cwd.join(name)],
        false => {
            let path = process.env.iter().find_map(|entry| entry.strip_prefix("PATH="));
            let path = path.unwrap_or_default().split(':').filter(|dir| !dir.is_empty());
            path.chain(["/", process.cwd.as_str()]).map(|dir| Path::new(dir).join(name)).collect()
        }
    };
    for candidate in candidates {
        // Opened without waiting: it may be a FIFO.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let Ok(file) = mount::open(directory.as_fd(), &candidate, flags) else { continue };
        let is_file = rustix::fs::fstat(&file)
            .is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::RegularFile);
        if is_file {
            return Ok((name.clone(), file));
        }
    }
    anyhow::bail!("process.args[0]: {name:?} is no file in the image; command or entrypoint has to name the .wasm file")
}
