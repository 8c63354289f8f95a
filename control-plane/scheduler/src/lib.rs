//! The scheduler: gives every pod without a node the best of those it fits on, or says node by
//! node why none does. It decides on a snapshot in memory and binds in the background, so that
//! the next decision does not wait for the last one's write.

mod decision;
mod filter;
mod fit;
mod neighbours;
mod queue;
mod resources;
mod score;
mod snapshot;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use futures::future::BoxFuture;
use http::Request;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::ResourceExt as _;
use kube::api::{Api, Patch, PatchParams};
use sampan_client::{Change, EventKind, EventRecorder, Informers};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use queue::Queue;

pub use decision::Decisions;
pub use filter::Diagnosis;

/// Who schedules pods that name nobody else.
pub const NAME: &str = "default-scheduler";

/// How many bindings may be on their way.
const BINDINGS: usize = 64;
/// How long after a change nothing more is tried for pods that are still backing off.
const IDLE: Duration = Duration::from_secs(60);

/// Schedules until `shutdown`.
pub fn run(informers: Informers, shutdown: CancellationToken) -> BoxFuture<'static, Result<()>> {
    // Boxed: compiled with this crate, not again with each program that calls it.
    Box::pin(schedule(informers, shutdown))
}

async fn schedule(informers: Informers, shutdown: CancellationToken) -> Result<()> {
    let (pods, nodes, namespaces) = (informers.all::<Pod>(), informers.all::<Node>(), informers.all::<Namespace>());
    tokio::join!(pods.synced(), nodes.synced(), namespaces.synced());
    let (mut pods, mut nodes, mut namespaces) = (pods.subscribe(), nodes.subscribe(), namespaces.subscribe());
    let (outcomes, mut unbound) = mpsc::unbounded_channel();
    let mut scheduler = Scheduler {
        decisions: Decisions::default(),
        queue: Queue::default(),
        awaited: false,
        room: false,
        binder: Binder {
            events: EventRecorder::new(informers.client().clone(), NAME, None),
            client: informers.client().clone(),
            permits: Arc::new(tokio::sync::Semaphore::new(BINDINGS)),
            outcomes,
        },
    };
    // When pods that are backing off may be tried, for what changed meanwhile.
    let mut retry = None;
    loop {
        // All that is known first: a decision on old news would be made twice.
        let mut room = std::mem::take(&mut scheduler.room);
        while let Ok(change) = namespaces.try_recv() {
            room |= scheduler.namespace_changed(&change);
        }
        while let Ok(change) = nodes.try_recv() {
            room |= scheduler.node_changed(&change);
        }
        while let Ok(change) = pods.try_recv() {
            room |= scheduler.pod_changed(&change);
        }
        while let Ok(pod) = unbound.try_recv() {
            scheduler.unbound(&pod);
            room = true;
        }
        if room {
            retry = scheduler.unpark();
        }
        if scheduler.schedule_one().await {
            continue;
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            Some(change) = namespaces.recv() => {
                if scheduler.namespace_changed(&change) {
                    retry = scheduler.unpark();
                }
            }
            Some(change) = nodes.recv() => {
                if scheduler.node_changed(&change) {
                    retry = scheduler.unpark();
                }
            }
            Some(change) = pods.recv() => {
                if scheduler.pod_changed(&change) {
                    retry = scheduler.unpark();
                }
            }
            Some(pod) = unbound.recv() => {
                scheduler.unbound(&pod);
                retry = scheduler.unpark();
            }
            // What changed while a pod was backing off counts when the time is over.
            () = tokio::time::sleep(retry.map_or(IDLE, |at| at.saturating_duration_since(Instant::now()))) => {
                retry = scheduler.unpark();
            }
        }
    }
}

struct Scheduler {
    decisions: Decisions,
    queue: Queue,
    binder: Binder,
    /// Some pods found no node for want of other pods.
    awaited: bool,
    /// One was placed that they may have waited for.
    room: bool,
}

impl Scheduler {
    /// Whether this may make room for a pod that found none.
    fn node_changed(&mut self, change: &Change<Node>) -> bool {
        match change {
            Change::Added(node) => {
                self.decisions.set_node(node.clone());
                true
            }
            Change::Updated { old, new } => {
                self.decisions.set_node(new.clone());
                let allocatable = |node: &Node| node.status.as_ref().and_then(|status| status.allocatable.clone());
                old.spec != new.spec || old.labels() != new.labels() || allocatable(old) != allocatable(new)
            }
            Change::Deleted(node) => {
                self.decisions.remove_node(&node.name_any());
                false
            }
        }
    }

    /// Whether this may make room for a pod that found none.
    fn pod_changed(&mut self, change: &Change<Pod>) -> bool {
        let pod = change.object();
        let Some(uid) = pod.uid() else { return false };
        if matches!(change, Change::Deleted(_)) || has_ended(pod) {
            self.queue.remove(&uid);
            return self.decisions.remove_pod(&uid);
        }
        let spec = pod.spec.as_ref();
        match spec.and_then(|spec| spec.node_name.as_deref()).filter(|node| !node.is_empty()) {
            Some(node) => {
                self.queue.remove(&uid);
                return self.decisions.place(pod, node) && self.awaited;
            }
            None if is_ours(pod) => self.queue.put(pod.clone()),
            None => self.queue.remove(&uid),
        }
        false
    }

    /// Whether this may make room for a pod that found none: terms may mean other namespaces now.
    fn namespace_changed(&mut self, change: &Change<Namespace>) -> bool {
        let namespace = change.object();
        match change {
            Change::Deleted(_) => self.decisions.remove_namespace(&namespace.name_any()),
            _ => self.decisions.set_namespace(namespace.name_any(), namespace.labels().clone()),
        }
        self.awaited
    }

    /// Pods that found no node are tried again. Answers when those may be that are still backing off.
    fn unpark(&mut self) -> Option<Instant> {
        self.awaited = false;
        self.queue.unpark(Instant::now())
    }

    /// A binding failed: the place is free again, the pod waits for another try.
    fn unbound(&mut self, pod: &Arc<Pod>) {
        let uid = pod.uid().unwrap_or_default();
        self.decisions.remove_pod(&uid);
        self.queue.park(&uid, Instant::now());
    }

    /// Decides about one pod; false when none waits.
    async fn schedule_one(&mut self) -> bool {
        let Some(pod) = self.queue.next() else { return false };
        match self.decisions.schedule(&pod) {
            Ok(node) => {
                self.room |= self.awaited;
                self.binder.bind(pod, node).await;
            }
            Err(diagnosis) => {
                self.awaited |= diagnosis.waits_for_pods();
                self.queue.park(&pod.uid().unwrap_or_default(), Instant::now());
                self.binder.cannot(pod, diagnosis.to_string()).await;
            }
        }
        true
    }
}

fn has_ended(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed"))
}

fn is_ours(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let gated = spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty());
    let name = spec.scheduler_name.as_deref().unwrap_or(NAME);
    name == NAME && !gated && pod.metadata.deletion_timestamp.is_none()
}

/// Writes decisions, in the background.
struct Binder {
    client: kube::Client,
    events: EventRecorder,
    permits: Arc<tokio::sync::Semaphore>,
    outcomes: mpsc::UnboundedSender<Arc<Pod>>,
}

impl Binder {
    async fn bind(&self, pod: Arc<Pod>, node: String) {
        let Ok(permit) = self.permits.clone().acquire_owned().await else { return };
        let (client, events, outcomes) = (self.client.clone(), self.events.clone(), self.outcomes.clone());
        tokio::spawn(async move {
            let _permit = permit;
            match bind(&client, &pod, &node).await {
                Ok(()) => {
                    let name = format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
                    events.record(
                        &*pod,
                        EventKind::Normal,
                        "Scheduled",
                        format!("Successfully assigned {name} to {node}"),
                    );
                }
                Err(error) => {
                    tracing::debug!(pod = pod.name_any(), node, %error, "binding failed");
                    let _ = outcomes.send(pod);
                }
            }
        });
    }

    /// Tells why no node fits, in an event and in the pod's condition.
    async fn cannot(&self, pod: Arc<Pod>, message: String) {
        let Ok(permit) = self.permits.clone().acquire_owned().await else { return };
        self.events.record(&*pod, EventKind::Warning, "FailedScheduling", message.clone());
        let client = self.client.clone();
        tokio::spawn(async move {
            let _permit = permit;
            if let Err(error) = note(&client, &pod, &message).await {
                tracing::debug!(pod = pod.name_any(), %error, "condition not written");
            }
        });
    }
}

async fn bind(client: &kube::Client, pod: &Pod, node: &str) -> Result<()> {
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    let binding = json!({
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": { "name": name, "namespace": namespace, "uid": pod.uid() },
        "target": { "apiVersion": "v1", "kind": "Node", "name": node },
    });
    let request = Request::post(format!("/api/v1/namespaces/{namespace}/pods/{name}/binding"))
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(serde_json::to_vec(&binding)?)?;
    client.request_text(request).await?;
    Ok(())
}

async fn note(client: &kube::Client, pod: &Pod, message: &str) -> Result<()> {
    let known = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut same = known.filter(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
    if same.any(|condition| condition.message.as_deref() == Some(message)) {
        return Ok(());
    }
    let condition = json!({
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": message,
        "observedGeneration": pod.metadata.generation,
        "lastProbeTime": null,
        "lastTransitionTime": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    });
    let patch = json!({ "status": { "conditions": [condition] } });
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    pods.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(patch)).await?;
    Ok(())
}
