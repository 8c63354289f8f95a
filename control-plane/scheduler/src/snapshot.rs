//! What the scheduler knows of the cluster: nodes, and what the pods on them take.

use std::collections::HashMap;
use std::sync::Arc;

use indexmap::IndexMap;
use k8s_openapi::api::core::v1::{ContainerImage, Node, Pod};
use kube::ResourceExt as _;
use sampan_api::quantity::Quantity;

use crate::neighbours::{GroupId, Groups};
use crate::resources::{Resources, assumed, requests};

/// A port that a pod wants on the machine itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    pub address: String,
    pub protocol: String,
    pub port: i32,
}

impl HostPort {
    const ANY: &'static str = "0.0.0.0";

    /// Whether both cannot be had on one node.
    pub fn conflicts(&self, other: &Self) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && (self.address == other.address || self.address == Self::ANY || other.address == Self::ANY)
    }
}

/// What placing a pod takes: worked out once a pod.
#[derive(Clone, Debug)]
pub struct Demand {
    pub requests: Resources,
    /// CPU and memory with a guess where the pod says nothing.
    pub assumed: (i64, i64),
    pub host_ports: Vec<HostPort>,
    /// The uid of the controller: pods of one owner are spread.
    pub owner: Option<String>,
}

impl Demand {
    pub fn of(pod: &Pod) -> Self {
        let requests = requests(pod);
        Self { assumed: assumed(&requests), requests, host_ports: host_ports(pod), owner: owner(pod) }
    }
}

fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let sidecars =
        spec.init_containers.iter().flatten().filter(|container| container.restart_policy.as_deref() == Some("Always"));
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            let number = port.host_port.filter(|number| *number > 0)?;
            let address = port.host_ip.clone().filter(|address| !address.is_empty());
            Some(HostPort {
                address: address.unwrap_or_else(|| HostPort::ANY.to_owned()),
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                port: number,
            })
        })
        .collect()
}

fn owner(pod: &Pod) -> Option<String> {
    pod.owner_references().iter().find(|owner| owner.controller == Some(true)).map(|owner| owner.uid.clone())
}

/// A node, and what is placed on it.
#[derive(Debug)]
pub struct NodeInfo {
    pub node: Arc<Node>,
    /// Another one for every description of every node: what was worked out from one is good for that one only.
    pub version: u64,
    pub allocatable: Resources,
    pub max_pods: usize,
    pub pods: usize,
    pub used: Resources,
    pub assumed: (i64, i64),
    pub host_ports: Vec<HostPort>,
}

impl NodeInfo {
    fn new(node: Arc<Node>, version: u64) -> Self {
        let mut info = Self {
            node: node.clone(),
            version,
            allocatable: Resources::default(),
            max_pods: 0,
            pods: 0,
            used: Resources::default(),
            assumed: (0, 0),
            host_ports: Vec::new(),
        };
        info.update(node, version);
        info
    }

    fn update(&mut self, node: Arc<Node>, version: u64) {
        if !same_description(&self.node, &node) {
            self.version = version;
        }
        let list = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
        self.allocatable = Resources::read(list);
        let pods = list.and_then(|list| list.get("pods")).and_then(|text| Quantity::parse(&text.0).ok());
        self.max_pods = pods.and_then(|pods| pods.value().try_into().ok()).unwrap_or(0);
        self.node = node;
    }

    fn place(&mut self, demand: &Demand) {
        self.pods += 1;
        self.used.add(&demand.requests);
        self.assumed.0 += demand.assumed.0;
        self.assumed.1 += demand.assumed.1;
        self.host_ports.extend(demand.host_ports.iter().cloned());
    }

    fn take_away(&mut self, demand: &Demand) {
        self.pods = self.pods.saturating_sub(1);
        self.used.subtract(&demand.requests);
        self.assumed.0 -= demand.assumed.0;
        self.assumed.1 -= demand.assumed.1;
        for port in &demand.host_ports {
            if let Some(index) = self.host_ports.iter().position(|held| held == port) {
                self.host_ports.swap_remove(index);
            }
        }
    }
}

/// Whether all is equal that `Fit` looks at: a heartbeat changes nothing of it.
fn same_description(one: &Node, other: &Node) -> bool {
    one.spec == other.spec && one.metadata.labels == other.metadata.labels && images(one) == images(other)
}

fn images(node: &Node) -> Option<&Vec<ContainerImage>> {
    node.status.as_ref()?.images.as_ref()
}

/// Where a pod counts, and what it takes there.
struct Placed {
    node: String,
    demand: Arc<Demand>,
    group: GroupId,
    ending: bool,
}

/// The cluster as the scheduler sees it: what the API told, and what it decided but has not heard back.
#[derive(Default)]
pub struct Snapshot {
    nodes: IndexMap<String, NodeInfo>,
    versions: u64,
    /// By pod uid; also of pods whose node is not known (yet).
    placed: HashMap<String, Placed>,
    /// By owner and name of the node: how many of the owner's pods are there.
    siblings: HashMap<String, HashMap<String, usize>>,
    groups: Groups,
    /// Another one whenever nodes come, go or get another description.
    layout: u64,
}

impl Snapshot {
    pub fn nodes(&self) -> &IndexMap<String, NodeInfo> {
        &self.nodes
    }

    pub fn layout(&self) -> u64 {
        self.layout
    }

    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    pub fn groups_mut(&mut self) -> &mut Groups {
        &mut self.groups
    }

    pub fn set_node(&mut self, node: Arc<Node>) {
        let name = node.name_any();
        self.versions += 1;
        if let Some(info) = self.nodes.get_mut(&name) {
            info.update(node, self.versions);
            if info.version == self.versions {
                self.layout += 1;
            }
            return;
        }
        self.layout += 1;
        let mut info = NodeInfo::new(node, self.versions);
        for placed in self.placed.values().filter(|placed| placed.node == name) {
            info.place(&placed.demand);
        }
        self.nodes.insert(name, info);
    }

    pub fn remove_node(&mut self, name: &str) {
        self.nodes.swap_remove(name);
        self.layout += 1;
    }

    /// Whether the pod counts there, as it is now.
    pub fn is_placed(&self, pod: &Pod, node: &str) -> bool {
        let placed = pod.metadata.uid.as_deref().and_then(|uid| self.placed.get(uid));
        placed.is_some_and(|placed| {
            placed.node == node
                && placed.ending == pod.metadata.deletion_timestamp.is_some()
                && self.groups.get(placed.group).is_some_and(|group| group.identity.is_of(pod))
        })
    }

    /// Counts a pod, which entered its group, on a node; again moves it.
    pub fn place(&mut self, uid: &str, node: &str, demand: Arc<Demand>, group: GroupId, ending: bool) {
        self.remove_pod(uid);
        if let Some(info) = self.nodes.get_mut(node) {
            info.place(&demand);
        }
        if let Some(owner) = &demand.owner {
            *self.siblings.entry(owner.clone()).or_default().entry(node.to_owned()).or_default() += 1;
        }
        self.groups.place(group, node, ending);
        self.placed.insert(uid.to_owned(), Placed { node: node.to_owned(), demand, group, ending });
    }

    /// Whether the pod counted anywhere.
    pub fn remove_pod(&mut self, uid: &str) -> bool {
        let Some(placed) = self.placed.remove(uid) else { return false };
        if let Some(info) = self.nodes.get_mut(&placed.node) {
            info.take_away(&placed.demand);
        }
        self.groups.take_away(placed.group, &placed.node, placed.ending);
        self.groups.leave(placed.group);
        if let Some(owner) = &placed.demand.owner
            && let Some(nodes) = self.siblings.get_mut(owner)
        {
            if let Some(count) = nodes.get_mut(&placed.node) {
                *count -= 1;
                if *count == 0 {
                    nodes.remove(&placed.node);
                }
            }
            if nodes.is_empty() {
                self.siblings.remove(owner);
            }
        }
        true
    }

    /// How many pods of this one's owner are where, by name of the node.
    pub fn siblings(&self, demand: &Demand) -> Option<&HashMap<String, usize>> {
        self.siblings.get(demand.owner.as_ref()?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use k8s_openapi::api::core::v1::PodSpec;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::neighbours::Identity;

    fn node(name: &str) -> Arc<Node> {
        let allocatable = json!({ "cpu": "4", "memory": "1Gi", "pods": "10" });
        let node = json!({ "metadata": { "name": name }, "status": { "allocatable": allocatable } });
        Arc::new(serde_json::from_value(node).unwrap())
    }

    fn demand(cpu: i64, owner: Option<String>, port: Option<i32>) -> Arc<Demand> {
        let requests = Resources { cpu, ..Default::default() };
        let port = port.map(|port| HostPort { address: "0.0.0.0".into(), protocol: "TCP".into(), port });
        Arc::new(Demand { assumed: assumed(&requests), requests, host_ports: port.into_iter().collect(), owner })
    }

    proptest! {
        /// Whatever comes and goes, a node's sums are those of the pods that are on it.
        #[test]
        fn sums_are_those_of_the_pods(
            steps in prop::collection::vec((0..6_u8, 0..3_u8, 0..3_i64, any::<bool>()), 0..60),
        ) {
            let mut snapshot = Snapshot::default();
            let mut expected: HashMap<u8, (String, i64)> = HashMap::new();
            snapshot.set_node(node("n0"));
            snapshot.set_node(node("n1"));
            for (pod, on, cpu, remove) in steps {
                let uid = format!("u{pod}");
                if remove {
                    snapshot.remove_pod(&uid);
                    expected.remove(&pod);
                } else {
                    let name = format!("n{on}");
                    let group = snapshot.groups_mut().enter(Identity::of(&Pod::default()), &PodSpec::default());
                    snapshot.place(&uid, &name, demand(cpu, Some(format!("o{cpu}")), None), group, false);
                    expected.insert(pod, (name, cpu));
                }
            }
            // A node that comes late knows its pods too.
            snapshot.set_node(node("n2"));
            for (name, info) in snapshot.nodes() {
                let here: Vec<_> = expected.values().filter(|(at, _)| at == name).collect();
                prop_assert_eq!(info.pods, here.len());
                prop_assert_eq!(info.used.cpu, here.iter().map(|(_, cpu)| cpu).sum::<i64>());
                let siblings = |cpu: i64| snapshot.siblings(&demand(cpu, Some(format!("o{cpu}")), None));
                let known = (0..3).filter_map(|cpu| siblings(cpu)?.get(name)).sum::<usize>();
                prop_assert_eq!(known, here.len());
            }
            for pod in 0..6 {
                snapshot.remove_pod(&format!("u{pod}"));
            }
            prop_assert!(snapshot.siblings.is_empty());
        }
    }

    #[test]
    fn host_ports_conflict_by_address() {
        let port = |address: &str| HostPort { address: address.into(), protocol: "TCP".into(), port: 80 };
        assert!(port("0.0.0.0").conflicts(&port("127.0.0.1")));
        assert!(port("127.0.0.1").conflicts(&port("127.0.0.1")));
        assert!(!port("127.0.0.2").conflicts(&port("127.0.0.1")));
    }
}
