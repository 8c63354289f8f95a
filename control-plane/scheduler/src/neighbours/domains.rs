//! Places: all nodes on which a label has one value are one domain.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PodSpec};
use kube::ResourceExt as _;

use super::terms::Spread;
use crate::filter;
use crate::snapshot::Snapshot;

/// Which domain a node is in, by the node's place in the snapshot.
#[derive(Debug, Default)]
pub struct Domains {
    /// None: in none.
    pub of: Vec<Option<usize>>,
    pub count: usize,
}

impl Domains {
    /// The domains of a label among the nodes that count.
    fn among(snapshot: &Snapshot, key: &str, counts: impl Fn(&Node) -> bool) -> Self {
        let mut known: HashMap<&str, usize> = HashMap::new();
        let mut of = Vec::with_capacity(snapshot.nodes().len());
        for info in snapshot.nodes().values() {
            let value = info.node.labels().get(key).filter(|_| counts(&info.node));
            of.push(value.map(|value| {
                let next = known.len();
                *known.entry(value).or_insert(next)
            }));
        }
        Self { of, count: known.len() }
    }

    pub fn on(&self, node: usize) -> Option<usize> {
        self.of.get(node).copied().flatten()
    }
}

/// Domains that were worked out, good until nodes come, go or get another description.
#[derive(Debug, Default)]
pub struct Known<K> {
    layout: u64,
    domains: HashMap<K, Arc<Domains>>,
}

impl<K: Eq + std::hash::Hash> Known<K> {
    fn get(&mut self, snapshot: &Snapshot, key: K, make: impl FnOnce(&K) -> Domains) -> Arc<Domains> {
        if self.layout != snapshot.layout() {
            self.layout = snapshot.layout();
            self.domains.clear();
        }
        self.domains.entry(key).or_insert_with_key(|key| Arc::new(make(key))).clone()
    }
}

/// Of all nodes, by the label.
pub type OfAll = Known<String>;

impl OfAll {
    pub fn of(&mut self, snapshot: &Snapshot, key: &str) -> Arc<Domains> {
        self.get(snapshot, key.to_owned(), |key| Domains::among(snapshot, key, |_| true))
    }
}

/// Of the nodes that count when pods of a kind are spread: by the labels, of which the first is this one's, and
/// whether affinity and taints are honored.
pub type OfKind = Known<(Vec<String>, bool, bool)>;

impl OfKind {
    /// A node counts that has the labels of all constraints.
    pub fn of(&mut self, snapshot: &Snapshot, spec: &PodSpec, constraint: &Spread, all: &[Spread]) -> Arc<Domains> {
        let mut keys = vec![constraint.key.clone()];
        keys.extend(all.iter().map(|it| it.key.clone()).filter(|key| *key != constraint.key));
        self.get(snapshot, (keys, constraint.honors_affinity, constraint.honors_taints), |(keys, affinity, taints)| {
            Domains::among(snapshot, &constraint.key, |node| {
                keys.iter().all(|key| node.labels().contains_key(key))
                    && (!affinity || filter::matches_affinity(spec, node))
                    && (!taints || filter::tolerates_taints(spec, node))
            })
        })
    }
}
