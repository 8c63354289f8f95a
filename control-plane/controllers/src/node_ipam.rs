//! Gives each node a range of the cluster's pod addresses: one half for Wasm pods and one for others,
//! each large enough for all pods of the node.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use sampan_api::quantity::Quantity;
use sampan_client::{EventKind, EventRecorder, Informer};
use serde_json::json;

use crate::context::Context;
use crate::error::{Error, found};
use crate::owner::Written;
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
        cluster,
        nodes: nodes.clone(),
        written: Written::new(),
        context: context.clone(),
    });
    let queue = Queue::new();
    nodes.synced().await;
    let keys = queue.clone();
    queue::feed(&nodes, &context.shutdown, move |change| keys.add(change.object().name_any()));
    // One at a time: two nodes must not get the same range.
    queue::work(controller, queue, 1, context.shutdown).await;
}

struct Ipam {
    context: Context,
    events: EventRecorder,
    cluster: IpNet,
    nodes: Informer<Node>,
    /// One for all: each decision has to see the ones before it.
    written: Written<()>,
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
        self.written.seen(&(), &self.nodes).await;
        let nodes = self.nodes.list();
        let taken: Vec<IpNet> = nodes.iter().filter_map(|node| range_of(node)).collect();
        if nodes.iter().any(|node| node.name_any() == *key && range_of(node).is_some()) {
            return Ok(None);
        }
        let Some(range) = free(self.cluster, pods, &taken) else {
            let text = format!("Node {key} status is now: CIDRNotAvailable");
            self.events.record(&*node, EventKind::Normal, "CIDRNotAvailable", text);
            tracing::warn!(node = key, cluster = %self.cluster, pods, "no range is free");
            return Ok(Some(AGAIN));
        };
        tracing::info!(node = key, %range, "range of pod addresses");
        let patch = Patch::Merge(json!({
            "metadata": { "uid": node.metadata.uid },
            "spec": { "podCIDR": range, "podCIDRs": [range] },
        }));
        let api: Api<Node> = Api::all(self.context.client.clone());
        if let Some(written) = found(api.patch(key, &PatchParams::default(), &patch).await)? {
            self.written.note(&(), written.metadata.resource_version.as_deref());
        }
        Ok(None)
    }
}

fn range_of(node: &Node) -> Option<IpNet> {
    node.spec.as_ref()?.pod_cidr.as_ref()?.parse().ok()
}

/// How many pods a node takes; `None` until it says so.
fn pods_of(node: &Node) -> Option<u32> {
    // A quantity: a thousand pods are "1k".
    let pods = Quantity::parse(&node.status.as_ref()?.capacity.as_ref()?.get("pods")?.0).ok()?;
    u32::try_from(pods.value()).ok()
}

/// The first free range in which either half holds so many pods.
fn free(cluster: IpNet, pods: u32, taken: &[IpNet]) -> Option<IpNet> {
    let size = (2 * (u128::from(pods) + HEADROOM)).next_power_of_two();
    let bits: u8 = if matches!(cluster, IpNet::V4(_)) { 32 } else { 128 };
    let prefix = bits.checked_sub(u8::try_from(size.trailing_zeros()).ok()?)?;
    if prefix < cluster.prefix_len() {
        return None;
    }
    let number = |address: IpAddr| match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    };
    let (start, end) = (number(cluster.network()), number(cluster.broadcast()));
    let mut taken: Vec<(u128, u128)> = taken
        .iter()
        .filter(|range| matches!(range, IpNet::V4(_)) == (bits == 32))
        .map(|range| (number(range.network()), number(range.broadcast())))
        .collect();
    taken.sort_unstable();
    // From one candidate past each taken range to the next: sizes may differ.
    let mut at = start;
    loop {
        let last = at.checked_add(size - 1)?;
        if last > end {
            return None;
        }
        let Some((_, until)) = taken.iter().find(|(from, until)| *from <= last && at <= *until) else {
            break;
        };
        at = until.checked_add(1)?.checked_next_multiple_of(size)?;
    }
    if bits == 32 {
        let address = Ipv4Addr::from(u32::try_from(at).ok()?);
        Ipv4Net::new(address, prefix).ok().map(IpNet::V4)
    } else {
        Ipv6Net::new(Ipv6Addr::from(at), prefix).ok().map(IpNet::V6)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn ranges_are_sized_by_pods_and_follow_one_another() {
        let cluster = net("10.42.0.0/16");
        assert_eq!(free(cluster, 110, &[]), Some(net("10.42.0.0/24")));
        assert_eq!(free(cluster, 110, &[net("10.42.0.0/24")]), Some(net("10.42.1.0/24")));
        assert_eq!(free(cluster, 1000, &[net("10.42.0.0/24")]), Some(net("10.42.8.0/21")));
        assert_eq!(free(cluster, 110, &[net("10.42.0.0/24"), net("10.42.8.0/21")]), Some(net("10.42.1.0/24")));
        assert_eq!(free(cluster, 110, &[net("10.42.0.0/16")]), None);
        assert_eq!(free(cluster, 50_000, &[]), None);
        assert_eq!(free(net("fd00::/64"), 110, &[net("fd00::/120")]), Some(net("fd00::100/120")));
    }

    proptest! {
        #[test]
        fn ranges_never_overlap(pods in prop::collection::vec(1_u32..3000, 1..40)) {
            let cluster = net("10.42.0.0/16");
            let mut taken: Vec<IpNet> = Vec::new();
            for pods in pods {
                let Some(range) = free(cluster, pods, &taken) else { continue };
                prop_assert!(cluster.contains(&range) && range.trunc() == range);
                prop_assert!(1_u128 << (32 - range.prefix_len()) >= 2 * u128::from(pods));
                for other in &taken {
                    prop_assert!(!other.contains(&range) && !range.contains(other), "{other} {range}");
                }
                taken.push(range);
            }
        }
    }
}
