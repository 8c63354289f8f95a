//! emptyDir volumes: a directory on the node's disk, or a tmpfs each.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use super::{resources, spec};

/// Whether a volume is to lie in memory.
pub fn in_memory(source: &core::EmptyDirVolumeSource) -> bool {
    source.medium.as_deref() == Some("Memory")
}

/// Bytes that a volume in memory holds at most: no more than its own limit, than its pod has where all
/// of its containers are limited, and than the node gives pods.
pub fn memory(pod: &core::Pod, source: &core::EmptyDirVolumeSource, node: &BTreeMap<String, Quantity>) -> u64 {
    let positive = |bytes: u64| Some(bytes).filter(|bytes| *bytes > 0);
    let all = spec::containers(pod).all(|(container, _)| resources::enforced(container).0 > 0);
    let of_pod = all.then(|| u64::try_from(resources::limited(pod, "memory") / 1_000_000_000).unwrap_or(u64::MAX));
    [
        source.size_limit.as_ref().map(resources::value).and_then(positive),
        of_pod.and_then(positive),
        node.get("memory").map(resources::value).and_then(positive),
    ]
    .into_iter()
    .flatten()
    .min()
    .unwrap_or(0)
}

/// What became of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Made {
    Done,
    /// It was to lie in memory, and who asks may mount nothing: it is new, and on the disk.
    OnDisk,
}

/// Makes a volume unless it is there: what containers have made of it since is the pod's own. `memory`:
/// how much of that it is to hold, if it is to lie there.
pub fn make(dir: &Path, memory: Option<u64>, owner: Option<(u32, u32)>) -> io::Result<Made> {
    if let Some(parent) = dir.parent() {
        fs::create_dir_all(parent)?;
    }
    // An agent may end, or the machine, at any moment: what is there is as it is to be.
    let new = match fs::symlink_metadata(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => make_on_disk(dir, owner).map(|()| true)?,
        found => found.map(|_| false)?,
    };
    let mounted = match memory {
        Some(size) if new || !is_mount(dir)? && fs::read_dir(dir)?.next().is_none() => mount_memory(dir, size, owner)?,
        _ => false,
    };
    Ok(if new && memory.is_some() && !mounted { Made::OnDisk } else { Made::Done })
}

fn make_on_disk(dir: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    // No volume has a dot in its name.
    let half = dir.with_file_name(format!(".half-{name}"));
    match fs::create_dir(&half) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made?,
    }
    fs::set_permissions(&half, fs::Permissions::from_mode(0o777))?;
    if let Some((user, group)) = owner {
        chown(&half, Some(user), Some(group))?;
        // What is made in it is the group's too, after the change of owner, which would take that away.
        fs::set_permissions(&half, fs::Permissions::from_mode(0o2777))?;
    }
    fs::rename(half, dir)
}

/// Whether something is mounted at a directory.
pub fn is_mount(dir: &Path) -> io::Result<bool> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    match statx(CWD, dir, flags, StatxFlags::empty()) {
        Ok(found) if found.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) => {
            return Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT));
        }
        Ok(_) | Err(Errno::NOSYS | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    // Kernels before 5.8 do not say; a mount from the same disk is not seen then.
    let parent = dir.parent().unwrap_or(dir);
    Ok(fs::symlink_metadata(dir)?.dev() != fs::symlink_metadata(parent)?.dev())
}

/// False: it may not be.
fn mount_memory(dir: &Path, size: u64, owner: Option<(u32, u32)>) -> io::Result<bool> {
    // It is as /tmp is, like the kubelet's.
    let own = owner.map_or("mode=1777".to_owned(), |(user, group)| format!("mode=3777,uid={user},gid={group}"));
    let mut last = Errno::INVAL;
    // Secrets that are put there should not come to a disk; kernels before 6.4 cannot promise that.
    for more in [",noswap", ""] {
        let options = CString::new(format!("size={size},{own}{more}"))?;
        match mount("tmpfs", dir, "tmpfs", MountFlags::empty(), options.as_c_str()) {
            Ok(()) => return Ok(true),
            Err(Errno::PERM) => return Ok(false),
            Err(error) => last = error,
        }
        if last != Errno::INVAL {
            break;
        }
    }
    Err(last.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;
    use crate::pod::mounts;

    /// A directory that goes with what is mounted in it.
    struct Dir(tempfile::TempDir);

    impl Dir {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn join(&self, name: &str) -> std::path::PathBuf {
            self.0.path().join(name)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = mounts::remove(self.0.path());
        }
    }

    #[test]
    fn the_smallest_limit_counts() {
        let size = |size: serde_json::Value, limits: &[serde_json::Value]| {
            let containers: Vec<_> =
                limits.iter().map(|limits| json!({ "name": "a", "resources": { "limits": limits } })).collect();
            let pod: core::Pod = serde_json::from_value(json!({ "spec": { "containers": containers } })).unwrap();
            let source: core::EmptyDirVolumeSource =
                serde_json::from_value(json!({ "medium": "Memory", "sizeLimit": size })).unwrap();
            memory(&pod, &source, &BTreeMap::from([("memory".to_owned(), Quantity("1Gi".to_owned()))])) >> 20
        };
        let limit = json!({ "memory": "64Mi" });
        assert_eq!(size(json!(null), &[json!({})]), 1024);
        assert_eq!(size(json!("16Mi"), std::slice::from_ref(&limit)), 16);
        assert_eq!(size(json!("100Mi"), std::slice::from_ref(&limit)), 64);
        assert_eq!(size(json!(null), &[limit.clone(), limit.clone()]), 128);
        // One that has no limit may use what there is.
        assert_eq!(size(json!("2Gi"), &[limit, json!({})]), 1024);
        assert_eq!(size(json!("0"), &[json!({})]), 1024);
    }

    #[test]
    fn a_volume_in_memory_is_small_and_goes_without_a_trace() {
        let dir = Dir::new();
        let pod = dir.join("pod");
        let volume = pod.join("volumes/fast");
        if make(&volume, Some(1 << 20), None).unwrap() == Made::OnDisk {
            assert!(!rustix::process::geteuid().is_root(), "root can mount");
            assert_eq!(make(&volume, Some(1 << 20), None).unwrap(), Made::Done, "told once");
            return;
        }
        assert!(is_mount(&volume).unwrap());
        assert_eq!(fs::metadata(&volume).unwrap().permissions().mode() & 0o7777, 0o1777);
        fs::write(volume.join("file"), vec![0; 1 << 19]).unwrap();
        assert!(fs::write(volume.join("more"), vec![0; 1 << 20]).is_err(), "it holds a mebibyte");
        // Asked again it is as it was.
        make(&volume, Some(1 << 20), Some((1, 1))).unwrap();
        assert_eq!(fs::read(volume.join("file")).unwrap().len(), 1 << 19);
        assert_eq!(fs::metadata(&volume).unwrap().uid(), 0);
        mounts::remove(&pod).unwrap();
        assert!(!pod.exists() && !sampan_oci::is_mounted_below(&pod).unwrap());
    }

    #[test]
    fn what_is_mounted_late_is_mounted() {
        let dir = Dir::new();
        let volume = dir.join("fast");
        // As whoever ended in between leaves it.
        fs::create_dir(&volume).unwrap();
        make(&volume, Some(1 << 20), None).unwrap();
        assert_eq!(is_mount(&volume).unwrap(), rustix::process::geteuid().is_root());
        // A directory in use is nothing to mount over.
        let used = dir.join("used");
        fs::create_dir(&used).unwrap();
        fs::write(used.join("file"), "").unwrap();
        make(&used, Some(1 << 20), None).unwrap();
        assert!(!is_mount(&used).unwrap());
    }

    #[test]
    fn the_groups_own() {
        let dir = Dir::new();
        let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        make(&dir.join("a"), None, Some(own)).unwrap();
        make(&dir.join("b"), None, None).unwrap();
        let mode = |name: &str| fs::metadata(dir.join(name)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("a"), mode("b")), (0o2777, 0o777));
        // As whoever ended half-way leaves it.
        fs::create_dir(dir.join(".half-c")).unwrap();
        fs::set_permissions(dir.join(".half-c"), fs::Permissions::from_mode(0o700)).unwrap();
        make(&dir.join("c"), None, Some(own)).unwrap();
        assert_eq!(mode("c"), 0o2777);
        assert_eq!(fs::read_dir(dir.0.path()).unwrap().count(), 3);
        if own.0 != 0 {
            return;
        }
        for name in ["new", "late"] {
            let volume = dir.join(name);
            if name == "late" {
                fs::create_dir(&volume).unwrap();
            }
            make(&volume, Some(1 << 20), Some((3, 4))).unwrap();
            let found = fs::metadata(&volume).unwrap();
            assert_eq!((found.uid(), found.gid(), mode(name)), (3, 4, 0o3777), "{name}");
        }
    }

    #[test]
    fn what_is_bound_from_the_same_disk_is_a_mount() {
        let dir = Dir::new();
        let (from, to) = (dir.join("from"), dir.join("to"));
        fs::create_dir(&from).unwrap();
        fs::create_dir(&to).unwrap();
        assert!(!is_mount(&to).unwrap());
        assert!(is_mount(&dir.join("none")).is_err());
        if rustix::process::geteuid().is_root() {
            rustix::mount::mount_bind(&from, &to).unwrap();
            assert!(is_mount(&to).unwrap());
            assert!(!is_mount(&from).unwrap());
        }
    }
}
