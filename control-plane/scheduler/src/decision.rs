//! The decision: on memory alone, without the queue of who is next and without a write.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, PodSpec};

use crate::filter::{Diagnosis, missing};
use crate::fit::Kinds;
use crate::neighbours::{GroupId, Identity, Labels, Neighbours, OfAll};
use crate::score::{Candidate, score};
use crate::snapshot::{Demand, Snapshot};

/// Clusters up to this size are looked at whole.
const ALL_NODES: usize = 100;

/// The cluster as it was told and decided so far, and what is decided on it.
#[derive(Default)]
pub struct Decisions {
    snapshot: Snapshot,
    kinds: Kinds,
    domains: OfAll,
    /// Where the search for nodes goes on, so that all get their turn in large clusters.
    next_node: usize,
}

impl Decisions {
    pub fn set_node(&mut self, node: Arc<Node>) {
        self.snapshot.set_node(node);
    }

    pub fn remove_node(&mut self, name: &str) {
        self.snapshot.remove_node(name);
    }

    pub fn set_namespace(&mut self, name: String, labels: Labels) {
        self.snapshot.groups_mut().set_namespace(name, labels);
    }

    pub fn remove_namespace(&mut self, name: &str) {
        self.snapshot.groups_mut().remove_namespace(name);
    }

    /// Counts a pod, which must have a uid, on a node. Most news of a pod say nothing new about that: false then.
    pub fn place(&mut self, pod: &Pod, node: &str) -> bool {
        if self.snapshot.is_placed(pod, node) {
            return false;
        }
        let group = self.enter(pod);
        let ending = pod.metadata.deletion_timestamp.is_some();
        self.snapshot.place(uid(pod), node, Arc::new(Demand::of(pod)), group, ending);
        true
    }

    fn enter(&mut self, pod: &Pod) -> GroupId {
        let without = PodSpec::default();
        self.snapshot.groups_mut().enter(Identity::of(pod), pod.spec.as_ref().unwrap_or(&without))
    }

    /// Whether the pod of this uid counted anywhere.
    pub fn remove_pod(&mut self, uid: &str) -> bool {
        self.snapshot.remove_pod(uid)
    }

    /// The name of the best node for a pod, which counts there from now on, or why it fits on none.
    pub fn schedule(&mut self, pod: &Pod) -> Result<String, Diagnosis> {
        let (demand, group) = (Arc::new(Demand::of(pod)), self.enter(pod));
        let chosen = self.choose(pod, &demand, group);
        match &chosen {
            Ok(node) => self.snapshot.place(uid(pod), node, demand, group, false),
            Err(_) => self.snapshot.groups_mut().leave(group),
        }
        chosen
    }

    fn choose(&mut self, pod: &Pod, demand: &Demand, group: GroupId) -> Result<String, Diagnosis> {
        let without = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&without);
        let fits = self.kinds.of(spec);
        let neighbours = Neighbours::of(&mut self.snapshot, group, spec, &mut self.domains, &mut fits.domains);
        let nodes = self.snapshot.nodes();
        let enough = enough(nodes.len());
        let mut diagnosis = Diagnosis::default();
        let mut fitting = Vec::new();
        let start = if nodes.is_empty() { 0 } else { self.next_node % nodes.len() };
        let mut looked_at = 0;
        for index in (start..nodes.len()).chain(0..start) {
            let Some((name, info)) = nodes.get_index(index) else { break };
            looked_at += 1;
            let fit = fits.on(index, info, spec);
            if let Some(reason) = &fit.mismatch {
                diagnosis.add([reason.clone()]);
                continue;
            }
            let missing = missing(demand, info);
            if !missing.is_empty() {
                diagnosis.add(missing);
                continue;
            }
            if let Some(reason) = neighbours.objection(index) {
                diagnosis.add([reason]);
                continue;
            }
            fitting.push(Candidate { index, name, info, wishes: fit.wishes });
            if fitting.len() == enough {
                break;
            }
        }
        self.next_node = start + looked_at;
        let siblings = self.snapshot.siblings(demand).filter(|_| !self.snapshot.groups().spread_themselves(group));
        let scores = score(demand, siblings, &neighbours, &fitting);
        // Of equals the first one after where the search began: all get their turn.
        let best = scores.iter().enumerate().rev().max_by_key(|(_, score)| **score);
        best.map(|(index, _)| fitting[index].name.to_owned()).ok_or(diagnosis)
    }
}

fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// How many fitting nodes are compared in a cluster of `nodes`: all in a small one, a shrinking part of a large one.
fn enough(nodes: usize) -> usize {
    if nodes <= ALL_NODES {
        return nodes;
    }
    let percent = 50_usize.saturating_sub(nodes / 125).max(5);
    (nodes * percent / 100).max(ALL_NODES)
}

#[cfg(test)]
mod tests {
    #[test]
    fn large_clusters_are_sampled() {
        assert_eq!(super::enough(3), 3);
        assert_eq!(super::enough(100), 100);
        assert_eq!(super::enough(1000), 420);
        assert_eq!(super::enough(5000), 500);
    }
}
