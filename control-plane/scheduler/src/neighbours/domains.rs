//! Places: all nodes on which a label has one value are one domain.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PodSpec};
use kube::ResourceExt as _;

use super::terms::Spread;
use crate::filter;
use crate::snapshot::Snapshot;

/// Of so many labels domains are remembered.
const LABELS: usize = 64;

/// Which domain a node is in, by the node's place in the snapshot.
#[derive(Clone, Debug, Default)]
pub struct Domains {
    layout: u64,
    /// With the version of the node that it was worked out from.
    of: Vec<(u64, Option<usize>)>,
    ids: HashMap<String, usize>,
    /// How many nodes are in each: one without nodes is none any more.
    nodes: Vec<usize>,
}

impl Domains {
    /// Looks again at nodes that came or have another description: those that count are in the domain of their label.
    fn refresh(&mut self, snapshot: &Snapshot, key: &str, counts: impl Fn(&Node) -> bool) {
        self.layout = snapshot.layout();
        // Names of nodes that are long gone.
        if self.ids.len() > 2 * (snapshot.nodes().len() + 50) {
            *self = Self { layout: self.layout, ..Self::default() };
        }
        for (index, info) in snapshot.nodes().values().enumerate() {
            if self.of.get(index).is_some_and(|(version, _)| *version == info.version) {
                continue;
            }
            let value = info.node.labels().get(key).filter(|_| counts(&info.node));
            let domain = value.map(|value| self.id(value));
            self.set(index, Some((info.version, domain)));
        }
        while self.of.len() > snapshot.nodes().len() {
            self.set(self.of.len() - 1, None);
        }
    }

    fn id(&mut self, value: &str) -> usize {
        if let Some(id) = self.ids.get(value) {
            return *id;
        }
        self.ids.insert(value.to_owned(), self.nodes.len());
        self.nodes.push(0);
        self.nodes.len() - 1
    }

    /// What is known of the node at this place, or that it is the last and gone.
    fn set(&mut self, index: usize, known: Option<(u64, Option<usize>)>) {
        if let Some(old) = self.on(index) {
            self.nodes[old] -= 1;
        }
        if let Some((_, Some(new))) = known {
            self.nodes[new] += 1;
        }
        match known {
            Some(known) if index < self.of.len() => self.of[index] = known,
            Some(known) => self.of.push(known),
            None => self.of.truncate(index),
        }
    }

    pub fn on(&self, node: usize) -> Option<usize> {
        self.of.get(node)?.1
    }

    /// One more than the number of the last one.
    pub fn numbers(&self) -> usize {
        self.nodes.len()
    }

    /// The numbers of those that have nodes.
    pub fn there(&self) -> impl Iterator<Item = usize> {
        self.nodes.iter().enumerate().filter(|(_, nodes)| **nodes > 0).map(|(number, _)| number)
    }
}

/// Domains that were worked out.
#[derive(Debug)]
pub struct Known<K>(HashMap<K, Arc<Domains>>);

impl<K> Default for Known<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + std::hash::Hash> Known<K> {
    fn get(&mut self, of: K, snapshot: &Snapshot, key: &str, counts: impl Fn(&Node) -> bool) -> Arc<Domains> {
        // Anybody may name labels.
        if self.0.len() == LABELS && !self.0.contains_key(&of) {
            self.0.clear();
        }
        let known = self.0.entry(of).or_default();
        // One decision may ask twice, and holds what it got first: it is copied only to be changed.
        if known.layout != snapshot.layout() {
            Arc::make_mut(known).refresh(snapshot, key, counts);
        }
        known.clone()
    }
}

/// Of all nodes, by the label.
pub type OfAll = Known<String>;

impl OfAll {
    pub fn of(&mut self, snapshot: &Snapshot, key: &str) -> Arc<Domains> {
        self.get(key.to_owned(), snapshot, key, |_| true)
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
        let (affinity, taints) = (constraint.honors_affinity, constraint.honors_taints);
        self.get((keys, affinity, taints), snapshot, &constraint.key, |node| {
            all.iter().all(|it| node.labels().contains_key(&it.key))
                && (!affinity || filter::matches_affinity(spec, node))
                && (!taints || filter::tolerates_taints(spec, node))
        })
    }
}
