//! Whether the node has room for a pod. The scheduler saw to it already; this holds when two were
//! bound at once, or a pod names its node itself.

use k8s_openapi::api::core::v1 as core;

use super::resources;
use super::shared::Shared;

/// What pods take of a node, in billionths where it is a quantity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Share {
    pub pods: usize,
    pub cpu: i128,
    pub memory: i128,
}

impl Share {
    pub fn of(pod: &core::Pod) -> Self {
        Self { pods: 1, cpu: resources::requested(pod, "cpu"), memory: resources::requested(pod, "memory") }
    }

    pub fn add(&mut self, other: &Self) {
        self.pods += other.pods;
        self.cpu += other.cpu;
        self.memory += other.memory;
    }

    pub fn subtract(&mut self, other: &Self) {
        self.pods = self.pods.saturating_sub(other.pods);
        self.cpu -= other.cpu;
        self.memory -= other.memory;
    }
}

const MILLI: i128 = 1_000_000;
const UNIT: i128 = 1_000_000_000;

/// Reason and message when there is no room.
pub fn check(wanted: &Share, used: &Share, shared: &Shared) -> Option<(String, String)> {
    let capacity = |name: &str| shared.allocatable.get(name).and_then(resources::nanos).unwrap_or(i128::MAX / 2);
    let pods = |count: usize| i128::try_from(count).unwrap_or(i128::MAX / 2);
    [
        ("pods", 1, pods(wanted.pods), pods(used.pods), pods(shared.max_pods)),
        ("cpu", MILLI, wanted.cpu, used.cpu, capacity("cpu")),
        ("memory", UNIT, wanted.memory, used.memory, capacity("memory")),
    ]
    .into_iter()
    .find(|(_, _, wanted, used, capacity)| *wanted > 0 && used + wanted > *capacity)
    .map(|(name, unit, wanted, used, capacity)| {
        let message = format!(
            "Node didn't have enough resource: {name}, requested: {}, used: {}, capacity: {}",
            wanted / unit,
            used / unit,
            capacity / unit
        );
        (format!("OutOf{name}"), message)
    })
}
