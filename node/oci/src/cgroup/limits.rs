//! Limits of a whole pod, or of a class of pods: containerd sets those of single containers alone.

use std::path::{Path, PathBuf};

use super::{ROOT, hierarchies, parts};
use crate::error::{Error, Result};

/// `None`: as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// 1024 a core; at least 2.
    pub cpu_shares: Option<u64>,
    /// Microseconds in each 100 ms; -1: no limit.
    pub cpu_quota: Option<i64>,
    /// Bytes; -1: no limit.
    pub memory: Option<i64>,
    /// Processes and threads; -1: no limit.
    pub pids: Option<i64>,
}

const PERIOD: u64 = 100_000;
/// Of version 2: what containers need, handed down from group to group.
const CONTROLLERS: &[&str] = &["cpu", "cpuset", "hugetlb", "io", "memory", "pids"];

/// Makes the group, and those above it, and sets its limits. Gives the controllers that this machine
/// lacks: nobody keeps their limits.
pub fn set(name: &str, limits: &Limits) -> Result<Vec<&'static str>> {
    set_below(Path::new(ROOT), name, limits)
}

fn set_below(root: &Path, name: &str, limits: &Limits) -> Result<Vec<&'static str>> {
    let parts = parts(name).map_err(Error::io(name))?;
    if root.join("cgroup.controllers").exists() { unified(root, &parts, limits) } else { split(root, &parts, limits) }
}

fn write(file: PathBuf, text: &str) -> Result<()> {
    std::fs::write(&file, text).map_err(Error::io(file))
}

fn make(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(Error::io(dir))
}

/// The files of version 1, with their controllers.
fn split(root: &Path, parts: &[&str], limits: &Limits) -> Result<Vec<&'static str>> {
    let hierarchies = hierarchies(root).map_err(Error::io(root))?;
    let mut missing = Vec::new();
    let quota = limits.cpu_quota.map(|quota| quota.to_string());
    for (controller, files) in [
        (
            "cpu",
            vec![
                ("cpu.shares", limits.cpu_shares.map(|shares| shares.max(2).to_string())),
                ("cpu.cfs_period_us", quota.is_some().then(|| PERIOD.to_string())),
                ("cpu.cfs_quota_us", quota),
            ],
        ),
        ("memory", vec![("memory.limit_in_bytes", limits.memory.map(|bytes| bytes.to_string()))]),
        ("pids", vec![("pids.max", limits.pids.map(or_max))]),
    ] {
        let named = |dir: &&PathBuf| {
            let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.split(',').any(|part| part == controller)
        };
        let wanted = files.iter().any(|(_, text)| text.is_some());
        match hierarchies.iter().find(named) {
            Some(hierarchy) => {
                let dir = hierarchy.join(parts.join("/"));
                make(&dir)?;
                for (file, text) in files {
                    text.map_or(Ok(()), |text| write(dir.join(file), &text))?;
                }
            }
            None if wanted => missing.push(controller),
            None => {}
        }
    }
    Ok(missing)
}

/// Version 2: a group has the controllers that the one above it hands down.
fn unified(root: &Path, parts: &[&str], limits: &Limits) -> Result<Vec<&'static str>> {
    let file = root.join("cgroup.controllers");
    let text = std::fs::read_to_string(&file).map_err(Error::io(file))?;
    let here: Vec<_> = text.split_whitespace().collect();
    let handed: Vec<_> = CONTROLLERS.iter().filter(|c| here.contains(c)).map(|c| format!("+{c}")).collect();
    let mut dir = root.to_owned();
    for part in parts {
        write(dir.join("cgroup.subtree_control"), &handed.join(" "))?;
        dir.push(part);
        make(&dir)?;
    }
    let mut missing = Vec::new();
    for (controller, file, text) in [
        ("cpu", "cpu.weight", limits.cpu_shares.map(|shares| weight(shares).to_string())),
        ("cpu", "cpu.max", limits.cpu_quota.map(|quota| format!("{} {PERIOD}", or_max(quota)))),
        ("memory", "memory.max", limits.memory.map(or_max)),
        ("pids", "pids.max", limits.pids.map(or_max)),
    ] {
        match text {
            Some(text) if here.contains(&controller) => write(dir.join(file), &text)?,
            Some(_) if !missing.contains(&controller) => missing.push(controller),
            _ => {}
        }
    }
    Ok(missing)
}

fn or_max(limit: i64) -> String {
    if limit < 0 { "max".into() } else { limit.to_string() }
}

/// Shares are 2 to 262144, weights 1 to 10000; the formula of OCI runtimes.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const ALL: Limits = Limits { cpu_shares: Some(1024), cpu_quota: Some(50_000), memory: Some(4096), pids: Some(-1) };

    fn read(dir: &Path, file: &str) -> String {
        std::fs::read_to_string(dir.join(file)).unwrap_or_default()
    }

    #[test]
    fn version_1_has_a_hierarchy_a_controller() {
        let root = tempfile::tempdir().unwrap();
        for name in ["cpu,cpuacct", "memory", "freezer"] {
            std::fs::create_dir(root.path().join(name)).unwrap();
            std::fs::write(root.path().join(name).join("cgroup.procs"), "").unwrap();
        }
        assert_eq!(set_below(root.path(), "/a/pod", &ALL).unwrap(), ["pids"]);
        let cpu = root.path().join("cpu,cpuacct/a/pod");
        assert_eq!((read(&cpu, "cpu.shares"), read(&cpu, "cpu.cfs_quota_us")), ("1024".into(), "50000".into()));
        assert_eq!(read(&root.path().join("memory/a/pod"), "memory.limit_in_bytes"), "4096");
        assert!(!root.path().join("freezer/a").exists());
        assert_eq!(set_below(root.path(), "/b", &Limits::default()).unwrap(), [""; 0]);
        assert!(set_below(root.path(), "/a/../b", &ALL).is_err());
    }

    #[test]
    fn version_2_hands_controllers_down() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("cgroup.controllers"), "cpuset cpu memory pids rdma\n").unwrap();
        assert_eq!(set_below(root.path(), "/a/pod", &ALL).unwrap(), [""; 0]);
        let (a, pod) = (root.path().join("a"), root.path().join("a/pod"));
        for above in [root.path(), &a] {
            assert_eq!(read(above, "cgroup.subtree_control"), "+cpu +cpuset +memory +pids");
        }
        assert_eq!((read(&pod, "cpu.weight"), read(&pod, "cpu.max")), ("39".into(), "50000 100000".into()));
        assert_eq!((read(&pod, "memory.max"), read(&pod, "pids.max")), ("4096".into(), "max".into()));
        assert_eq!(read(&pod, "cgroup.subtree_control"), "");
        std::fs::write(root.path().join("cgroup.controllers"), "memory").unwrap();
        assert_eq!(set_below(root.path(), "/b", &ALL).unwrap(), ["cpu", "pids"]);
        assert_eq!((weight(2), weight(262_144), weight(0)), (1, 10_000, 1));
    }
}
