//! What a pod's spec and a node's description say of each other, whatever runs there: worked out once for all
//! pods that ask the same.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Node, PodSpec};

use crate::filter::{self, Reason};
use crate::neighbours::OfKind;
use crate::score::Wishes;
use crate::snapshot::NodeInfo;

/// How many kinds of pods are remembered: each takes 64 bytes for every node.
const KINDS: usize = 32;

pub struct Fit {
    /// Why pods of this kind can never run there.
    pub mismatch: Option<Reason>,
    pub wishes: Wishes,
}

impl Fit {
    fn of(spec: &PodSpec, node: &Node) -> Self {
        Self { mismatch: filter::mismatch(spec, node), wishes: Wishes::of(spec, node) }
    }
}

/// How pods of one kind fit on nodes, by the node's place in the snapshot.
#[derive(Default)]
pub struct Fits {
    /// With the version of the node that it was worked out from.
    known: Vec<Option<(u64, Fit)>>,
    /// Of the nodes that count when such pods are spread.
    pub domains: OfKind,
    used: u64,
}

impl Fits {
    pub fn on(&mut self, index: usize, info: &NodeInfo, spec: &PodSpec) -> &Fit {
        if self.known.len() <= index {
            self.known.resize_with(index + 1, || None);
        }
        let known = &mut self.known[index];
        if known.as_ref().is_some_and(|(version, _)| *version != info.version) {
            *known = None;
        }
        &known.get_or_insert_with(|| (info.version, Fit::of(spec, &info.node))).1
    }
}

/// The kinds of pods that were seen last.
#[derive(Default)]
pub struct Kinds {
    /// By all of the spec that `Fit` looks at, as JSON.
    known: HashMap<Vec<u8>, Fits>,
    turn: u64,
}

impl Kinds {
    pub fn of(&mut self, spec: &PodSpec) -> &mut Fits {
        self.turn += 1;
        let key = key(spec);
        if self.known.len() == KINDS && !self.known.contains_key(&key) {
            let oldest = self.known.iter().min_by_key(|(_, fits)| fits.used).map(|(key, _)| key.clone());
            oldest.and_then(|key| self.known.remove(&key));
        }
        let fits = self.known.entry(key).or_default();
        fits.used = self.turn;
        fits
    }
}

fn key(spec: &PodSpec) -> Vec<u8> {
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let images: Vec<_> = spec.containers.iter().map(|container| &container.image).collect();
    let all = (&spec.node_name, &spec.node_selector, affinity, &spec.tolerations, images);
    // These types have nothing that JSON could not say.
    serde_json::to_vec(&all).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::snapshot::Snapshot;

    fn node(name: u8, zone: u8, tainted: bool) -> Arc<Node> {
        let taints = if tainted { json!([{ "key": "k", "effect": "NoSchedule" }]) } else { json!([]) };
        let node = json!({
            "metadata": { "name": format!("n{name}"), "labels": { "zone": zone.to_string() } },
            "spec": { "taints": taints },
            "status": { "images": [{ "names": [format!("image-{zone}")] }] },
        });
        Arc::new(serde_json::from_value(node).unwrap())
    }

    fn spec(number: u8) -> PodSpec {
        let zone = (number % 3).to_string();
        let preferred = json!([{ "weight": 7, "preference": { "matchExpressions": [
            { "key": "zone", "operator": "In", "values": [zone] } ] } }]);
        let mut spec = json!({
            "containers": [{ "name": "c", "image": format!("image-{}", number % 2) }],
            "nodeSelector": { "zone": zone },
            "affinity": { "nodeAffinity": { "preferredDuringSchedulingIgnoredDuringExecution": preferred } },
        });
        if number.is_multiple_of(2) {
            spec.as_object_mut().unwrap().remove("nodeSelector");
        }
        if number.is_multiple_of(5) {
            spec["tolerations"] = json!([{ "operator": "Exists" }]);
        }
        serde_json::from_value(spec).unwrap()
    }

    proptest! {
        /// Whatever nodes come, change and go, what is remembered is what looking again would say.
        #[test]
        fn what_is_remembered_is_true(
            steps in prop::collection::vec((0..5_u8, 0..3_u8, any::<bool>(), 0..4_u8, 0..40_u8), 1..60),
        ) {
            let (mut snapshot, mut kinds) = (Snapshot::default(), Kinds::default());
            for (name, zone, tainted, what, pod) in steps {
                if what == 0 {
                    snapshot.remove_node(&format!("n{name}"));
                } else {
                    snapshot.set_node(node(name, zone, tainted));
                }
                let spec = spec(pod);
                let fits = kinds.of(&spec);
                for (index, info) in snapshot.nodes().values().enumerate() {
                    let (known, fresh) = (fits.on(index, info, &spec), Fit::of(&spec, &info.node));
                    prop_assert_eq!(&known.mismatch, &fresh.mismatch);
                    prop_assert_eq!(known.wishes, fresh.wishes);
                }
                prop_assert!(kinds.known.len() <= KINDS);
            }
        }
    }

    #[test]
    fn what_was_used_last_is_kept() {
        let mut kinds = Kinds::default();
        let spec = |number: usize| PodSpec { node_name: Some(number.to_string()), ..Default::default() };
        for number in 0..=KINDS {
            kinds.of(&spec(0));
            kinds.of(&spec(number));
        }
        assert!(kinds.known.contains_key(&key(&spec(0))) && kinds.known.contains_key(&key(&spec(KINDS))));
        assert!(!kinds.known.contains_key(&key(&spec(1))));
    }
}
