//! What pods ask for and nodes have, as numbers.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use sampan_api::quantity::Quantity;

/// What a pod without requests counts for when nodes are compared, thousandths of a core and bytes:
/// so that many of them do not pile up on one node.
const ASSUMED_CPU: i64 = 100;
const ASSUMED_MEMORY: i64 = 200 << 20;

/// Amounts of resources: CPU in thousandths of a core, all else in its own unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    pub cpu: i64,
    pub memory: i64,
    pub ephemeral_storage: i64,
    /// `vendor.example/device` and the like, without those at zero.
    pub extended: BTreeMap<String, i64>,
}

impl Resources {
    /// Reads a list of requests or a node's allocatable; what is no quantity counts as nothing.
    pub fn read(list: Option<&BTreeMap<String, Text>>) -> Self {
        let mut read = Self::default();
        for (name, text) in list.into_iter().flatten() {
            let Ok(quantity) = Quantity::parse(&text.0) else { continue };
            match name.as_str() {
                "cpu" => read.cpu = quantity.milli(),
                "memory" => read.memory = quantity.value(),
                "ephemeral-storage" => read.ephemeral_storage = quantity.value(),
                "pods" => {}
                _ => {
                    read.extended.insert(name.clone(), quantity.value());
                }
            }
        }
        read
    }

    pub fn add(&mut self, other: &Self) {
        self.cpu += other.cpu;
        self.memory += other.memory;
        self.ephemeral_storage += other.ephemeral_storage;
        for (name, amount) in &other.extended {
            *self.extended.entry(name.clone()).or_default() += amount;
        }
    }

    pub fn subtract(&mut self, other: &Self) {
        self.cpu -= other.cpu;
        self.memory -= other.memory;
        self.ephemeral_storage -= other.ephemeral_storage;
        for (name, amount) in &other.extended {
            *self.extended.entry(name.clone()).or_default() -= amount;
        }
        self.extended.retain(|_, amount| *amount != 0);
    }

    fn max(&mut self, other: &Self) {
        self.cpu = self.cpu.max(other.cpu);
        self.memory = self.memory.max(other.memory);
        self.ephemeral_storage = self.ephemeral_storage.max(other.ephemeral_storage);
        for (name, amount) in &other.extended {
            let most = self.extended.entry(name.clone()).or_default();
            *most = (*most).max(*amount);
        }
    }
}

/// What a pod asks for: its containers together, or its greediest init container with the sidecars
/// that run by then, whichever is more; and the overhead of its runtime class.
pub fn requests(pod: &Pod) -> Resources {
    let Some(spec) = &pod.spec else { return Resources::default() };
    let of = |container: &Container| {
        Resources::read(container.resources.as_ref().and_then(|resources| resources.requests.as_ref()))
    };
    let mut sidecars = Resources::default();
    let mut starting = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let mut needed = of(container);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars.add(&needed);
            starting.max(&sidecars);
        } else {
            needed.add(&sidecars);
            starting.max(&needed);
        }
    }
    let mut total = sidecars;
    for container in &spec.containers {
        total.add(&of(container));
    }
    total.max(&starting);
    total.add(&Resources::read(spec.overhead.as_ref()));
    total
}

/// Requests for comparing nodes, as thousandths of a core and bytes.
pub fn assumed(requests: &Resources) -> (i64, i64) {
    let or = |amount, assumed| if amount == 0 { assumed } else { amount };
    (or(requests.cpu, ASSUMED_CPU), or(requests.memory, ASSUMED_MEMORY))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({ "metadata": { "name": "p" }, "spec": spec })).unwrap()
    }

    fn container(cpu: &str) -> serde_json::Value {
        json!({ "name": "c", "resources": { "requests": { "cpu": cpu } } })
    }

    #[test]
    fn init_containers_run_alone_and_sidecars_beside() {
        let mut sidecar = container("50m");
        sidecar["restartPolicy"] = "Always".into();
        let spec = json!({
            "initContainers": [sidecar, container("400m")],
            "containers": [container("100m"), container("200m")],
        });
        assert_eq!(requests(&pod(spec)).cpu, 450);
        let spec = json!({ "initContainers": [container("100m")], "containers": [container("1"), container("0.5")] });
        assert_eq!(requests(&pod(spec)).cpu, 1500);
    }

    #[test]
    fn overhead_counts() {
        let spec = json!({ "containers": [container("1")], "overhead": { "cpu": "250m", "memory": "1Mi" } });
        let requests = requests(&pod(spec));
        assert_eq!((requests.cpu, requests.memory), (1250, 1 << 20));
    }
}
