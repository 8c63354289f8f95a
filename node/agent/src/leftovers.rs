//! What a node that was killed leaves on its machine beside host processes and its network, and what
//! takes it away.

use std::path::Path;

use anyhow::Context as _;
use sampan_oci::{Daemon, cgroup};

use crate::oci;

/// Below the node's directory: where the node's control groups are, and how their names begin.
const GROUPS: &str = "cgroups";

/// How much there was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Pods' own included.
    pub containers: usize,
    pub groups: usize,
}

/// Writes down what control groups are the node's, before there are any.
pub fn note(node: &Path, cluster_id: &str, name: &str) -> anyhow::Result<()> {
    let path = node.join(GROUPS);
    std::fs::write(&path, format!("/sampan-{cluster_id}\n{name}_\n")).with_context(|| path.display().to_string())
}

/// Takes away what is mounted for pods that have ended. Blocks.
pub fn mounts(node: &Path) -> anyhow::Result<()> {
    Ok(sampan_oci::unmount_below(&node.join("tenants"))?)
}

/// Takes everything away but images. Blocks.
pub fn clean(node: &Path) -> anyhow::Result<Removed> {
    mounts(node)?;
    let containerd = node.join(oci::DIR);
    let containers = if containerd.exists() { Daemon::clean(&containerd)? } else { 0 };
    Ok(Removed { containers, groups: groups(node)? })
}

/// Takes the node's control groups away, and tells how many there were.
pub fn groups(node: &Path) -> anyhow::Result<usize> {
    let Ok(text) = std::fs::read_to_string(node.join(GROUPS)) else { return Ok(0) };
    let mut lines = text.lines();
    match (lines.next(), lines.next()) {
        (Some(parent), Some(prefix)) if !prefix.is_empty() => Ok(cgroup::purge_below(parent, prefix)?),
        _ => Ok(0),
    }
}
