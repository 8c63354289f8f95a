//! Gives each node a range of the cluster's pod addresses: one half for Wasm pods and one for others,
//! each large enough for all pods of the node.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use sampan_api::quantity::Quantity;
use sampan_client::{Change, EventKind, EventRecorder, Informer};
use serde_json::json;

use crate::context::Context;
use crate::error::{Error, found};
use crate::queue::{self, Controller, Queue};

/// Addresses beside those of pods: network, broadcast, gateway, pods that go while others come.
const HEADROOM: u128 = 16;
/// When to look whether a range became free.
const AGAIN: Duration = Duration::from_secs(30);

pub(crate) async fn run(context: Context) {
    let Some(cluster) = context.config.cluster_cidr else { return };
    let nodes = context.informers.all::<Node>();
    let controller = Arc::new(Ipam {
        events: context.recorder("cidrAllocator"),
        ranges: Mutex::new(Ranges::new(cluster)),
        nodes: nodes.clone(),
        context: context.clone(),
    });
    let queue = Queue::new();
    nodes.synced().await;
    // All that is taken has to be known before the first is given.
    for node in nodes.list() {
        controller.learn(&node);
    }
    let (learner, keys) = (controller.clone(), queue.clone());
    queue::feed(&nodes, &context.shutdown, move |change| {
        match &change {
            Change::Deleted(node) => learner.ranges().release(&uid(node)),
            Change::Added(node) | Change::Updated { new: node, .. } => learner.learn(node),
        }
        keys.add(change.object().name_any());
    });
    queue::work(controller, queue, 1, context.shutdown).await;
}

struct Ipam {
    context: Context,
    events: EventRecorder,
    nodes: Informer<Node>,
    ranges: Mutex<Ranges>,
}

impl Ipam {
    fn ranges(&self) -> MutexGuard<'_, Ranges> {
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn learn(&self, node: &Node) {
        if let Some(range) = range_of(node) {
            self.ranges().take(&uid(node), range);
        }
    }
}

impl Controller for Ipam {
    const NAME: &'static str = "node-ipam";
    type Key = String;

    async fn reconcile(&self, key: &String) -> Result<Option<Duration>, Error> {
        let Some(node) = self.nodes.get("", key) else { return Ok(None) };
        if range_of(&node).is_some() || node.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let Some(pods) = pods_of(&node) else { return Ok(None) };
        let Some(range) = self.ranges().give(&uid(&node), pods) else {
            let cluster = self.ranges().cluster;
            let text = format!("Node {key} status is now: CIDRNotAvailable");
            self.events.record(&*node, EventKind::Normal, "CIDRNotAvailable", text);
            tracing::warn!(node = key, %cluster, pods, "no range is free");
            return Ok(Some(AGAIN));
        };
        tracing::info!(node = key, %range, "range of pod addresses");
        let patch = Patch::Merge(json!({
            "metadata": { "uid": node.metadata.uid },
            "spec": { "podCIDR": range, "podCIDRs": [range] },
        }));
        let api: Api<Node> = Api::all(self.context.client.clone());
        let written = found(api.patch(key, &PatchParams::default(), &patch).await);
        // It stays given when nobody can say whether it was written: the next try writes the same.
        if matches!(written, Ok(None)) {
            self.ranges().release(&uid(&node));
        }
        written?;
        Ok(None)
    }
}

fn range_of(node: &Node) -> Option<IpNet> {
    node.spec.as_ref()?.pod_cidr.as_ref()?.parse().ok()
}

/// Not the name: the end of a node may be heard of after another one has come under its name.
fn uid(node: &Node) -> String {
    node.uid().unwrap_or_default()
}

/// How many pods a node takes; `None` until it says so.
fn pods_of(node: &Node) -> Option<u32> {
    // A quantity: a thousand pods are "1k".
    let pods = Quantity::parse(&node.status.as_ref()?.capacity.as_ref()?.get("pods")?.0).ok()?;
    u32::try_from(pods.value()).ok()
}

/// Which parts of the cluster's range are whose, by the node's uid. A node has one at most.
struct Ranges {
    cluster: IpNet,
    of: HashMap<String, IpNet>,
    /// First and last address of each; somebody may have given two nodes the same.
    taken: BTreeSet<(u128, u128, String)>,
}

impl Ranges {
    fn new(cluster: IpNet) -> Self {
        Self { cluster, of: HashMap::new(), taken: BTreeSet::new() }
    }

    fn take(&mut self, node: &str, range: IpNet) {
        if self.of.get(node) == Some(&range) {
            return;
        }
        self.release(node);
        self.of.insert(node.to_owned(), range);
        self.taken.insert(span(range, node));
    }

    fn release(&mut self, node: &str) {
        if let Some(range) = self.of.remove(node) {
            self.taken.remove(&span(range, node));
        }
    }

    /// The node's range, or the first free one in which either half holds so many pods.
    fn give(&mut self, node: &str, pods: u32) -> Option<IpNet> {
        if let Some(range) = self.of.get(node) {
            return Some(*range);
        }
        let range = self.free(pods)?;
        self.take(node, range);
        Some(range)
    }

    fn free(&self, pods: u32) -> Option<IpNet> {
        let size = (2 * (u128::from(pods) + HEADROOM)).next_power_of_two();
        let v4 = matches!(self.cluster, IpNet::V4(_));
        let bits: u8 = if v4 { 32 } else { 128 };
        let prefix = bits.checked_sub(u8::try_from(size.trailing_zeros()).ok()?)?;
        if prefix < self.cluster.prefix_len() {
            return None;
        }
        let end = number(self.cluster.broadcast());
        // From one candidate past each taken range to the next: sizes may differ.
        let mut at = number(self.cluster.network());
        for (from, until, _) in &self.taken {
            if *from > at.checked_add(size - 1)? {
                break;
            }
            if *until >= at {
                at = until.checked_add(1)?.checked_next_multiple_of(size)?;
            }
        }
        if at.checked_add(size - 1)? > end {
            return None;
        }
        if v4 {
            Ipv4Net::new(Ipv6Addr::from(at).to_ipv4_mapped()?, prefix).ok().map(IpNet::V4)
        } else {
            Ipv6Net::new(Ipv6Addr::from(at), prefix).ok().map(IpNet::V6)
        }
    }
}

fn span(range: IpNet, node: &str) -> (u128, u128, String) {
    (number(range.network()), number(range.broadcast()), node.to_owned())
}

/// Of IPv4 where IPv6 has them mapped: both are in one order, and none is in the other's ranges.
fn number(address: IpAddr) -> u128 {
    u128::from(match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    /// What the next node with so many pods gets.
    fn next(cluster: &str, pods: u32, taken: &[&str]) -> Option<IpNet> {
        let mut ranges = Ranges::new(net(cluster));
        for (number, range) in taken.iter().enumerate() {
            ranges.take(&number.to_string(), net(range));
        }
        ranges.give("next", pods)
    }

    #[test]
    fn ranges_are_sized_by_pods_and_follow_one_another() {
        let cluster = "10.42.0.0/16";
        assert_eq!(next(cluster, 110, &[]), Some(net("10.42.0.0/24")));
        assert_eq!(next(cluster, 110, &["10.42.0.0/24"]), Some(net("10.42.1.0/24")));
        assert_eq!(next(cluster, 1000, &["10.42.0.0/24"]), Some(net("10.42.8.0/21")));
        assert_eq!(next(cluster, 110, &["10.42.8.0/21", "10.42.0.0/24"]), Some(net("10.42.1.0/24")));
        assert_eq!(next(cluster, 110, &["10.42.0.0/16"]), None);
        assert_eq!(next(cluster, 50_000, &[]), None);
        assert_eq!(next("fd00::/64", 110, &["fd00::/120"]), Some(net("fd00::100/120")));
        // Of the other family, outside the cluster, and within one another.
        assert_eq!(next(cluster, 110, &["fd00::/120", "10.1.0.0/16"]), Some(net("10.42.0.0/24")));
        assert_eq!(next(cluster, 110, &["10.42.0.0/22", "10.42.1.0/24"]), Some(net("10.42.4.0/24")));
    }

    proptest! {
        /// Whoever comes and goes: what is given overlaps nothing that is held, and what one held can be had again.
        #[test]
        fn ranges_never_overlap(steps in prop::collection::vec((0..12_u8, 1_u32..3000, any::<bool>()), 1..60)) {
            let mut ranges = Ranges::new(net("10.42.0.0/16"));
            let mut held: HashMap<String, IpNet> = HashMap::new();
            for (node, pods, goes) in steps {
                let node = node.to_string();
                if goes {
                    ranges.release(&node);
                    held.remove(&node);
                    continue;
                }
                let before = held.remove(&node);
                let Some(range) = ranges.give(&node, pods) else {
                    prop_assert_eq!(before, None);
                    continue;
                };
                prop_assert!(before.is_none_or(|before| before == range));
                prop_assert!(ranges.cluster.contains(&range) && range.trunc() == range);
                prop_assert!(before.is_some() || 1_u128 << (32 - range.prefix_len()) >= 2 * u128::from(pods));
                for other in held.values() {
                    prop_assert!(!other.contains(&range) && !range.contains(other), "{other} {range}");
                }
                held.insert(node, range);
            }
            for node in held.keys() {
                ranges.release(node);
            }
            prop_assert_eq!(ranges.give("first", 110), Some(net("10.42.0.0/24")));
        }
    }

    #[test]
    fn a_node_that_is_made_again_is_another_one() {
        let node =
            |uid: &str| -> Node { serde_json::from_value(json!({ "metadata": { "name": "a", "uid": uid } })).unwrap() };
        let mut ranges = Ranges::new(net("10.42.0.0/16"));
        let first = ranges.give(&uid(&node("1")), 110);
        let again = ranges.give(&uid(&node("2")), 110);
        assert_ne!(first, again);
        // The news of the first one's end come late.
        ranges.release(&uid(&node("1")));
        assert_eq!(ranges.give("other", 110), first);
        assert_ne!(ranges.give("third", 110), again);
    }

    #[test]
    fn two_nodes_may_have_been_given_the_same() {
        let mut ranges = Ranges::new(net("10.42.0.0/16"));
        ranges.take("a", net("10.42.0.0/24"));
        ranges.take("b", net("10.42.0.0/24"));
        ranges.release("a");
        assert_eq!(ranges.give("c", 110), Some(net("10.42.1.0/24")));
    }
}
