//! Which of the nodes that fit is best: a number from 0 to 100 for each wish, added by weight.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Node, PodSpec};

use crate::filter::{matches_term, tolerates};
use crate::neighbours::Neighbours;
use crate::snapshot::{Demand, NodeInfo};

const MAX: i64 = 100;

/// Weights as kube-scheduler's default profile has them.
const RESOURCES: i64 = 1;
const BALANCE: i64 = 1;
const AFFINITY: i64 = 2;
const SPREAD: i64 = 2;
const NEIGHBOURS: i64 = 2;
const TAINTS: i64 = 3;
const IMAGES: i64 = 1;

/// What a pod's spec and a node's description say for it, whatever runs there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wishes {
    /// Sum of the weights of the preferred terms that match.
    affinity: i64,
    /// How many taints are not tolerated that ask to be avoided.
    taints: i64,
    /// How much of the images is there, 0 to 100.
    images: i64,
}

impl Wishes {
    pub fn of(spec: &PodSpec, node: &Node) -> Self {
        Self {
            affinity: preferred_affinity(spec, node),
            taints: intolerable_taints(spec, node),
            images: image_locality(spec, node),
        }
    }
}

/// A node that the pod fits on.
pub struct Candidate<'a> {
    /// Its place in the snapshot.
    pub index: usize,
    pub name: &'a str,
    pub info: &'a NodeInfo,
    pub wishes: Wishes,
}

/// Scores of `nodes`, in their order; `siblings` are how many pods of the same owner are where, by name of the node,
/// for pods that do not say themselves how they are to be spread.
pub fn score(
    demand: &Demand,
    siblings: Option<&HashMap<String, usize>>,
    neighbours: &Neighbours,
    nodes: &[Candidate],
) -> Vec<i64> {
    let of_wishes = |wish: fn(&Wishes) -> i64| nodes.iter().map(|node| wish(&node.wishes)).collect::<Vec<i64>>();
    let indices = || nodes.iter().map(|node| node.index);
    let alike = || vec![0; nodes.len()];
    let affinity = normalized(of_wishes(|wishes| wishes.affinity), false);
    let taints = normalized(of_wishes(|wishes| wishes.taints), true);
    let spread = match siblings {
        Some(siblings) => {
            let here = |node: &Candidate| siblings.get(node.name).copied().unwrap_or(0).try_into().unwrap_or(MAX);
            normalized(nodes.iter().map(here).collect(), true)
        }
        None => neighbours.evenness(indices()).unwrap_or_else(alike),
    };
    let wished = neighbours.wished(indices()).unwrap_or_else(alike);
    nodes
        .iter()
        .enumerate()
        .map(|(index, Candidate { info, wishes, .. })| {
            RESOURCES * least_allocated(demand, info)
                + BALANCE * balanced(demand, info)
                + AFFINITY * affinity[index]
                + TAINTS * taints[index]
                + SPREAD * spread[index]
                + NEIGHBOURS * wished[index]
                + IMAGES * wishes.images
        })
        .collect()
}

/// Stretches to 0..=100; `reverse` where less is better.
fn normalized(mut scores: Vec<i64>, reverse: bool) -> Vec<i64> {
    let most = scores.iter().copied().max().unwrap_or(0);
    for score in &mut scores {
        let part = if most == 0 { 0 } else { *score * MAX / most };
        *score = if reverse { MAX - part } else { part };
    }
    scores
}

/// The free part of CPU and of memory after this pod, in the mean.
fn least_allocated(demand: &Demand, info: &NodeInfo) -> i64 {
    let free = |used: i64, asked: i64, capacity: i64| {
        if capacity == 0 || used + asked > capacity { 0 } else { (capacity - used - asked) * MAX / capacity }
    };
    let cpu = free(info.assumed.0, demand.assumed.0, info.allocatable.cpu);
    let memory = free(info.assumed.1, demand.assumed.1, info.allocatable.memory);
    (cpu + memory) / 2
}

/// How evenly CPU and memory are used after this pod.
fn balanced(demand: &Demand, info: &NodeInfo) -> i64 {
    let part = |used: i64, capacity: i64| {
        // Thousandths are exact enough for a score of 0 to 100.
        if capacity == 0 { 1000 } else { (used.saturating_mul(1000) / capacity).clamp(0, 1000) }
    };
    let cpu = part(info.used.cpu + demand.requests.cpu, info.allocatable.cpu);
    let memory = part(info.used.memory + demand.requests.memory, info.allocatable.memory);
    MAX - (cpu - memory).abs() / 2 / 10
}

fn preferred_affinity(spec: &PodSpec, node: &Node) -> i64 {
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let preferred = affinity
        .into_iter()
        .flat_map(|affinity| affinity.preferred_during_scheduling_ignored_during_execution.iter().flatten());
    preferred.filter(|term| matches_term(&term.preference, node)).map(|term| i64::from(term.weight)).sum()
}

fn intolerable_taints(spec: &PodSpec, node: &Node) -> i64 {
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let soft = taints.filter(|taint| taint.effect == "PreferNoSchedule" && !tolerates(tolerations, taint));
    soft.count().try_into().unwrap_or(MAX)
}

/// 100 where all images are on the node already: for a module that means compiled, too.
fn image_locality(spec: &PodSpec, node: &Node) -> i64 {
    let held = node.status.iter().flat_map(|status| status.images.iter().flatten());
    let names: Vec<&str> = held.flat_map(|image| image.names.iter().flatten()).map(String::as_str).collect();
    if names.is_empty() || spec.containers.is_empty() {
        return 0;
    }
    let here = spec.containers.iter().filter(|it| it.image.as_deref().is_some_and(|image| names.contains(&image)));
    let here = i64::try_from(here.count()).unwrap_or(0);
    here * MAX / i64::try_from(spec.containers.len()).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use k8s_openapi::api::core::v1::Pod;
    use serde_json::{Value, json};

    use crate::Decisions;

    /// The best of nodes `a`, `b`, …, after `placed` put pods there.
    fn best(pod: Value, nodes: &[Value], placed: &[(&str, Value)]) -> String {
        let read = |pod: &Value, uid: String| -> Pod {
            let mut pod = pod.clone();
            pod["metadata"]["uid"] = uid.into();
            serde_json::from_value(pod).unwrap()
        };
        let mut decisions = Decisions::default();
        for (name, node) in ["a", "b", "c"].into_iter().zip(nodes) {
            let mut node = node.clone();
            node["metadata"]["name"] = name.into();
            node["status"]["allocatable"] = json!({ "cpu": "4", "memory": "4Gi", "pods": "100" });
            decisions.set_node(Arc::new(serde_json::from_value(node).unwrap()));
        }
        for (number, (on, pod)) in placed.iter().enumerate() {
            decisions.place(&read(pod, number.to_string()), on);
        }
        decisions.schedule(&read(&pod, "new".into())).ok().unwrap()
    }

    fn pod(cpu: &str, owner: &str) -> Value {
        let owner =
            json!([{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": owner, "controller": true }]);
        json!({
            "metadata": { "name": "p", "ownerReferences": owner },
            "spec": { "containers": [{ "name": "c", "resources": { "requests": { "cpu": cpu } } }] },
        })
    }

    #[test]
    fn emptier_nodes_and_nodes_without_siblings_win() {
        let nodes = [json!({}), json!({})];
        assert_eq!(best(pod("100m", "x"), &nodes, &[("a", pod("2", "y"))]), "b");
        assert_eq!(best(pod("100m", "x"), &nodes, &[("a", pod("100m", "x")), ("b", pod("200m", "y"))]), "b");
    }

    #[test]
    fn wishes_count() {
        let soft = json!({ "spec": { "taints": [{ "key": "k", "effect": "PreferNoSchedule" }] } });
        assert_eq!(best(pod("1", "x"), &[soft, json!({})], &[]), "b");
        let mut wants = pod("1", "x");
        wants["spec"]["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"] = json!([
            { "weight": 5, "preference": { "matchExpressions": [{ "key": "zone", "operator": "In", "values": ["z"] }] } },
        ]);
        assert_eq!(best(wants, &[json!({}), json!({ "metadata": { "labels": { "zone": "z" } } })], &[]), "b");
        let mut image = pod("1", "x");
        image["spec"]["containers"][0]["image"] = "localhost/hello:v1".into();
        let holds = json!({ "status": { "images": [{ "names": ["localhost/hello:v1"] }] } });
        assert_eq!(best(image, &[json!({}), holds], &[]), "b");
    }
}
