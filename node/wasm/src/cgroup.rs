//! One control group per host process, on version 1 (cpu, cpuacct, memory) and version 2.

use std::io;
use std::path::{Path, PathBuf};

/// What all guests of one host may use together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Limits {
    /// Bytes; `None`: no limit.
    pub memory_bytes: Option<u64>,
    /// Thousandths of a core; `None`: no limit.
    pub cpu_millicores: Option<u64>,
    /// Share beside other groups, in Kubernetes' millicores of request.
    pub cpu_request_millicores: Option<u64>,
}

const ROOT: &str = "/sys/fs/cgroup";
/// Quotas are per 100 ms.
const PERIOD_US: u64 = 100_000;

/// Directories of a group, by name below the hierarchies' roots.
#[derive(Debug, Clone)]
pub struct Cgroup {
    unified: Option<PathBuf>,
    cpu: Option<PathBuf>,
    cpuacct: Option<PathBuf>,
    memory: Option<PathBuf>,
    /// Parents below the hierarchy's root.
    depth: usize,
}

impl Cgroup {
    /// The group of a name such as `sampan-1a2b3c4d/default`; nothing is made yet. A name that
    /// begins with `/` lies in groups of others: its parents stay when it goes.
    pub fn named(name: &str) -> io::Result<Cgroup> {
        Cgroup::below(Path::new(ROOT), name)
    }

    fn below(root: &Path, name: &str) -> io::Result<Cgroup> {
        let (name, ours) = name.strip_prefix('/').map_or((name, true), |name| (name, false));
        let plain = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.contains('\0');
        if !name.split('/').all(plain) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a relative name of a control group"));
        }
        let depth = if ours { name.matches('/').count() } else { 0 };
        if root.join("cgroup.controllers").exists() {
            let unified = Some(root.join(name));
            return Ok(Cgroup { unified, cpu: None, cpuacct: None, memory: None, depth });
        }
        let controller = |controller: &str| {
            let dir = root.join(controller);
            dir.join("cgroup.procs").exists().then(|| dir.join(name))
        };
        let cpu = controller("cpu").or_else(|| controller("cpu,cpuacct"));
        let cpuacct = controller("cpuacct").filter(|_| cpu.as_ref() != controller("cpuacct").as_ref());
        Ok(Cgroup { unified: None, cpu, cpuacct, memory: controller("memory"), depth })
    }

    fn dirs(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.unified, &self.cpu, &self.cpuacct, &self.memory].into_iter().flatten()
    }

    /// Makes the group with these limits; also changes those of one that is there.
    pub fn create(&self, limits: &Limits) -> io::Result<()> {
        if self.dirs().next().is_none() {
            return Err(io::Error::other("no control group hierarchy is mounted"));
        }
        for dir in self.dirs() {
            std::fs::create_dir_all(dir)?;
        }
        let quota = limits.cpu_millicores.map(|m| (m * PERIOD_US / 1000).max(1000));
        if let Some(dir) = &self.unified {
            enable(dir);
            let quota = quota.map_or("max".to_owned(), |q| q.to_string());
            write(dir, "cpu.max", &format!("{quota} {PERIOD_US}"))?;
            let memory = limits.memory_bytes.map_or("max".to_owned(), |b| b.to_string());
            write(dir, "memory.max", &memory)?;
            if let Some(request) = limits.cpu_request_millicores {
                write(dir, "cpu.weight", &weight(shares(request)).to_string())?;
            }
        }
        if let Some(dir) = &self.cpu {
            write(dir, "cpu.cfs_period_us", &PERIOD_US.to_string())?;
            write(dir, "cpu.cfs_quota_us", &quota.map_or("-1".to_owned(), |q| q.to_string()))?;
            if let Some(request) = limits.cpu_request_millicores {
                write(dir, "cpu.shares", &shares(request).to_string())?;
            }
        }
        if let Some(dir) = &self.memory {
            let memory = limits.memory_bytes.map_or("-1".to_owned(), |b| b.to_string());
            write(dir, "memory.limit_in_bytes", &memory)?;
        }
        Ok(())
    }

    /// Moves a process (0: the caller) into the group.
    pub fn join(&self, pid: u32) -> io::Result<()> {
        for dir in self.dirs() {
            write(dir, "cgroup.procs", &pid.to_string())?;
        }
        Ok(())
    }

    /// Removes the group and the parents that it leaves empty; processes must have left. Missing
    /// is fine.
    pub fn remove(&self) -> io::Result<()> {
        for dir in self.dirs() {
            match std::fs::remove_dir(dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            for parent in dir.ancestors().skip(1).take(self.depth) {
                if std::fs::remove_dir(parent).is_err() {
                    break;
                }
            }
        }
        Ok(())
    }
}

fn write(dir: &Path, file: &str, value: &str) -> io::Result<()> {
    let path = dir.join(file);
    std::fs::write(&path, value).map_err(|e| io::Error::new(e.kind(), format!("{} = {value}: {e}", path.display())))
}

/// Version 2 hands controllers down level by level; one that is already on answers no error.
fn enable(dir: &Path) {
    let root = Path::new(ROOT);
    let mut parents: Vec<_> = dir.ancestors().skip(1).take_while(|p| p.starts_with(root)).collect();
    parents.reverse();
    for parent in parents {
        for controller in ["+cpu", "+memory", "+pids"] {
            let _ = std::fs::write(parent.join("cgroup.subtree_control"), controller);
        }
    }
}

/// Kubernetes' milli-CPU request as version 1 shares.
fn shares(millicores: u64) -> u64 {
    (millicores * 1024 / 1000).clamp(2, 262_144)
}

/// Version 1 shares as a version 2 weight, by the formula that runtimes share.
fn weight(shares: u64) -> u64 {
    1 + (shares.saturating_sub(2) * 9999) / 262_142
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_stay_below_the_root() {
        for bad in ["", "/", "//x", "a//b", "../x", "/a/.."] {
            assert!(Cgroup::named(bad).is_err(), "{bad}");
        }
        assert!(Cgroup::named("sampan-1/default").is_ok());
    }

    #[test]
    fn parents_go_only_where_they_are_ours() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("cgroup.controllers"), "cpu memory").unwrap();
        for (name, stays) in [("ours/a", false), ("/others/a", true)] {
            let group = Cgroup::below(root.path(), name).unwrap();
            let dir = root.path().join(name.trim_start_matches('/'));
            std::fs::create_dir_all(&dir).unwrap();
            group.remove().unwrap();
            assert_eq!((dir.exists(), dir.parent().unwrap().exists()), (false, stays), "{name}");
        }
    }

    #[test]
    fn version_2_gets_quota_and_limit() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("cgroup.controllers"), "cpu memory").unwrap();
        let group = Cgroup::below(root.path(), "sampan/default").unwrap();
        let limits =
            Limits { memory_bytes: Some(1 << 20), cpu_millicores: Some(500), cpu_request_millicores: Some(100) };
        group.create(&limits).unwrap();
        group.join(7).unwrap();
        let read = |f: &str| std::fs::read_to_string(root.path().join("sampan/default").join(f)).unwrap();
        assert_eq!(read("cpu.max"), "50000 100000");
        assert_eq!(read("memory.max"), "1048576");
        assert_eq!(read("cpu.weight"), "4");
        assert_eq!(read("cgroup.procs"), "7");
    }
}
