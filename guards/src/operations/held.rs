//! What a pod that is there takes of memory.

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use sampan_client::Informers;
use sampan_server::Identity;
use sampan_store::Options;
use tokio_util::sync::CancellationToken;

use super::Taken;
use crate::meter;
use crate::server::Running;

const FIRST: usize = 100;
const PODS: usize = 1_000;

pub async fn held() -> Result<Taken> {
    // The store's cache of pages is bounded, and no part of what a pod takes.
    let running = Running::start(Options { cache_bytes: 64 << 10, ..Options::default() }).await?;
    running.create_pods(0..FIRST).await?;
    let before = meter::held();
    running.create_pods(FIRST..FIRST + PODS).await?;
    let server = meter::held().saturating_sub(before) / PODS as u64;

    let end = CancellationToken::new();
    let before = meter::held();
    let informers = Informers::new(running.client(Identity::scheduler()), end.clone());
    let pods = informers.all::<Pod>();
    pods.synced().await;
    let informer = meter::held().saturating_sub(before) / (FIRST + PODS) as u64;
    ensure!(pods.len() == FIRST + PODS, "the cache has {} pods", pods.len());
    end.cancel();
    Ok([("server", server), ("informer", informer)].map(|(name, count)| (name.to_owned(), count)).into())
}
