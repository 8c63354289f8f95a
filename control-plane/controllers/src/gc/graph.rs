//! Who owns whom, as far as the watches told. No I/O.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::kinds::Kind;

pub const FOREGROUND: &str = "foregroundDeletion";
pub const ORPHAN: &str = "orphan";

pub type Uid = String;

/// What there is to look at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Work {
    /// Whether this object has to go.
    Delete(Uid),
    /// This object goes and its dependents stay.
    Orphan(Uid),
}

/// A reference to an owner, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub group: String,
    pub kind: String,
    pub name: String,
    pub uid: Uid,
    pub blocks: bool,
}

impl From<&OwnerReference> for Owner {
    fn from(of: &OwnerReference) -> Self {
        Self {
            group: of.api_version.split_once('/').map_or(String::new(), |(group, _)| group.to_owned()),
            kind: of.kind.clone(),
            name: of.name.clone(),
            uid: of.uid.clone(),
            blocks: of.block_owner_deletion == Some(true),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Node {
    pub kind: Arc<Kind>,
    pub namespace: Option<String>,
    pub name: String,
    pub owners: Vec<Owner>,
    pub deleting: bool,
    /// Being deleted, after its dependents.
    pub foreground: bool,
    pub orphaning: bool,
}

impl Node {
    fn new(kind: Arc<Kind>, meta: &ObjectMeta) -> Self {
        let deleting = meta.deletion_timestamp.is_some();
        let has = |finalizer: &str| meta.finalizers.iter().flatten().any(|it| it == finalizer);
        Self {
            kind,
            namespace: meta.namespace.clone(),
            name: meta.name.clone().unwrap_or_default(),
            owners: meta.owner_references.iter().flatten().map(Owner::from).collect(),
            deleting,
            foreground: deleting && has(FOREGROUND),
            orphaning: deleting && has(ORPHAN),
        }
    }
}

#[derive(Debug, Default)]
pub struct Graph {
    nodes: HashMap<Uid, Node>,
    /// By owner, whether or not that one is known.
    dependents: HashMap<Uid, HashSet<Uid>>,
}

impl Graph {
    pub fn node(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    pub fn dependents(&self, uid: &str) -> Vec<Uid> {
        let mut all: Vec<Uid> = self.dependents.get(uid).into_iter().flatten().cloned().collect();
        all.sort();
        all
    }

    /// The dependents that keep `uid` from going.
    pub fn blocking(&self, uid: &str) -> Vec<Uid> {
        let mut all = self.dependents(uid);
        all.retain(|dependent| {
            let owners = self.nodes.get(dependent).map(|node| node.owners.as_slice());
            owners.into_iter().flatten().any(|owner| owner.uid == uid && owner.blocks)
        });
        all
    }

    /// Whether the graph itself shows that `owner` of `node` is there to stay.
    pub fn is_solid(&self, node: &Node, owner: &Owner) -> bool {
        self.nodes.get(&owner.uid).is_some_and(|of| {
            let reachable = of.namespace.is_none() || of.namespace == node.namespace;
            let same =
                of.kind.resource.kind == owner.kind && of.kind.resource.group == owner.group && of.name == owner.name;
            reachable && same && !of.foreground
        })
    }

    fn is_foreground(&self, uid: &str) -> bool {
        self.nodes.get(uid).is_some_and(|node| node.foreground)
    }

    /// Takes in an object as it is now.
    pub fn put(&mut self, kind: &Arc<Kind>, meta: &ObjectMeta) -> Vec<Work> {
        let Some(uid) = meta.uid.clone() else { return Vec::new() };
        let node = Node::new(kind.clone(), meta);
        let mut work = Vec::new();
        let old = self.nodes.remove(&uid);
        let before = old.as_ref().map(|old| old.owners.as_slice()).unwrap_or_default();
        for owner in before {
            let now = node.owners.iter().find(|of| of.uid == owner.uid);
            if now.is_none()
                && let Some(dependents) = self.dependents.get_mut(&owner.uid)
            {
                dependents.remove(&uid);
                if dependents.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
            // It no longer waits for this one.
            if owner.blocks && now.is_none_or(|now| !now.blocks) && self.is_foreground(&owner.uid) {
                work.push(Work::Delete(owner.uid.clone()));
            }
        }
        for owner in &node.owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(uid.clone());
        }
        if node.owners != before && !node.owners.iter().all(|owner| self.is_solid(&node, owner)) {
            work.push(Work::Delete(uid.clone()));
        }
        if node.foreground && !old.as_ref().is_some_and(|old| old.foreground) {
            work.push(Work::Delete(uid.clone()));
            work.extend(self.dependents(&uid).into_iter().map(Work::Delete));
        }
        if node.orphaning && !old.as_ref().is_some_and(|old| old.orphaning) {
            work.push(Work::Orphan(uid.clone()));
        }
        self.nodes.insert(uid, node);
        work
    }

    /// Takes in that an object is gone.
    pub fn remove(&mut self, uid: &str) -> Vec<Work> {
        let mut work: Vec<Work> = self.dependents(uid).into_iter().map(Work::Delete).collect();
        let Some(node) = self.nodes.remove(uid) else { return work };
        for owner in &node.owners {
            if let Some(dependents) = self.dependents.get_mut(&owner.uid) {
                dependents.remove(uid);
                if dependents.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
            if self.is_foreground(&owner.uid) {
                work.push(Work::Delete(owner.uid.clone()));
            }
        }
        work
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use kube::core::ApiResource;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn kind() -> Arc<Kind> {
        let resource = ApiResource {
            group: String::new(),
            version: "v1".into(),
            api_version: "v1".into(),
            kind: "ConfigMap".into(),
            plural: "configmaps".into(),
        };
        Arc::new(Kind { resource, namespaced: true })
    }

    fn meta(uid: &str, owners: &[(&str, bool)], finalizer: Option<&str>) -> ObjectMeta {
        let owners: Vec<_> = owners
            .iter()
            .map(|(owner, blocks)| {
                json!({
                    "apiVersion": "v1", "kind": "ConfigMap", "name": owner, "uid": owner, "blockOwnerDeletion": blocks,
                })
            })
            .collect();
        let deleted = finalizer.map(|_| "2026-01-01T00:00:00Z");
        serde_json::from_value(json!({
            "name": uid, "namespace": "n", "uid": uid, "ownerReferences": owners,
            "deletionTimestamp": deleted, "finalizers": finalizer.map(|it| vec![it]),
        }))
        .unwrap()
    }

    fn delete(uid: &str) -> Work {
        Work::Delete(uid.to_owned())
    }

    #[test]
    fn dependents_are_looked_at_when_their_owner_goes() {
        let (mut graph, kind) = (Graph::default(), kind());
        assert_eq!(graph.put(&kind, &meta("a", &[], None)), []);
        assert_eq!(graph.put(&kind, &meta("b", &[("a", true)], None)), []);
        assert_eq!(graph.put(&kind, &meta("c", &[("x", false)], None)), [delete("c")], "unknown owner");
        assert_eq!(graph.remove("a"), [delete("b")]);
        assert_eq!(graph.remove("b"), []);
        assert_eq!(graph.remove("b"), []);
    }

    #[test]
    fn a_foreground_owner_waits_for_those_that_block() {
        let (mut graph, kind) = (Graph::default(), kind());
        graph.put(&kind, &meta("a", &[], None));
        graph.put(&kind, &meta("b", &[("a", true)], None));
        graph.put(&kind, &meta("c", &[("a", false)], None));
        let work = graph.put(&kind, &meta("a", &[], Some(FOREGROUND)));
        assert_eq!(work, [delete("a"), delete("b"), delete("c")]);
        assert_eq!(graph.blocking("a"), ["b"]);
        assert_eq!(graph.put(&kind, &meta("d", &[("a", true)], None)), [delete("d")], "a late one");
        assert_eq!(graph.put(&kind, &meta("d", &[("a", false)], None)), [delete("a"), delete("d")]);
        assert_eq!(graph.remove("b"), [delete("a")]);
        assert!(graph.blocking("a").is_empty());
        assert_eq!(graph.put(&kind, &meta("o", &[], Some(ORPHAN))), [Work::Orphan("o".into())]);
    }

    #[test]
    fn an_owner_elsewhere_is_no_owner() {
        let (mut graph, kind) = (Graph::default(), kind());
        graph.put(&kind, &meta("a", &[], None));
        let mut other = meta("b", &[("a", true)], None);
        other.namespace = Some("other".into());
        assert_eq!(graph.put(&kind, &other), [delete("b")]);
    }

    proptest! {
        /// Whatever is put and removed: the dependents are those of the nodes, and nothing is left over.
        #[test]
        fn the_graph_stays_consistent(
            steps in prop::collection::vec((0_u8..8, prop::collection::btree_set(0_u8..8, 0..3), any::<bool>()), 0..60),
        ) {
            let (mut graph, kind) = (Graph::default(), kind());
            for (uid, owners, remove) in steps {
                if remove {
                    graph.remove(&uid.to_string());
                } else {
                    let names: Vec<String> = owners.iter().map(u8::to_string).collect();
                    let owners: Vec<(&str, bool)> = names.iter().map(|it| (it.as_str(), true)).collect();
                    graph.put(&kind, &meta(&uid.to_string(), &owners, None));
                }
            }
            for (uid, node) in &graph.nodes {
                for owner in &node.owners {
                    prop_assert!(graph.dependents(&owner.uid).contains(uid));
                }
            }
            for (owner, dependents) in &graph.dependents {
                prop_assert!(!dependents.is_empty());
                for uid in dependents {
                    prop_assert!(graph.nodes[uid].owners.iter().any(|of| of.uid == *owner));
                }
            }
        }
    }
}
