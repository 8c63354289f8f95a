//! The controllers against the real API server, in this process, in the role that they have in a
//! cluster. A task plays scheduler and node.

#![allow(clippy::unwrap_used)]

use std::future::Future;
use std::time::{Duration, Instant};

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Event, Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, Resource, ResourceExt};
use sampan_client::Informers;
use sampan_server::{Identity, Server};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

struct Cluster {
    client: Client,
    shutdown: CancellationToken,
    server: Server,
    controllers: tokio::task::JoinHandle<anyhow::Result<()>>,
    _dir: tempfile::TempDir,
}

impl Cluster {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let shutdown = CancellationToken::new();
        let config = sampan_server::Config {
            dir: dir.path().to_owned(),
            listen: "127.0.0.1:0".parse().unwrap(),
            advertise: None,
            names: Vec::new(),
            service_cidr: "10.43.0.0/16".parse().unwrap(),
            cluster_cidr: "10.42.0.0/16".parse().unwrap(),
            node_ports: 30_000..=32_767,
        };
        let server = Server::start(config, shutdown.clone()).await.unwrap();
        let client = |identity| Client::new(server.router(identity), "default");
        let informers = Informers::new(client(Identity::controller_manager()), shutdown.clone());
        let config = sampan_controllers::Config {
            node_monitor_grace: Duration::from_secs(3),
            cluster_cidr: Some("10.42.0.0/16".parse().unwrap()),
            root_ca: server.ca_pem().to_owned(),
            ..Default::default()
        };
        let controllers = tokio::spawn(sampan_controllers::run(informers, config, shutdown.clone()));
        let client = client(Identity::admin());
        Self { client, shutdown, server, controllers, _dir: dir }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.controllers.await.unwrap().unwrap();
        self.server.finished().await;
    }

    fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// A node that runs whatever is there; cancelling the token is pulling its plug.
    async fn node(&self, name: &str) -> CancellationToken {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let node = json!({
            "metadata": { "name": name },
            "status": {
                "capacity": { "pods": "110", "cpu": "4", "memory": "8Gi" },
                "conditions": [{ "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "" }],
            },
        });
        nodes.create(&PostParams::default(), &from(node)).await.unwrap();
        let stop = self.shutdown.child_token();
        let (client, name, stopped) = (self.client.clone(), name.to_owned(), stop.clone());
        tokio::spawn(async move {
            let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
            let lease = json!({ "metadata": { "name": name }, "spec": { "holderIdentity": name } });
            leases.create(&PostParams::default(), &from(lease)).await.unwrap();
            let mut beat = 0_u32;
            while !stopped.is_cancelled() {
                if beat.is_multiple_of(20) {
                    let now = jiff::Timestamp::now();
                    let time = k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(now);
                    let patch = Patch::Merge(json!({ "spec": { "renewTime": time } }));
                    let _ = leases.patch(&name, &PatchParams::default(), &patch).await;
                }
                beat += 1;
                run_pods(&client, &name).await;
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
        });
        stop
    }
}

/// Binds what is unbound, starts what is bound here, ends what is deleted.
async fn run_pods(client: &Client, node: &str) {
    let all: Api<Pod> = Api::all(client.clone());
    let Ok(list) = all.list(&ListParams::default()).await else { return };
    for pod in list {
        let (namespace, name) = (pod.namespace().unwrap(), pod.name_any());
        let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
        let bound = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        let has_address = pod.status.as_ref().is_some_and(|status| status.pod_ip.is_some());
        if bound.is_none() {
            let binding = json!({ "apiVersion": "v1", "kind": "Binding", "metadata": { "name": name },
                                  "target": { "apiVersion": "v1", "kind": "Node", "name": node } });
            let params = PostParams::default();
            let _ = pods.create_subresource::<Value, Value>("binding", &name, &params, &binding).await;
        } else if bound.as_deref() != Some(node) {
        } else if pod.metadata.deletion_timestamp.is_some() {
            let _ = pods.delete(&name, &DeleteParams::default().grace_period(0)).await;
        } else if !has_address {
            let uid = pod.uid().unwrap();
            let sum = uid.bytes().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
            let ip = format!("10.42.{}.{}", sum / 250 % 250, sum % 250 + 1);
            let status = json!({ "status": {
                "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }],
                "conditions": [{ "type": "Ready", "status": "True" }],
            }});
            let _ = pods.patch_status(&name, &PatchParams::default(), &Patch::Strategic(status)).await;
        }
    }
}

fn from<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

/// Asks until it is so.
async fn until<F: Future<Output = bool>>(what: &str, holds: impl Fn() -> F) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < Duration::from_secs(60), "never came: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn deployment(replicas: u32, image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": { "name": "web" },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": { "app": "web" } },
            "template": {
                "metadata": { "labels": { "app": "web" } },
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{ "name": "web", "image": image,
                                     "ports": [{ "name": "http", "containerPort": 8080 }] }],
                    "tolerations": [{ "key": "node.kubernetes.io/unreachable", "operator": "Exists",
                                      "effect": "NoExecute", "tolerationSeconds": 1 }],
                },
            },
        },
    })
}

async fn rolled_out(deployments: &Api<Deployment>, replicas: i32) {
    until("the rollout to end", || async {
        let it = deployments.get("web").await.unwrap();
        let generation = it.metadata.generation;
        let status = it.status.unwrap_or_default();
        let progress = status.conditions.iter().flatten().find(|it| it.type_ == "Progressing");
        status.observed_generation == generation
            && [status.replicas, status.updated_replicas, status.ready_replicas, status.available_replicas]
                .iter()
                .all(|count| count.unwrap_or_default() == replicas)
            && status.unavailable_replicas.is_none()
            && progress.and_then(|it| it.reason.as_deref()) == Some("NewReplicaSetAvailable")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_and_its_service_live_and_go() {
    let cluster = Cluster::start().await;
    cluster.node("a").await;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    until("a range", || async {
        let node = nodes.get("a").await.unwrap();
        node.spec.unwrap_or_default().pod_cidr.as_deref() == Some("10.42.0.0/24")
    })
    .await;
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let team = json!({ "metadata": { "name": "team" } });
    namespaces.create(&PostParams::default(), &from(team)).await.unwrap();
    let (accounts, maps) = (cluster.api::<ServiceAccount>("team"), cluster.api::<ConfigMap>("team"));
    until("account and certificate", || async {
        accounts.get_opt("default").await.unwrap().is_some()
            && maps.get_opt("kube-root-ca.crt").await.unwrap().is_some()
    })
    .await;

    let deployments = cluster.api::<Deployment>("team");
    let services = cluster.api::<Service>("team");
    let service = json!({ "metadata": { "name": "web" }, "spec": {
        "selector": { "app": "web" }, "ports": [{ "port": 80, "targetPort": "http" }] } });
    services.create(&PostParams::default(), &from(service)).await.unwrap();
    let params = PatchParams::apply("test");
    deployments.patch("web", &params, &Patch::Apply(deployment(3, "v1"))).await.unwrap();
    rolled_out(&deployments, 3).await;
    let (slices, endpoints) = (cluster.api::<EndpointSlice>("team"), cluster.api::<Endpoints>("team"));
    let in_slices = || async {
        let all = slices.list(&ListParams::default()).await.unwrap();
        let ports: Vec<_> = all.iter().flat_map(|it| it.ports.iter().flatten().map(|it| it.port)).collect();
        (all.iter().map(|it| it.endpoints.iter().flatten().count()).sum::<usize>(), ports)
    };
    until("endpoints", || async {
        let legacy = endpoints.get_opt("web").await.unwrap();
        let subsets = legacy.and_then(|it| it.subsets).unwrap_or_default();
        let legacy: usize = subsets.iter().map(|it| it.addresses.iter().flatten().count()).sum();
        in_slices().await == (3, vec![Some(8080)]) && legacy == 3
    })
    .await;

    // A second template, and back: as `kubectl rollout undo` does, the old template is set again.
    let sets = cluster.api::<ReplicaSet>("team");
    deployments.patch("web", &params, &Patch::Apply(deployment(3, "v2"))).await.unwrap();
    rolled_out(&deployments, 3).await;
    deployments.patch("web", &params, &Patch::Apply(deployment(3, "v1"))).await.unwrap();
    rolled_out(&deployments, 3).await;
    let all = sets.list(&ListParams::default()).await.unwrap();
    assert_eq!(all.items.len(), 2);
    let it = deployments.get("web").await.unwrap();
    assert_eq!(it.annotations()["deployment.kubernetes.io/revision"], "3");
    assert_eq!(it.metadata.generation, Some(3), "only users make generations");
    let events = cluster.api::<Event>("team");
    until("events", || async {
        let all = events.list(&ListParams::default()).await.unwrap();
        let has = |reason: &str| all.iter().any(|event| event.reason.as_deref() == Some(reason));
        has("ScalingReplicaSet") && has("SuccessfulCreate") && has("SuccessfulDelete")
    })
    .await;

    // Owners go last.
    let pods = cluster.api::<Pod>("team");
    deployments.delete("web", &DeleteParams::foreground()).await.unwrap();
    until("the Deployment to go", || async { deployments.get_opt("web").await.unwrap().is_none() }).await;
    assert!(sets.list(&ListParams::default()).await.unwrap().items.is_empty());
    until("pods to go", || async { pods.list(&ListParams::default()).await.unwrap().items.is_empty() }).await;
    until("no endpoints", || async { in_slices().await.0 == 0 }).await;

    deployments.patch("web", &params, &Patch::Apply(deployment(2, "v1"))).await.unwrap();
    rolled_out(&deployments, 2).await;
    namespaces.delete("team", &DeleteParams::default()).await.unwrap();
    until("the namespace to go", || async { namespaces.get_opt("team").await.unwrap().is_none() }).await;
    assert!(pods.list(&ListParams::default()).await.unwrap().items.is_empty());
    assert!(services.list(&ListParams::default()).await.unwrap().items.is_empty());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_of_a_lost_node_are_replaced_elsewhere() {
    let cluster = Cluster::start().await;
    let first = cluster.node("a").await;
    let deployments = cluster.api::<Deployment>("default");
    until("the account", || async {
        cluster.api::<ServiceAccount>("default").get_opt("default").await.unwrap().is_some()
    })
    .await;
    deployments.create(&PostParams::default(), &from(deployment(3, "v1"))).await.unwrap();
    rolled_out(&deployments, 3).await;
    cluster.node("b").await;
    first.cancel();
    let pods = cluster.api::<Pod>("default");
    until("pods elsewhere", || async {
        let all = pods.list(&ListParams::default()).await.unwrap();
        let on = |pod: &Pod, node: &str| pod.spec.as_ref().and_then(|it| it.node_name.as_deref()) == Some(node);
        let there = all.iter().filter(|pod| on(pod, "b") && pod.metadata.deletion_timestamp.is_none()).count();
        there == 3 && all.iter().filter(|pod| on(pod, "a")).all(|pod| pod.metadata.deletion_timestamp.is_some())
    })
    .await;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let lost = nodes.get("a").await.unwrap();
    let taints = lost.spec.unwrap_or_default().taints.unwrap_or_default();
    assert!(taints.iter().any(|it| it.key == "node.kubernetes.io/unreachable" && it.effect == "NoExecute"));
    cluster.stop().await;
}

/// A Deployment of 500 in well under the time that default rate limits would take.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_pods_are_made_at_once() {
    let cluster = Cluster::start().await;
    until("the account", || async {
        cluster.api::<ServiceAccount>("default").get_opt("default").await.unwrap().is_some()
    })
    .await;
    let deployments = cluster.api::<Deployment>("default");
    let start = Instant::now();
    deployments.create(&PostParams::default(), &from(deployment(500, "v1"))).await.unwrap();
    let pods = cluster.api::<Pod>("default");
    until("all pods", || async { pods.list_metadata(&ListParams::default()).await.unwrap().items.len() == 500 }).await;
    println!("500 pods in {:?}", start.elapsed());
    cluster.stop().await;
}
