//! The other nodes of the cluster: the ways to their pods, and whether they are on this machine.

use std::collections::{BTreeMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use sampan_client::Informers;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::network::Network;
use crate::services::proxy::SharedAddresses;
use crate::ways::{Peer, Ways, internal_addresses};

/// How often the machine is looked at: it drops routes over a link that goes down, and tells nobody.
const LOOK: Duration = Duration::from_millis(if cfg!(test) { 100 } else { 5000 });

/// Keeps the ways to other nodes.
pub(crate) struct Nodes {
    pub(crate) network: Network,
    pub(crate) name: String,
    pub(crate) ways: Ways,
    pub(crate) shared: SharedAddresses,
    /// Set once the first look is done.
    pub(crate) known: CancellationToken,
}

impl Nodes {
    pub(crate) async fn follow(self, informers: Informers, shutdown: CancellationToken) {
        let informer = informers.all::<Node>();
        tokio::select! {
            () = informer.synced() => {}
            () = shutdown.cancelled() => return,
        }
        let mut changes = informer.subscribe();
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut known: Vec<Peer> = Vec::new();
        let mut without: BTreeMap<Ipv4Net, String> = BTreeMap::new();
        let mut shared = HashSet::new();
        loop {
            let look = tokio::select! {
                () = shutdown.cancelled() => return,
                change = changes.recv() => match change {
                    Some(_) => false,
                    None => return,
                },
                _ = looks.tick() => true,
            };
            // Nodes report every few seconds; few of these change a way.
            while changes.try_recv().is_ok() {}
            let nodes: Vec<Arc<Node>> = informer.list();
            let others = || nodes.iter().filter(|node| node.name_any() != self.name);
            let theirs: HashSet<Ipv4Addr> = others().flat_map(|node| internal_addresses(node)).collect();
            if theirs != shared {
                shared.clone_from(&theirs);
                *self.shared.write().unwrap_or_else(PoisonError::into_inner) = theirs;
            }
            self.known.cancel();
            let mut peers: Vec<Peer> = others().filter_map(|node| Peer::of(node)).collect();
            peers.sort();
            if peers == known && !look {
                continue;
            }
            match self.network.sync_ways(&self.ways, &peers).await {
                Ok(now) => {
                    for (range, why) in now.iter().filter(|(range, why)| without.get(range) != Some(why)) {
                        tracing::warn!(%range, why, "no way to the pods of another node; trying again");
                    }
                    let mended = without.keys().filter(|range| !now.contains_key(range));
                    for range in mended.filter(|range| peers.iter().any(|peer| peer.range() == **range)) {
                        tracing::info!(%range, "the pods of another node can be reached again");
                    }
                    (known, without) = (peers, now);
                }
                Err(error) => tracing::error!(%error, "the ways to other nodes are not up to date"),
            }
        }
    }
}
