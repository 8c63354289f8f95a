//! All controllers against a small API server in memory, in simulated time: slow, unreliable and
//! watched late, over many seeds. What is checked after every write are the promises; at the end,
//! that all came to rest where it should.

#![allow(clippy::unwrap_used)]

mod api;
mod scenarios;

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use jiff::Timestamp;
use sampan_client::{Clock, Informers};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use self::api::{Behaviour, FakeApi};
use crate::Config;

/// A cluster: the API, all controllers, and nodes that run what is bound to them.
struct World {
    api: FakeApi,
    shutdown: CancellationToken,
}

const RELIABLE: Behaviour = Behaviour { latency: Duration::from_millis(5), failures: 0 };
const HOSTILE: Behaviour = Behaviour { latency: Duration::from_millis(150), failures: 12 };

/// Runs one scenario in simulated time.
fn simulate<F: Future<Output = ()>>(seed: u64, behaviour: Behaviour, scenario: impl FnOnce(World) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let clock = Clock::simulated("2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap());
        let api = FakeApi::new(seed, clock.clone(), behaviour);
        let shutdown = CancellationToken::new();
        for name in ["default", "kube-node-lease"] {
            api.create("namespaces", "", json!({ "metadata": { "name": name } }));
        }
        let config = Config {
            cluster_cidr: Some("10.42.0.0/16".parse().unwrap()),
            root_ca: "PEM".to_owned(),
            clock,
            ..Default::default()
        };
        let informers = Informers::new(api.client(), shutdown.clone());
        let controllers = tokio::spawn(crate::run(informers, config, shutdown.clone()));
        let world = World { api, shutdown: shutdown.clone() };
        tokio::spawn(schedule(world.api.clone()));
        scenario(world).await;
        shutdown.cancel();
        controllers.await.unwrap().unwrap();
    });
}

/// Binds pods to nodes that are ready and not tainted, in turn.
async fn schedule(api: FakeApi) {
    let mut turn = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(60)).await;
        let nodes: Vec<String> = api
            .list("nodes")
            .iter()
            .filter(|node| node["spec"]["taints"].as_array().is_none_or(Vec::is_empty))
            .filter(|node| node["status"]["conditions"][0]["status"] == "True")
            .map(|node| text(&node["metadata"]["name"]))
            .collect();
        for pod in api.list("pods") {
            let waits = pod["spec"]["nodeName"].is_null() && pod["metadata"]["deletionTimestamp"].is_null();
            if waits && !nodes.is_empty() {
                turn += 1;
                let node = &nodes[turn % nodes.len()];
                let (namespace, name) = place(&pod);
                api.edit("pods", &namespace, &name, json!({ "spec": { "nodeName": node } }));
            }
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn place(object: &Value) -> (String, String) {
    (text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]))
}

fn condition<'a>(object: &'a Value, kind: &str) -> &'a Value {
    let conditions = object["status"]["conditions"].as_array();
    conditions.into_iter().flatten().find(|it| it["type"] == kind).unwrap_or(&Value::Null)
}

fn is_ready(pod: &Value) -> bool {
    condition(pod, "Ready")["status"] == "True"
}

fn is_active(pod: &Value) -> bool {
    pod["metadata"]["deletionTimestamp"].is_null()
        && !matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
}

impl World {
    /// Starts a node; cancelling the token is pulling its plug.
    fn node(&self, name: &str) -> CancellationToken {
        let stop = self.shutdown.child_token();
        let api = self.api.clone();
        api.create("nodes", "", json!({ "metadata": { "name": name } }));
        api.edit(
            "nodes",
            "",
            name,
            json!({ "status": {
                "capacity": { "pods": "110" },
                "conditions": [{ "type": "Ready", "status": "True", "lastHeartbeatTime": api.clock.time() }],
            }}),
        );
        api.create("leases", "kube-node-lease", json!({ "metadata": { "name": name } }));
        let (node, stopped) = (name.to_owned(), stop.clone());
        tokio::spawn(async move {
            let mut beat = 0_u32;
            while !stopped.is_cancelled() {
                if beat.is_multiple_of(100) {
                    let now = api.clock.now().to_string();
                    api.edit("leases", "kube-node-lease", &node, json!({ "spec": { "renewTime": now } }));
                    let silent =
                        api.get("nodes", "", &node).is_some_and(|it| condition(&it, "Ready")["status"] == "Unknown");
                    if silent {
                        api.edit(
                            "nodes",
                            "",
                            &node,
                            json!({ "status": { "conditions": [
                            { "type": "Ready", "status": "True", "lastHeartbeatTime": api.clock.time() }] }}),
                        );
                    }
                }
                beat += 1;
                for pod in api.list("pods") {
                    if pod["spec"]["nodeName"] == *node {
                        run_pod(&api, &pod);
                    }
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        stop
    }

    fn deployment(&self, replicas: u32, image: &str) -> Value {
        json!({
            "metadata": { "name": "web", "namespace": "default" },
            "spec": {
                "replicas": replicas,
                "selector": { "matchLabels": { "app": "web" } },
                "progressDeadlineSeconds": 150,
                "revisionHistoryLimit": 2,
                "strategy": { "type": "RollingUpdate",
                              "rollingUpdate": { "maxSurge": "25%", "maxUnavailable": "25%" } },
                "template": {
                    "metadata": { "labels": { "app": "web" } },
                    "spec": {
                        "containers": [{ "name": "web", "image": image, "ports": [{ "containerPort": 8080 }] }],
                        "tolerations": [
                            { "key": "node.kubernetes.io/unreachable", "operator": "Exists",
                              "effect": "NoExecute", "tolerationSeconds": 30 },
                        ],
                    },
                },
            },
        })
    }

    fn set_image(&self, image: &str) {
        let current = self.api.get("deployments", "default", "web").unwrap();
        let mut template = current["spec"]["template"].clone();
        template["spec"]["containers"][0]["image"] = json!(image);
        self.api.edit("deployments", "default", "web", json!({ "spec": { "template": template } }));
    }

    /// Waits until something holds, or fails with what there is.
    async fn until(&self, what: &str, holds: impl Fn(&FakeApi) -> bool) {
        for _ in 0..3_000 {
            if holds(&self.api) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let show = |plural: &str| serde_json::to_string_pretty(&self.api.list(plural)).unwrap();
        panic!("never came: {what}\n{}\n{}", show("deployments"), show("replicasets"));
    }

    /// Waits until a rollout is over, as `kubectl rollout status` sees it, and nothing is left over.
    async fn rolled_out(&self, replicas: i64) {
        self.until("the rollout to end", |api| {
            let Some(it) = api.get("deployments", "default", "web") else { return false };
            let pods = api.list("pods");
            let count = |name: &str| it["status"][name].as_i64().unwrap_or_default();
            it["status"]["observedGeneration"] == it["metadata"]["generation"]
                && ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas"]
                    .iter()
                    .all(|name| count(name) == replicas)
                && count("unavailableReplicas") == 0
                && i64::try_from(pods.len()) == Ok(replicas)
                && condition(&it, "Progressing")["reason"] == "NewReplicaSetAvailable"
                && condition(&it, "Available")["status"] == "True"
        })
        .await;
    }

    fn sets(&self) -> BTreeMap<String, Value> {
        self.api.list("replicasets").into_iter().map(|set| (place(&set).1, set)).collect()
    }

    /// Revision and image of the replica set that has pods.
    fn current(&self) -> (String, String) {
        let sets = self.sets();
        let active: Vec<&Value> = sets.values().filter(|set| set["spec"]["replicas"] != 0).collect();
        assert_eq!(active.len(), 1);
        let revision = &active[0]["metadata"]["annotations"]["deployment.kubernetes.io/revision"];
        (text(revision), text(&active[0]["spec"]["template"]["spec"]["containers"][0]["image"]))
    }
}

/// One look of a node at one of its pods.
fn run_pod(api: &FakeApi, pod: &Value) {
    let (namespace, name) = place(pod);
    // Each step takes a while.
    if api.random(3) != 0 {
        return;
    }
    if pod["metadata"]["deletionTimestamp"].is_string() {
        api.delete("pods", &namespace, &name, json!({ "gracePeriodSeconds": 0 }));
    } else if !is_ready(pod) && text(&pod["spec"]["containers"][0]["image"]) != "broken" {
        let number: u32 = text(&pod["metadata"]["uid"]).trim_start_matches("uid-").parse().unwrap_or(1);
        let ip = format!("10.42.{}.{}", number / 250, number % 250 + 1);
        api.edit(
            "pods",
            &namespace,
            &name,
            json!({ "status": {
                "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }], "startTime": api.clock.time(),
                "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": api.clock.time() }],
            }}),
        );
    }
}
