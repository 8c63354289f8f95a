//! The controllers: each makes one part of the cluster be as its objects say it should be.
//!
//! All reach the cluster through the Kubernetes API only, with shared caches
//! ([`sampan_client::Informers`]) and one work-queue mechanism ([`queue`]). A controller is a
//! function of the whole state of its key, never of the change that woke it, so that nothing is
//! lost when a process ends at any point.

mod context;
mod deployment;
mod endpoints;
mod error;
mod gc;
mod kinds;
mod namespace;
mod node;
mod node_ipam;
mod owner;
mod pod;
mod pod_gc;
mod queue;
mod replicaset;
mod root_ca;
mod service_account;
#[cfg(test)]
mod simulation;

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use ipnet::IpNet;
use sampan_client::{Clock, Informers};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::context::Context;

/// What an operator can set.
#[derive(Clone, Debug)]
pub struct Config {
    /// How long a node may stay silent before it counts as lost.
    pub node_monitor_grace: Duration,
    /// The same for a node that has never said anything.
    pub node_startup_grace: Duration,
    /// How many nodes a second may have their pods evicted.
    pub node_eviction_rate: f32,
    /// Where nodes get the ranges of their pods' addresses from; `None`: somebody else sets them.
    pub cluster_cidr: Option<IpNet>,
    /// PEM of what signed the API server's certificate, published to every namespace.
    pub root_ca: String,
    /// So many finished pods are kept.
    pub terminated_pod_threshold: usize,
    /// How long a pod may name a node that is not there before it is deleted.
    pub orphaned_pod_grace: Duration,
    pub clock: Clock,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node_monitor_grace: Duration::from_secs(40),
            node_startup_grace: Duration::from_secs(60),
            node_eviction_rate: 0.1,
            cluster_cidr: None,
            root_ca: String::new(),
            terminated_pod_threshold: 12_500,
            orphaned_pod_grace: Duration::from_secs(40),
            clock: Clock::system(),
        }
    }
}

/// Runs all controllers until `shutdown`.
pub fn run(
    informers: Informers,
    config: Config,
    shutdown: CancellationToken,
) -> BoxFuture<'static, anyhow::Result<()>> {
    // Boxed: compiled with this crate, not again with each program that calls it.
    Box::pin(run_all(informers, config, shutdown))
}

async fn run_all(informers: Informers, config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let context = Context {
        client: informers.client().clone(),
        informers,
        clock: config.clock.clone(),
        config: Arc::new(config),
        shutdown: shutdown.clone(),
    };
    let mut controllers = JoinSet::new();
    let mut start = |controller: BoxFuture<'static, ()>| {
        let shutdown = shutdown.clone();
        // At any point: what was begun is found again, by the state it left.
        controllers.spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = controller => {}
            }
        });
    };
    start(deployment::run(context.clone()).boxed());
    start(replicaset::run(context.clone()).boxed());
    start(endpoints::run(context.clone()).boxed());
    start(namespace::run(context.clone()).boxed());
    start(gc::run(context.clone()).boxed());
    start(service_account::run(context.clone()).boxed());
    start(root_ca::run(context.clone()).boxed());
    start(node::run(context.clone()).boxed());
    start(node_ipam::run(context.clone()).boxed());
    start(pod_gc::run(context).boxed());
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            ended = controllers.join_next() => match ended {
                // One that ends early would leave its part of the cluster alone, unseen.
                Some(Err(error)) => anyhow::bail!("a controller ended: {error}"),
                Some(Ok(())) if shutdown.is_cancelled() => break,
                Some(Ok(())) => {}
                None => {
                    shutdown.cancelled().await;
                    break;
                }
            },
        }
    }
    while controllers.join_next().await.is_some() {}
    Ok(())
}
