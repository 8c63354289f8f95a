//! What containers use.

use std::collections::BTreeMap;
use std::time::SystemTime;

use crate::client::{Containerd, SHORT, call};
use crate::error::{Error, Result};
use crate::json;
use crate::proto::cri;

/// `None`: not measured, as in one that does not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerStats {
    pub id: String,
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub at: Option<SystemTime>,
    /// Nanoseconds of one core since the start.
    pub cpu_nanoseconds: Option<u64>,
    /// Bytes that cannot be reclaimed under pressure.
    pub memory_working_set: Option<u64>,
    /// Bytes that the container wrote beside its image and volumes.
    pub writable_bytes: Option<u64>,
    pub writable_inodes: Option<u64>,
}

fn stats(s: cri::ContainerStats) -> ContainerStats {
    let attributes = s.attributes.unwrap_or_default();
    let cpu = s.cpu.unwrap_or_default();
    let disk = s.writable_layer.unwrap_or_default();
    ContainerStats {
        id: attributes.id,
        name: attributes.metadata.unwrap_or_default().name,
        labels: attributes.labels,
        at: json::time(cpu.timestamp),
        cpu_nanoseconds: cpu.usage_core_nano_seconds.map(|v| v.value),
        memory_working_set: s.memory.and_then(|m| m.working_set_bytes).map(|v| v.value),
        writable_bytes: disk.used_bytes.map(|v| v.value),
        writable_inodes: disk.inodes_used.map(|v| v.value),
    }
}

impl Containerd {
    pub async fn container_stats(&self, id: &str) -> Result<ContainerStats> {
        let name = "ContainerStats";
        let request = cri::ContainerStatsRequest { container_id: id.to_owned() };
        let answer = call(name, SHORT, self.runtime().container_stats(request)).await?;
        answer.stats.map(stats).ok_or(Error::Answer { call: name, missing: "stats" })
    }

    /// Of all that run, or of one sandbox's.
    pub async fn list_stats(&self, sandbox_id: Option<&str>) -> Result<Vec<ContainerStats>> {
        let filter =
            sandbox_id.map(|id| cri::ContainerStatsFilter { pod_sandbox_id: id.to_owned(), ..Default::default() });
        let request = cri::ListContainerStatsRequest { filter };
        let answer = call("ListContainerStats", SHORT, self.runtime().list_container_stats(request)).await?;
        Ok(answer.stats.into_iter().map(stats).collect())
    }
}
