//! Deletes pods that nobody else would: of nodes that are gone, finished ones when there are too
//! many, and deleted ones that were never on a node.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use sampan_client::{Change, Index, Informer};
use serde_json::json;
use tokio::time::Instant;

use crate::context::Context;
use crate::error::{Error, found};
use crate::node::{by_node, taints};
use crate::pod;
use crate::queue::{self, Controller, Queue};

const FINISHED: &str = "finished";
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    /// Namespace and name.
    Pod(String, String),
    /// All finished pods.
    Finished,
}

pub(crate) async fn run(context: Context) {
    let nodes = context.informers.all::<Node>();
    let pods = context.informers.all::<Pod>();
    let of_node = by_node(&pods);
    let finished =
        pods.index("finished", |pod| if pod::is_finished(pod) { vec![FINISHED.to_owned()] } else { Vec::new() });
    let controller = Arc::new(PodGc {
        nodes: nodes.clone(),
        pods: pods.clone(),
        finished: finished.clone(),
        missing: Mutex::default(),
        context: context.clone(),
    });
    let queue = Queue::paced(Duration::from_millis(500));
    nodes.synced().await;
    pods.synced().await;
    let keys = queue.clone();
    queue::feed(&nodes, &context.shutdown, move |change| {
        let node = change.object();
        if matches!(change, Change::Deleted(_)) || is_out_of_service(node) {
            of_node.get(&node.name_any()).iter().for_each(|pod| keys.add(key(pod)));
        }
    });
    let (keys, threshold) = (queue.clone(), context.config.terminated_pod_threshold);
    queue::feed(&pods, &context.shutdown, move |change| {
        let pod = change.object();
        if matches!(change, Change::Deleted(_)) {
            return;
        }
        let node = node_of(pod).map(|name| nodes.get("", name));
        let is_odd = match node {
            None => pod::is_terminating(pod),
            Some(None) => true,
            Some(Some(node)) => pod::is_terminating(pod) && is_out_of_service(&node),
        };
        if is_odd {
            keys.add(key(pod));
        }
        if pod::is_finished(pod) && threshold > 0 && finished.count(FINISHED) > threshold {
            keys.add(Key::Finished);
        }
    });
    queue::work(controller, queue, 8, context.shutdown).await;
}

fn key(pod: &Pod) -> Key {
    Key::Pod(pod.namespace().unwrap_or_default(), pod.name_any())
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).filter(|name| !name.is_empty())
}

/// Somebody vouches that the machine is off.
fn is_out_of_service(node: &Node) -> bool {
    !taints::is_ready(node) && taints::all(node).any(|taint| taint.key == OUT_OF_SERVICE)
}

struct PodGc {
    context: Context,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    finished: Index<Pod>,
    /// Since when nodes that pods name are not there.
    missing: Mutex<HashMap<String, Instant>>,
}

impl Controller for PodGc {
    const NAME: &'static str = "pod-gc";
    type Key = Key;

    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let Key::Pod(namespace, name) = key else { return self.thin_out().await };
        let Some(pod) = self.pods.get(namespace, name) else { return Ok(None) };
        let Some(node) = node_of(&pod) else {
            if pod::is_terminating(&pod) {
                self.delete(&pod, None).await?;
            }
            return Ok(None);
        };
        if let Some(cached) = self.nodes.get("", node) {
            self.missing().remove(node);
            if pod::is_terminating(&pod) && is_out_of_service(&cached) {
                self.delete(&pod, Some("PodGC: node is out-of-service")).await?;
            }
            return Ok(None);
        }
        // It may be about to register.
        let since = *self.missing().entry(node.to_owned()).or_insert_with(Instant::now);
        let left = self.context.config.orphaned_pod_grace.saturating_sub(since.elapsed());
        if !left.is_zero() {
            return Ok(Some(left));
        }
        let nodes: Api<Node> = Api::all(self.context.client.clone());
        if found(nodes.get_metadata(node).await)?.is_none() {
            tracing::info!(namespace, name, node, "its node is gone");
            self.delete(&pod, Some("PodGC: node no longer exists")).await?;
        }
        Ok(None)
    }
}

impl PodGc {
    fn missing(&self) -> std::sync::MutexGuard<'_, HashMap<String, Instant>> {
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        missing.retain(|node, _| self.nodes.get("", node).is_none());
        missing
    }

    /// Deletes the oldest finished pods beyond the threshold.
    async fn thin_out(&self) -> Result<Option<Duration>, Error> {
        let mut finished = self.finished.get(FINISHED);
        finished.retain(|pod| !pod::is_terminating(pod));
        let threshold = self.context.config.terminated_pod_threshold;
        let excess = finished.len().saturating_sub(threshold);
        finished.sort_by_key(|pod| (pod.metadata.creation_timestamp.as_ref().map(|time| time.0), pod.name_any()));
        finished.truncate(excess);
        let deleted: Vec<Result<(), Error>> = futures::stream::iter(finished)
            .map(|pod| async move { self.delete(&pod, None).await })
            .buffer_unordered(16)
            .collect()
            .await;
        deleted.into_iter().collect::<Result<(), Error>>()?;
        Ok(None)
    }

    /// Deletes at once, nobody is there to end it. `why` is told to who waits for the pod.
    async fn delete(&self, pod: &Pod, why: Option<&str>) -> Result<(), Error> {
        let pods: Api<Pod> = Api::namespaced(self.context.client.clone(), &pod.namespace().unwrap_or_default());
        if let Some(why) = why.filter(|_| !pod::is_finished(pod)) {
            let patch = Patch::Strategic(json!({
                "metadata": { "uid": pod.metadata.uid },
                "status": { "phase": "Failed", "conditions": [{
                    "type": "DisruptionTarget",
                    "status": "True",
                    "reason": "DeletionByPodGC",
                    "message": why,
                    "lastTransitionTime": self.context.clock.time(),
                }]},
            }));
            found(pods.patch_status(&pod.name_any(), &PatchParams::default(), &patch).await)?;
        }
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: pod.metadata.uid.clone(), resource_version: None }),
            ..Default::default()
        };
        found(pods.delete(&pod.name_any(), &params).await)?;
        Ok(())
    }
}
