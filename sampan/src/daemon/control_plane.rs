//! The control plane: the API server, and the scheduler and controllers that reach it as clients.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::TryStreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Node, Pod, ResourceRequirements};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use sampan_client::Informers;
use sampan_network::Mode;
use sampan_server::{Identity, Server};
use tokio_util::sync::CancellationToken;

use super::ranges::{self, Held};
use super::{PART_DRAIN, Parts};
use crate::config::Config;
use crate::data_dir::DataDir;
use crate::kubeconfig::{self, Access};

const PORT: u16 = 6443;
/// How long the server may take to end the answers it is giving.
const SERVER_DRAIN: Duration = Duration::from_secs(3);

pub struct ControlPlane {
    server: Server,
    stop_server: CancellationToken,
    ranges: Held,
    kubeconfig: PathBuf,
    url: String,
}

/// Starts the server and writes the administrator's kubeconfig; nothing else runs yet. `with_node`
/// says whether the node of `config` will be beside it.
pub async fn start(config: &Config, data_dir: &DataDir, with_node: bool) -> Result<ControlPlane> {
    let kubeconfig = config.kubeconfig.clone().unwrap_or_else(|| data_dir.kubeconfig());
    kubeconfig::check(&kubeconfig)?;
    if let Some(cluster) = config.cluster_cidr.filter(|_| with_node) {
        // Before it is settled for the data dir's life.
        config.check_room(cluster)?;
    }
    let mode = tokio::task::spawn_blocking(sampan_network::detect_mode).await?;
    let dir = data_dir.part("server")?;
    let ranges = ranges::settle(&dir, mode, config.cluster_cidr, config.service_cidr)?;
    if with_node {
        config.check_room(ranges.ranges.cluster)?;
    }
    let listen = config.listen.unwrap_or_else(|| match mode {
        Mode::Privileged => (Ipv4Addr::UNSPECIFIED, PORT).into(),
        Mode::Unprivileged => (Ipv4Addr::LOCALHOST, PORT).into(),
    });
    let stop_server = CancellationToken::new();
    let server = Server::start(
        sampan_server::Config {
            dir,
            listen,
            advertise: None,
            names: vec![config.node_name.clone()],
            service_cidr: ranges.ranges.service,
            cluster_cidr: ranges.ranges.cluster,
            node_ports: 30_000..=32_767,
        },
        stop_server.clone(),
    )
    .await?;

    let mut address = server.local_addr();
    if address.ip().is_unspecified() {
        address = SocketAddr::from((Ipv4Addr::LOCALHOST, address.port()));
    }
    let url = format!("https://{address}");
    let (certificate_pem, key_pem) = server.client_certificate("kubernetes-admin", &["system:masters"])?;
    kubeconfig::write(
        &kubeconfig,
        &Access { server: &url, ca_pem: server.ca_pem(), certificate_pem: &certificate_pem, key_pem: &key_pem },
    )?;
    Ok(ControlPlane { server, stop_server, ranges, kubeconfig, url })
}

impl ControlPlane {
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// A client of the server in this process.
    pub fn client(&self, identity: Identity) -> Client {
        Client::new(self.server.router(identity), "default")
    }

    /// Spawns scheduler and controllers, and last what is drained last: the server.
    pub fn spawn(self, parts: &mut Parts) {
        // The controllers may read all that the scheduler reads; each writes under its own name.
        let informers = Informers::new(self.client(Identity::controller_manager()), self.stop_server.child_token())
            .trimmed(leave_out);
        let scheduler = informers.shared_with(self.client(Identity::scheduler()));
        let controllers = sampan_controllers::Config {
            cluster_cidr: Some(self.ranges.ranges.cluster),
            root_ca: self.server.ca_pem().to_owned(),
            ..Default::default()
        };
        parts.spawn("controllers", PART_DRAIN, |stop| sampan_controllers::run(informers, controllers, stop));
        parts.spawn("scheduler", PART_DRAIN, |stop| sampan_scheduler::run(scheduler, stop));
        parts.spawn("server", SERVER_DRAIN, |stop| async move {
            stop.cancelled().await;
            self.stop_server.cancel();
            self.server.finished().await;
            // Held until the very end: another cluster may take the ranges from here on.
            drop(self.ranges);
            Ok(())
        });
    }

    /// Waits for /readyz and, where one is named, for the node; answers with what users need to know.
    pub fn ready(&self, node: Option<&str>) -> impl Future<Output = Result<String>> + use<> {
        let client = self.client(Identity::admin());
        let node = node.map(str::to_owned);
        let since = Timestamp::now();
        let line = format!("{}, KUBECONFIG={}", self.url, self.kubeconfig.display());
        async move {
            client
                .request_text(http::Request::get("/readyz").body(Vec::new())?)
                .await
                .context("the server is not ready")?;
            if let Some(node) = &node {
                node_ready(client, node, since).await?;
            }
            Ok(match node {
                Some(node) => format!("{line}, node {node}"),
                None => line,
            })
        }
    }
}

/// What of a pod neither scheduler nor controllers read, and would be most of what they hold.
fn leave_out(pod: &mut Pod) {
    if let Some(spec) = &mut pod.spec {
        spec.volumes = None;
        spec.ephemeral_containers = None;
        for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
            *container = Container {
                name: std::mem::take(&mut container.name),
                image: container.image.take(),
                ports: container.ports.take(),
                resources: container.resources.take().map(|asked| ResourceRequirements { limits: None, ..asked }),
                restart_policy: container.restart_policy.take(),
                ..Container::default()
            };
        }
        spec.containers.shrink_to_fit();
    }
    let statuses = pod.status.iter_mut().flat_map(|status| {
        let own = status.container_statuses.iter_mut().flatten();
        own.chain(status.init_container_statuses.iter_mut().flatten())
    });
    for status in statuses {
        *status = ContainerStatus {
            name: std::mem::take(&mut status.name),
            ready: status.ready,
            restart_count: status.restart_count,
            ..ContainerStatus::default()
        };
    }
}

/// Waits until a node says that it is ready; what it said before `since`, in an earlier life, does not count.
pub async fn node_ready(client: Client, name: &str, since: Timestamp) -> Result<()> {
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut nodes = std::pin::pin!(watcher(Api::<Node>::all(client), config).default_backoff().applied_objects());
    while let Some(node) = nodes.try_next().await? {
        let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let mut ready = conditions.filter(|condition| condition.type_ == "Ready" && condition.status == "True");
        // Times on the wire are whole seconds.
        let said = ready.next().and_then(|condition| condition.last_heartbeat_time.as_ref());
        if node.name_any() == name && said.is_some_and(|time| time.0.as_second() >= since.as_second()) {
            return Ok(());
        }
    }
    anyhow::bail!("the watch of node {name} ended")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use sampan_scheduler::Decisions;
    use serde_json::json;

    use super::*;

    /// Every wish alone leads a pod to the last of the nodes, and does so without what is left out.
    #[test]
    fn what_is_left_out_does_not_decide() {
        let node = |name: &str, more: serde_json::Value| {
            let mut node = json!({
                "metadata": { "name": name, "labels": { "zone": name } },
                "status": { "allocatable": { "cpu": "4", "memory": "4Gi", "pods": "9" } },
            });
            json_patch::merge(&mut node, &more);
            Arc::new(serde_json::from_value::<Node>(node).unwrap())
        };
        let taint = |effect: &str| json!({ "spec": { "taints": [{ "key": "k", "effect": effect }] } });
        let term = json!({ "matchExpressions": [{ "key": "zone", "operator": "In", "values": ["b"] }] });
        let small = json!({ "status": { "allocatable": { "cpu": "1" } } });
        let images = json!({ "status": { "images": [{ "names": ["here:v1"] }] } });
        let container = json!({ "name": "c", "image": "here:v1" });
        let asks = json!({ "name": "c", "image": "x", "resources": { "requests": { "cpu": "2" } } });
        let sidecar = json!({ "name": "s", "image": "x", "restartPolicy": "Always", "resources": asks["resources"] });
        let port = json!({ "name": "c", "image": "x", "ports": [{ "containerPort": 1, "hostPort": 80 }] });
        let siblings = json!({ "matchLabels": { "app": "x" } });
        let others = json!({ "topologyKey": "zone", "labelSelector": siblings });
        let spread = json!({ "topologyKey": "zone", "labelSelector": siblings, "maxSkew": 1,
            "whenUnsatisfiable": "DoNotSchedule" });
        let nothing = json!({});
        let cases = [
            (json!({ "containers": [container] }), &nothing, &images),
            (json!({ "containers": [asks] }), &small, &nothing),
            (json!({ "containers": [container], "initContainers": [sidecar] }), &small, &nothing),
            (json!({ "containers": [container], "nodeSelector": { "zone": "b" } }), &nothing, &nothing),
            (json!({ "containers": [container] }), &taint("NoSchedule"), &nothing),
            (json!({ "containers": [container] }), &taint("PreferNoSchedule"), &nothing),
            (
                json!({ "containers": [container], "affinity": { "nodeAffinity": {
                    "preferredDuringSchedulingIgnoredDuringExecution": [{ "weight": 9, "preference": term }] } } }),
                &nothing,
                &nothing,
            ),
            (json!({ "containers": [port] }), &nothing, &nothing),
            (
                json!({ "containers": [container], "affinity": { "podAntiAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": [others] } } }),
                &nothing,
                &nothing,
            ),
            (json!({ "containers": [container], "topologySpreadConstraints": [spread] }), &nothing, &nothing),
        ];
        for (number, (spec, first, second)) in cases.into_iter().enumerate() {
            let mut decisions = Decisions::default();
            decisions.set_node(node("a", first.clone()));
            decisions.set_node(node("b", second.clone()));
            let pod = |uid: &str| {
                let labels = json!({ "app": "x" });
                let pod = json!({ "metadata": { "name": uid, "uid": uid, "labels": labels }, "spec": spec });
                let mut pod = serde_json::from_value::<Pod>(pod).unwrap();
                leave_out(&mut pod);
                pod
            };
            let asks_of_others = ["/containers/0/ports", "/affinity/podAntiAffinity", "/topologySpreadConstraints"];
            if asks_of_others.iter().any(|path| spec.pointer(path).is_some()) {
                decisions.place(&pod("there"), "a");
            }
            assert_eq!(decisions.schedule(&pod("new")).ok().unwrap(), "b", "case {number}: {spec}");
        }
    }
}
