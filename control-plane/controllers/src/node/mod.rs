//! Node lifecycle: notices that a node is silent, says so, and has its pods replaced elsewhere.

mod evict;
pub(crate) mod taints;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use sampan_client::{Change, EventKind, EventRecorder, Index, Informer};
use serde_json::json;
use tokio::time::Instant;

use crate::context::Context;
use crate::error::{Error, found};
use crate::pod;
use crate::queue::{self, Controller, Queue};
use taints::Outage;

const LEASES: &str = "kube-node-lease";
/// Conditions that a silent node can no longer vouch for.
const VOUCHED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
/// From so many nodes on, a partial outage slows eviction and no longer stops it.
const LARGE: usize = 50;
const SLOWER: f32 = 10.0;

pub(crate) async fn run(context: Context) {
    tokio::join!(watch_health(context.clone()), evict::run(context));
}

async fn watch_health(context: Context) {
    let nodes = context.informers.all::<Node>();
    let leases = context.informers.all::<Lease>();
    let pods = context.informers.all::<Pod>();
    let queue = Queue::new();
    let controller = Arc::new(Health {
        events: context.recorder("node-controller"),
        nodes: nodes.clone(),
        leases: leases.clone(),
        pods_by_node: by_node(&pods),
        signs: Mutex::default(),
        next_eviction: Mutex::new(Instant::now()),
        context: context.clone(),
    });
    nodes.synced().await;
    leases.synced().await;
    pods.synced().await;
    let (keys, of) = (queue.clone(), controller.clone());
    queue::feed(&nodes, &context.shutdown, move |change| {
        let node = change.object();
        if matches!(change, Change::Deleted(_)) {
            of.signs().remove(&node.name_any());
        } else {
            of.note(&node.name_any(), Sign::status(node));
        }
        // Whether pods are made to leave depends on how the others do.
        let was = if let Change::Updated { old, .. } = &change { Some(taints::is_ready(old)) } else { None };
        if was == Some(taints::is_ready(node)) {
            keys.add(node.name_any());
        } else {
            of.nodes.list().iter().for_each(|node| keys.add(node.name_any()));
            keys.add(node.name_any());
        }
    });
    let (keys, of) = (queue.clone(), controller.clone());
    queue::feed(&leases, &context.shutdown, move |change| {
        let lease = change.object();
        if lease.metadata.namespace.as_deref() == Some(LEASES) && !matches!(change, Change::Deleted(_)) {
            let name = lease.name_any();
            of.note(&name, Sign::lease(lease));
            // A renewal of a node that is well moves nothing: its timer finds it in time.
            if of.nodes.get("", &name).is_some_and(|node| !taints::is_ready(&node)) {
                keys.add(name);
            }
        }
    });
    queue::work(controller, queue, 4, context.shutdown).await;
}

/// Pods by the name of their node.
pub(crate) fn by_node(pods: &Informer<Pod>) -> Index<Pod> {
    pods.index("node", |pod| {
        pod.spec.iter().filter_map(|spec| spec.node_name.clone()).filter(|it| !it.is_empty()).collect()
    })
}

/// A sign of life, as the node wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Sign {
    Renewed(Option<MicroTime>),
    Beat(Option<Time>),
}

impl Sign {
    fn lease(lease: &Lease) -> Self {
        Self::Renewed(lease.spec.as_ref().and_then(|spec| spec.renew_time.clone()))
    }

    fn status(node: &Node) -> Self {
        let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let ready = conditions.into_iter().find(|condition| condition.type_ == "Ready");
        Self::Beat(ready.and_then(|condition| condition.last_heartbeat_time.clone()))
    }
}

/// When a node was last heard of: when its sign changed here, whatever its own clock says.
struct Heard {
    at: Instant,
    renewed: Option<Sign>,
    beat: Option<Sign>,
    /// Whether it was ready when last looked at.
    was_ready: Option<bool>,
}

struct Health {
    context: Context,
    events: EventRecorder,
    nodes: Informer<Node>,
    leases: Informer<Lease>,
    pods_by_node: Index<Pod>,
    signs: Mutex<HashMap<String, Heard>>,
    next_eviction: Mutex<Instant>,
}

impl Controller for Health {
    const NAME: &'static str = "node-lifecycle";
    type Key = String;

    async fn reconcile(&self, key: &String) -> Result<Option<Duration>, Error> {
        let Some(cached) = self.nodes.get("", key) else { return Ok(None) };
        if let Some(lease) = self.leases.get(LEASES, key) {
            self.note(key, Sign::lease(&lease));
        }
        self.note(key, Sign::status(&cached));
        let has_spoken = taints::condition(&cached, "Ready").is_some();
        let config = &self.context.config;
        let grace = if has_spoken { config.node_monitor_grace } else { config.node_startup_grace };
        let heard = self.signs().get(key).map(|heard| heard.at);
        let left = heard.map(|at| (at + grace).saturating_duration_since(Instant::now()));
        let left = left.unwrap_or(grace);
        let node = if left.is_zero() {
            match self.mark_unknown(&cached).await? {
                Some(node) => node,
                None => return Ok(None),
            }
        } else {
            (*cached).clone()
        };
        self.note_readiness(&node).await?;
        let wait = self.taint(&node).await?;
        let next = if left.is_zero() { None } else { Some(left) };
        Ok(crate::replicaset::sooner(next, wait))
    }
}

impl Health {
    fn signs(&self) -> std::sync::MutexGuard<'_, HashMap<String, Heard>> {
        self.signs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, node: &str, sign: Sign) {
        let mut signs = self.signs();
        let heard = signs.entry(node.to_owned()).or_insert_with(|| Heard {
            at: Instant::now(),
            renewed: None,
            beat: None,
            was_ready: None,
        });
        let last = match sign {
            Sign::Renewed(_) => &mut heard.renewed,
            Sign::Beat(_) => &mut heard.beat,
        };
        if last.as_ref() != Some(&sign) {
            *last = Some(sign);
            heard.at = Instant::now();
        }
    }

    /// Says of a silent node that nothing is known of it.
    async fn mark_unknown(&self, node: &Node) -> Result<Option<Node>, Error> {
        let now = self.context.clock.time();
        let current = node.status.as_ref().and_then(|status| status.conditions.clone());
        let current = current.unwrap_or_default();
        let mut changed: Vec<NodeCondition> = Vec::new();
        for kind in VOUCHED {
            match current.iter().find(|condition| condition.type_ == kind) {
                None => changed.push(NodeCondition {
                    type_: kind.to_owned(),
                    status: "Unknown".to_owned(),
                    reason: Some("NodeStatusNeverUpdated".to_owned()),
                    message: Some("Kubelet never posted node status.".to_owned()),
                    last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                    last_transition_time: Some(now.clone()),
                }),
                Some(condition) if condition.status == "Unknown" => {}
                Some(condition) => changed.push(NodeCondition {
                    status: "Unknown".to_owned(),
                    reason: Some("NodeStatusUnknown".to_owned()),
                    message: Some("Kubelet stopped posting node status.".to_owned()),
                    last_transition_time: Some(now.clone()),
                    ..condition.clone()
                }),
            }
        }
        if changed.is_empty() {
            return Ok(Some(node.clone()));
        }
        tracing::info!(node = node.name_any(), "the node is silent");
        let nodes: Api<Node> = Api::all(self.context.client.clone());
        // Under the version that was looked at: it may speak up right now.
        let patch = Patch::Strategic(json!({
            "metadata": { "resourceVersion": node.metadata.resource_version },
            "status": { "conditions": changed },
        }));
        let written = nodes.patch_status(&node.name_any(), &PatchParams::default(), &patch).await;
        let written = found(written)?;
        if let Some(node) = &written {
            // What was written here is no sign of life.
            let mut signs = self.signs();
            if let Some(heard) = signs.get_mut(&node.name_any()) {
                heard.beat = Some(Sign::status(node));
            }
        }
        Ok(written)
    }

    /// Once a node stops being ready its pods are not ready either: nobody else can say so.
    async fn note_readiness(&self, node: &Node) -> Result<(), Error> {
        let name = node.name_any();
        let is_ready = taints::is_ready(node);
        let was_ready = self.signs().get(&name).and_then(|heard| heard.was_ready);
        let lost = taints::condition(node, "Ready") == Some("Unknown");
        if was_ready == Some(true) && !is_ready {
            let text = format!("Node {name} status is now: NodeNotReady");
            self.events.record(node, EventKind::Normal, "NodeNotReady", text);
        }
        if (was_ready == Some(true) && !is_ready) || lost {
            let pods = self.pods_by_node.get(&name);
            let marked: Vec<Result<(), Error>> = futures::stream::iter(pods)
                .filter(|pod| std::future::ready(pod::is_ready(pod)))
                .map(|pod| async move { self.mark_not_ready(&pod).await })
                .buffer_unordered(16)
                .collect()
                .await;
            marked.into_iter().collect::<Result<(), Error>>()?;
        }
        if let Some(heard) = self.signs().get_mut(&name) {
            heard.was_ready = Some(is_ready);
        }
        Ok(())
    }

    async fn mark_not_ready(&self, pod: &Pod) -> Result<(), Error> {
        self.events.record(pod, EventKind::Warning, "NodeNotReady", "Node is not ready");
        let pods: Api<Pod> = Api::namespaced(self.context.client.clone(), &pod.namespace().unwrap_or_default());
        let patch = Patch::Strategic(json!({
            "metadata": { "uid": pod.metadata.uid },
            "status": { "conditions": [{
                "type": "Ready",
                "status": "False",
                "lastTransitionTime": self.context.clock.time(),
            }]},
        }));
        found(pods.patch_status(&pod.name_any(), &PatchParams::default(), &patch).await)?;
        Ok(())
    }

    /// Brings the taints up to date. `Some`: when eviction may go on.
    async fn taint(&self, node: &Node) -> Result<Option<Duration>, Error> {
        let (evict, wait) = match taints::evicting(node) {
            Some(key) if taints::is_evicting(node, key) => (self.rate() > 0.0, None),
            Some(_) => match self.permit() {
                Ok(()) => (true, None),
                Err(wait) => (false, wait),
            },
            None => (false, None),
        };
        let Some(taints) = taints::wanted(node, evict, &self.context.clock.time()) else {
            return Ok(wait);
        };
        let nodes: Api<Node> = Api::all(self.context.client.clone());
        let patch = Patch::Merge(json!({
            "metadata": { "resourceVersion": node.metadata.resource_version },
            "spec": { "taints": taints },
        }));
        found(nodes.patch(&node.name_any(), &PatchParams::default(), &patch).await)?;
        Ok(wait)
    }

    /// How many nodes a second may be evicted now.
    fn rate(&self) -> f32 {
        let nodes = self.nodes.list();
        let ready = nodes.iter().filter(|node| taints::is_ready(node)).count();
        let rate = self.context.config.node_eviction_rate;
        match taints::outage(ready, nodes.len() - ready) {
            Outage::No => rate,
            Outage::Partial if nodes.len() > LARGE => rate / SLOWER,
            Outage::Partial | Outage::Full => 0.0,
        }
    }

    /// Whether one more node may be evicted now, or else when; never is `Err(None)`.
    fn permit(&self) -> Result<(), Option<Duration>> {
        let rate = self.rate();
        if rate <= 0.0 {
            return Err(None);
        }
        let now = Instant::now();
        let mut next = self.next_eviction.lock().unwrap_or_else(PoisonError::into_inner);
        if *next > now {
            return Err(Some(*next - now));
        }
        *next = now + Duration::from_secs_f32(1.0 / rate);
        Ok(())
    }
}
