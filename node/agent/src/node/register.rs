//! The Node object: made at the first start, its status kept.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::disk::Pressure;
use super::facts::{self, Facts};
use crate::image::Images;
use crate::oci::Which;
use crate::pod::shared;

/// How often a status that did not change is written, and how often pressure is looked at.
const EVERY: Duration = Duration::from_secs(300);
const LOOK: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(2);
/// When a range of pod addresses should have come.
const RANGE: Duration = Duration::from_secs(5);
/// Images that a status lists, as many as the kubelet's.
const MOST_IMAGES: usize = 50;

/// What the Node object says.
pub struct Registration {
    pub client: Client,
    pub name: String,
    pub addresses: Vec<IpAddr>,
    /// Where the node's own API listens.
    pub port: u16,
    pub facts: Facts,
    pub disk: Arc<Pressure>,
    pub images: Arc<Images>,
    pub containerd: Which,
    /// What stands between a guest and the machine, and what is missing, in words.
    pub limits: Result<String, String>,
    pub mode: &'static str,
}

fn condition(kind: &str, status: bool, reason: &str, message: &str) -> (String, bool, String, String) {
    (kind.to_owned(), status, reason.to_owned(), message.to_owned())
}

impl Registration {
    fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::new();
        for (name, value) in [
            ("kubernetes.io/hostname", self.name.as_str()),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", facts::architecture()),
            ("beta.kubernetes.io/os", "linux"),
            ("beta.kubernetes.io/arch", facts::architecture()),
            ("sampan.io/runtime-wasm", "true"),
            ("sampan.io/runtime-oci", if self.containerd.available().is_ok() { "true" } else { "false" }),
            ("sampan.io/network", self.mode),
        ] {
            labels.insert(name.to_owned(), value.to_owned());
        }
        labels
    }

    fn pressure(&self) -> Vec<(String, bool, String, String)> {
        let (_, memory) = facts::memory();
        let short = memory < 100 << 20;
        self.disk.look();
        let full = self.disk.is_felt();
        let crowded = facts::processes().is_some_and(|(running, most)| running + 100 > most);
        let words = |pressed: bool, yes: (&'static str, &'static str), no: (&'static str, &'static str)| {
            if pressed { yes } else { no }
        };
        let memory = words(
            short,
            ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
            ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        );
        let disk = words(
            full,
            ("KubeletHasDiskPressure", "kubelet has disk pressure"),
            ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        );
        let processes = words(
            crowded,
            ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
            ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        );
        vec![
            condition("MemoryPressure", short, memory.0, memory.1),
            condition("DiskPressure", full, disk.0, disk.1),
            condition("PIDPressure", crowded, processes.0, processes.1),
        ]
    }

    fn conditions(&self, ready: Result<(), &str>, known: &[core::NodeCondition]) -> Vec<core::NodeCondition> {
        let mut wanted = self.pressure();
        wanted.push(match &self.limits {
            Ok(words) => condition("GuestsConfined", true, "AllLimits", words),
            Err(words) => condition("GuestsConfined", false, "LimitsMissing", words),
        });
        wanted.push(match self.containerd.available() {
            Ok(()) => condition("LinuxContainers", true, "Available", "containerd runs Linux containers"),
            Err(why) => condition("LinuxContainers", false, "WebAssemblyOnly", &format!("no Linux containers: {why}")),
        });
        wanted.push(match ready {
            Ok(()) => condition("Ready", true, "KubeletReady", "kubelet is posting ready status"),
            Err(why) => condition("Ready", false, "KubeletNotReady", why),
        });
        let now = crate::pod::status::time(Timestamp::now());
        wanted
            .into_iter()
            .map(|(kind, status, reason, message)| {
                let status = if status { "True" } else { "False" }.to_owned();
                let since = known
                    .iter()
                    .find(|known| known.type_ == kind && known.status == status)
                    .and_then(|known| known.last_transition_time.clone());
                core::NodeCondition {
                    type_: kind,
                    status,
                    reason: Some(reason),
                    message: Some(message),
                    last_heartbeat_time: Some(now.clone()),
                    last_transition_time: Some(since.unwrap_or_else(|| now.clone())),
                }
            })
            .collect()
    }

    fn images(&self) -> Vec<core::ContainerImage> {
        let mut by_digest: BTreeMap<String, (Vec<String>, u64)> = BTreeMap::new();
        for (name, image) in self.images.list() {
            let entry = by_digest.entry(image.digest.clone()).or_insert_with(|| (Vec::new(), image.size));
            if let Ok(reference) = crate::image::Reference::parse(&name) {
                entry.0.insert(0, format!("{}@{}", reference.repository, image.digest));
            }
            entry.0.push(name);
        }
        let mut images: Vec<_> = by_digest.into_values().collect();
        images.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
        images
            .into_iter()
            .take(MOST_IMAGES)
            .map(|(mut names, size)| {
                names.dedup();
                core::ContainerImage { names: Some(names), size_bytes: i64::try_from(size).ok() }
            })
            .collect()
    }

    fn status(&self, ready: Result<(), &str>, known: &[core::NodeCondition]) -> core::NodeStatus {
        let mut addresses: Vec<core::NodeAddress> = self
            .addresses
            .iter()
            .map(|address| core::NodeAddress { type_: "InternalIP".to_owned(), address: address.to_string() })
            .collect();
        addresses.push(core::NodeAddress { type_: "Hostname".to_owned(), address: self.name.clone() });
        core::NodeStatus {
            addresses: Some(addresses),
            capacity: Some(self.facts.capacity.clone()),
            allocatable: Some(self.facts.allocatable.clone()),
            conditions: Some(self.conditions(ready, known)),
            daemon_endpoints: Some(core::NodeDaemonEndpoints {
                kubelet_endpoint: Some(core::DaemonEndpoint { port: i32::from(self.port) }),
            }),
            images: Some(self.images()),
            node_info: Some(self.facts.info.clone()),
            runtime_handlers: Some(
                ["", shared::WASM, shared::ISOLATED]
                    .map(str::to_owned)
                    .into_iter()
                    .chain(self.containerd.handlers().iter().cloned())
                    .map(|name| core::NodeRuntimeHandler { name: Some(name), ..Default::default() })
                    .collect(),
            ),
            ..Default::default()
        }
    }

    /// Writes the status; answers what was written, without what changes by itself.
    async fn write(&self, ready: Result<(), &str>, known: &mut Vec<core::NodeCondition>) -> kube::Result<Value> {
        let status = self.status(ready, known);
        *known = status.conditions.clone().unwrap_or_default();
        let nodes: Api<core::Node> = Api::all(self.client.clone());
        let mut body = json!({ "status": status });
        // A strategic merge adds to this list; it is to be replaced.
        if let Some(addresses) = body.pointer_mut("/status/addresses").and_then(Value::as_array_mut) {
            addresses.push(json!({ "$patch": "replace" }));
        }
        nodes.patch_status(&self.name, &PatchParams::default(), &Patch::Strategic(&body)).await?;
        Ok(comparable(&status))
    }

    /// Keeps the status until shutdown: on a change of ours or of what the cluster says (that the node is
    /// lost, after it was cut off), and every five minutes.
    pub async fn keep(&self, shutdown: CancellationToken) {
        let nodes: Api<core::Node> = Api::all(self.client.clone());
        let (mut images, mut pressure) = (self.images.changes(), self.disk.changes());
        let mut written: Option<(Value, tokio::time::Instant)> = None;
        loop {
            let wrote = async {
                let told = nodes.get(&self.name).await?.status.and_then(|status| status.conditions).unwrap_or_default();
                let current = self.status(Ok(()), &told);
                let agreed = agrees(&told, current.conditions.as_deref().unwrap_or_default());
                let current = comparable(&current);
                let due = written.as_ref().is_none_or(|(last, at)| *last != current || at.elapsed() >= EVERY);
                if due || !agreed {
                    let value = self.write(Ok(()), &mut told.clone()).await?;
                    written = Some((value, tokio::time::Instant::now()));
                }
                Ok::<_, kube::Error>(())
            };
            let wrote = tokio::select! {
                () = shutdown.cancelled() => return,
                wrote = wrote => wrote,
            };
            let wait = match wrote {
                Ok(()) => LOOK,
                Err(error) => {
                    tracing::warn!(%error, "node status not written; trying again");
                    written = None;
                    RETRY
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                Ok(()) = images.changed() => {}
                Ok(()) = pressure.changed() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Tells the cluster that the node is leaving its work for now.
    pub async fn not_ready(&self, why: &str) {
        let mut known = Vec::new();
        let write = self.write(Err(why), &mut known);
        if let Ok(Err(error)) = tokio::time::timeout(Duration::from_secs(1), write).await {
            tracing::debug!(%error, "not told that the node stops");
        }
    }
}

/// Whether the cluster has each of our conditions as we have it.
fn agrees(told: &[core::NodeCondition], ours: &[core::NodeCondition]) -> bool {
    ours.iter().all(|own| told.iter().any(|told| told.type_ == own.type_ && told.status == own.status))
}

/// A status without its heartbeats.
fn comparable(status: &core::NodeStatus) -> Value {
    let mut status = status.clone();
    for condition in status.conditions.iter_mut().flatten() {
        condition.last_heartbeat_time = None;
        condition.last_transition_time = None::<Time>;
    }
    serde_json::to_value(status).unwrap_or_default()
}

/// Makes the Node object or brings its labels up to date; tries until the API answers.
pub async fn register(registration: &Registration, shutdown: &CancellationToken) -> anyhow::Result<core::Node> {
    let mut wait = Duration::from_millis(100);
    loop {
        match register_once(registration).await {
            Ok(node) => return Ok(node),
            Err(kube::Error::Api(status)) if matches!(status.code, 401 | 403) => {
                anyhow::bail!("the cluster does not take this node: {}", status.message);
            }
            Err(error) => tracing::warn!(%error, "node not registered; trying again"),
        }
        tokio::select! {
            () = shutdown.cancelled() => anyhow::bail!("stopped before the node was registered"),
            () = tokio::time::sleep(wait) => {}
        }
        wait = (wait * 2).min(Duration::from_secs(5));
    }
}

async fn register_once(registration: &Registration) -> kube::Result<core::Node> {
    let nodes: Api<core::Node> = Api::all(registration.client.clone());
    let starting = "the node is starting: its network and its Wasm hosts are not up yet";
    let node = core::Node {
        metadata: ObjectMeta {
            name: Some(registration.name.clone()),
            labels: Some(registration.labels()),
            annotations: Some(BTreeMap::from([(
                "volumes.kubernetes.io/controller-managed-attach-detach".to_owned(),
                "true".to_owned(),
            )])),
            ..Default::default()
        },
        spec: Some(core::NodeSpec::default()),
        status: Some(registration.status(Err(starting), &[])),
    };
    match nodes.create(&PostParams::default(), &node).await {
        Err(kube::Error::Api(status)) if status.code == 409 => {
            let patch = json!({ "metadata": { "labels": registration.labels() } });
            let node = nodes.patch(&registration.name, &PatchParams::default(), &Patch::Merge(patch)).await?;
            // A node that was lost is told apart from one that is back and not yet ready.
            let known = node.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
            let was_ready = known.iter().any(|it| it.type_ == "Ready" && it.status == "True");
            let mut known = known;
            if !was_ready {
                registration.write(Err(starting), &mut known).await?;
            }
            Ok(node)
        }
        // The range of pod addresses is cut by what the status says.
        Ok(node) if node.status.as_ref().is_none_or(|status| status.capacity.is_none()) => {
            registration.write(Err(starting), &mut Vec::new()).await?;
            Ok(node)
        }
        result => result,
    }
}

/// Waits for the node's range of pod addresses; says so where it does not come.
pub async fn wait_for_range(registration: &Registration, shutdown: &CancellationToken) -> anyhow::Result<IpNet> {
    let name = registration.name.as_str();
    let nodes: Api<core::Node> = Api::all(registration.client.clone());
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut changes = std::pin::pin!(watcher(nodes, config).default_backoff().applied_objects());
    let mut overdue = tokio::time::interval_at(tokio::time::Instant::now() + RANGE, EVERY);
    loop {
        let change = tokio::select! {
            () = shutdown.cancelled() => anyhow::bail!("stopped before the node had a range of pod addresses"),
            _ = overdue.tick() => {
                let why = "the node has no range of pod addresses (spec.podCIDR): the cluster's range may be used up; \
                           give nodes a smaller --max-pods, or the cluster a larger --cluster-cidr";
                tracing::warn!(node = name, "{why}; waiting for it");
                registration.not_ready(why).await;
                continue;
            }
            change = changes.next() => change,
        };
        match change {
            Some(Ok(node)) => {
                if let Some(range) = node.spec.and_then(|spec| spec.pod_cidr) {
                    return range
                        .parse()
                        .map_err(|error| anyhow::anyhow!("spec.podCIDR {range:?} of node {name}: {error}"));
                }
            }
            Some(Err(error)) => tracing::warn!(%error, "watch of the node failed; trying again"),
            None => anyhow::bail!("the watch of the node ended"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_counts_as_lost_speaks_up() {
        let condition = |kind: &str, status: &str| core::NodeCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            ..Default::default()
        };
        let ours = [condition("Ready", "True"), condition("DiskPressure", "False")];
        let others = condition("NetworkUnavailable", "False");
        assert!(agrees(&[others.clone(), ours[1].clone(), ours[0].clone()], &ours));
        assert!(!agrees(&[condition("Ready", "Unknown"), ours[1].clone(), others], &ours));
        assert!(!agrees(&[], &ours));
    }
}
