//! Network namespaces held by a file: they outlive the process that made them.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{NSFS_MAGIC, statfs};

use crate::error::{Error, Result};

const OWN: &str = "/proc/thread-self/ns/net";

/// Which network namespace the calling thread is in.
pub(crate) fn current() -> Result<u64> {
    Ok(fs::metadata(OWN).map_err(Error::system("look at the own network namespace"))?.ino())
}

/// Which start of the machine this is: nothing of the kernel's outlives one.
pub(crate) fn boot() -> Result<String> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    Ok(fs::read_to_string(path).map_err(Error::file("read", path))?.trim().to_owned())
}

/// Whether a network namespace is held by this file.
pub(crate) fn held(path: &Path) -> bool {
    statfs(path).is_ok_and(|it| it.filesystem_type() == NSFS_MAGIC)
}

/// Runs `work` on a thread of its own, whose network namespace it may change.
pub(crate) async fn on_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("netns".to_owned())
        .spawn(move || {
            // A receiver that went away needs no answer.
            let _ = sender.send(work());
        })
        .map_err(Error::system("start a thread"))?;
    receiver.await.map_err(|_| Error::System {
        doing: "work in a network namespace".to_owned(),
        error: io::Error::other("the thread ended early"),
    })?
}

/// Enters the namespace at `path` on a thread of its own and runs `work` there. Sockets that it
/// opens stay in that namespace wherever they are used.
pub(crate) async fn inside<T: Send + 'static>(
    path: PathBuf,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    on_thread(move || {
        let file = File::open(&path).map_err(Error::file("open", &path))?;
        setns(&file, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| Error::file("enter the network namespace", &path)(errno.into()))?;
        work()
    })
    .await
}

/// A new network namespace, held by `path`.
pub(crate) async fn create(path: PathBuf) -> Result<()> {
    on_thread(move || {
        File::create(&path).map_err(Error::file("make", &path))?;
        unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| Error::system("make a network namespace")(errno.into()))?;
        mount(Some(OWN), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(|errno| Error::file("mount a network namespace on", &path)(errno.into()))
    })
    .await
}

/// Lets go of the namespace; it ends with the last process in it. False if nothing was held.
pub(crate) fn remove(path: &Path) -> Result<bool> {
    let held = held(path);
    if held {
        umount2(path, MntFlags::MNT_DETACH).map_err(|errno| Error::file("unmount", path)(errno.into()))?;
    }
    match fs::remove_file(path) {
        Ok(()) => Ok(held),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(held),
        Err(error) => Err(Error::file("remove", path)(error)),
    }
}

/// Writes a setting of the calling thread's network namespace, as `net/ipv4/ip_forward`.
pub(crate) fn set(name: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys").join(name);
    match fs::read_to_string(&path) {
        Ok(current) if current.trim() == value => return Ok(()),
        Ok(_) => {}
        Err(error) => return Err(Error::file("read", &path)(error)),
    }
    fs::write(&path, value).map_err(Error::file("write", &path))
}

/// Of a link; a kernel without IPv6 has nothing to turn off.
pub(crate) fn no_ipv6(link: &str) {
    let _ = set(&format!("net/ipv6/conf/{link}/disable_ipv6"), "1");
}
