//! Deletes pods that do not tolerate what their node has become.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use sampan_client::{Change, EventKind, EventRecorder, Informer};
use serde_json::json;

use super::taints::{self, Stay};
use crate::context::Context;
use crate::error::{Error, found};
use crate::pod;
use crate::queue::{self, Controller, Queue};

/// Namespace and name.
type Key = (String, String);

pub async fn run(context: Context) {
    let nodes = context.informers.all::<Node>();
    let pods = context.informers.all::<Pod>();
    let pods_by_node = super::by_node(&pods);
    let controller = Arc::new(Evict {
        events: context.recorder("taint-eviction-controller"),
        nodes: nodes.clone(),
        pods: pods.clone(),
        context: context.clone(),
    });
    let queue = Queue::new();
    nodes.synced().await;
    pods.synced().await;
    let keys = queue.clone();
    queue::feed(&nodes, &context.shutdown, move |change| {
        let taints = |node: &Node| taints::all(node).cloned().collect::<Vec<_>>();
        let same = match &change {
            Change::Updated { old, new } => taints(old) == taints(new),
            Change::Added(node) => taints::all(node).next().is_none(),
            Change::Deleted(_) => true,
        };
        if !same {
            for pod in pods_by_node.get(&change.object().name_any()) {
                keys.add(key(&pod));
            }
        }
    });
    let (keys, of) = (queue.clone(), nodes);
    queue::feed(&pods, &context.shutdown, move |change| {
        if matches!(change, Change::Deleted(_)) {
            return;
        }
        let pod = change.object();
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        let tainted = |node: Arc<Node>| taints::all(&node).next().is_some();
        if node.and_then(|node| of.get("", node)).is_some_and(tainted) {
            keys.add(key(pod));
        }
    });
    queue::work(controller, queue, 8, context.shutdown).await;
}

fn key(pod: &Pod) -> Key {
    (pod.namespace().unwrap_or_default(), pod.name_any())
}

struct Evict {
    context: Context,
    events: EventRecorder,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
}

impl Controller for Evict {
    const NAME: &'static str = "taint-eviction";
    type Key = Key;

    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let Some(pod) = self.pods.get(&key.0, &key.1) else { return Ok(None) };
        let name = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        let Some(node) = name.and_then(|name| self.nodes.get("", name)) else { return Ok(None) };
        if pod::is_terminating(&pod) {
            return Ok(None);
        }
        let now = self.context.clock.now();
        let end = match taints::stay(&pod, &node, now) {
            Stay::Forever => return Ok(None),
            Stay::Until(end) => end,
        };
        if end > now {
            return Ok(Some(Duration::try_from(end.duration_since(now)).unwrap_or_default()));
        }
        let text = format!("Marking for deletion Pod {}/{}", key.0, key.1);
        self.events.record(&*pod, EventKind::Normal, "TaintManagerEviction", text);
        let pods: Api<Pod> = Api::namespaced(self.context.client.clone(), &key.0);
        let patch = Patch::Strategic(json!({
            "metadata": { "uid": pod.metadata.uid },
            "status": { "conditions": [{
                "type": "DisruptionTarget",
                "status": "True",
                "reason": "DeletionByTaintManager",
                "message": "Taint manager: deleting due to NoExecute taint",
                "lastTransitionTime": self.context.clock.time(),
            }]},
        }));
        found(pods.patch_status(&key.1, &PatchParams::default(), &patch).await)?;
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid: pod.metadata.uid.clone(), resource_version: None }),
            ..Default::default()
        };
        found(pods.delete(&key.1, &params).await)?;
        Ok(None)
    }
}
