//! The other nodes of the cluster: the ways to their pods, and whether they are on this machine.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, PoisonError};

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use sampan_client::Informers;
use tokio_util::sync::CancellationToken;

use crate::error::Result;
use crate::network::Network;
use crate::routes::{self, Metric};
use crate::services::proxy::SharedAddresses;

/// Keeps the ways to other nodes.
pub(crate) struct Nodes {
    pub(crate) network: Network,
    pub(crate) name: String,
    pub(crate) cluster: Ipv4Net,
    pub(crate) metric: Metric,
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
        if informer.is_empty() {
            self.known.cancel();
        }
        let mut changes = informer.subscribe();
        let mut ways: BTreeMap<Ipv4Net, (String, Ipv4Addr)> = BTreeMap::new();
        let mut shared = HashSet::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                change = changes.recv() => if change.is_none() { return },
            }
            // Nodes report every few seconds; few of these change a way.
            while changes.try_recv().is_ok() {}
            let nodes: Vec<Arc<Node>> = informer.list();
            let others = || nodes.iter().filter(|node| node.name_any() != self.name);
            let now: BTreeMap<_, _> = others()
                .filter_map(|node| routes::way_to(node).map(|(range, at)| (range, (node.name_any(), at))))
                .collect();
            let theirs: HashSet<Ipv4Addr> = others()
                .flat_map(|node| routes::internal_addresses(node))
                .filter_map(|address| match address {
                    IpAddr::V4(address) => Some(address),
                    IpAddr::V6(_) => None,
                })
                .collect();
            if theirs != shared {
                shared.clone_from(&theirs);
                *self.shared.write().unwrap_or_else(PoisonError::into_inner) = theirs;
            }
            self.known.cancel();
            if now == ways {
                continue;
            }
            match self.sync(now.iter().map(|(range, (_, at))| (*range, *at))).await {
                Ok(true) => ways = now,
                // Tried again when a node reports the next time.
                Ok(false) => ways.clear(),
                Err(error) => tracing::error!(%error, "the ways to other nodes are not up to date"),
            }
        }
    }

    async fn sync(&self, nodes: impl Iterator<Item = (Ipv4Net, Ipv4Addr)>) -> Result<bool> {
        let (cluster, metric) = (self.cluster, self.metric);
        self.network.sync_ways(|own| routes::wanted(nodes, own, cluster, metric)).await
    }
}
