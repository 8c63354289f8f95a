//! A server in this process, on a disk in memory, and the objects that go there.

use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::BodyExt as _;
use jiff::Timestamp;
use sampan_server::{Config, Identity, Server};
use sampan_store::{Options, RedbStore};
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};
use tower::ServiceExt as _;

use crate::disk::Disk;

pub const JSON: &str = "application/json";
pub const STRATEGIC: &str = "application/strategic-merge-patch+json";
pub const APPLY: &str = "application/apply-patch+yaml";

pub const PODS: &str = "/api/v1/namespaces/default/pods";
pub const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

/// Seconds since 1970: a clock that stands still makes every run write the same.
const NOW: i64 = 1_780_000_000;

pub struct Running {
    server: Server,
    router: Router,
    _end: DropGuard,
    _dir: tempfile::TempDir,
}

impl Running {
    /// With a service account in `default`, as a controller would make it.
    pub async fn start(options: Options) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let shutdown = CancellationToken::new();
        let config = Config {
            dir: dir.path().to_owned(),
            listen: ([127, 0, 0, 1], 0).into(),
            advertise: None,
            names: Vec::new(),
            service_cidr: "10.96.0.0/16".parse()?,
            cluster_cidr: "10.244.0.0/16".parse()?,
            node_ports: 30_000..=32_767,
        };
        let store = Arc::new(RedbStore::open_backend(Disk::new(), options)?);
        let now = Timestamp::from_second(NOW)?;
        let server = Server::start_with(config, store, Arc::new(move || now), shutdown.clone()).await?;
        let running = Self { router: server.router(Identity::admin()), server, _end: shutdown.drop_guard(), _dir: dir };
        let account = json!({ "metadata": { "name": "default" } });
        running.send(Method::POST, "/api/v1/namespaces/default/serviceaccounts", JSON, account.to_string()).await?;
        Ok(running)
    }

    /// A client that calls the router.
    pub fn client(&self, identity: Identity) -> kube::Client {
        kube::Client::new(self.server.router(identity), "default")
    }

    /// The whole answer, which must be a good one.
    pub async fn send(&self, method: Method, path: &str, media: &str, body: String) -> Result<Bytes> {
        Ok(self.open(method, path, media, body).await?.collect().await?.to_bytes())
    }

    /// An answer's body, which is still to be read.
    pub async fn open(&self, method: Method, path: &str, media: &str, body: String) -> Result<Body> {
        let request = Request::builder().method(method).uri(path).header("content-type", media);
        let request = request.header("user-agent", "guards/1").body(Body::from(body))?;
        let response = self.router.clone().oneshot(request).await?;
        let (status, body) = (response.status(), response.into_body());
        if !status.is_success() {
            let text = body.collect().await?.to_bytes();
            bail!("{path}: {status}: {}", String::from_utf8_lossy(&text));
        }
        Ok(body)
    }

    /// Creates pods of these numbers, and answers with the resourceVersion of the last.
    pub async fn create_pods(&self, numbers: std::ops::Range<usize>) -> Result<String> {
        let mut last = Bytes::new();
        for number in numbers {
            last = self.send(Method::POST, PODS, JSON, pod(number)).await?;
        }
        let last: Value = serde_json::from_slice(&last)?;
        let version = last.pointer("/metadata/resourceVersion").and_then(Value::as_str);
        Ok(version.context("no resourceVersion")?.to_owned())
    }

    /// Writes the status of a pod that runs.
    pub async fn patch_status(&self, number: usize) -> Result<Bytes> {
        let path = format!("{PODS}/{}/status", pod_name(number));
        self.send(Method::PATCH, &path, STRATEGIC, running_status()).await
    }
}

/// Names of one length: a longer one would be a count of its own.
pub fn pod_name(number: usize) -> String {
    format!("web-7d4b9c6f5-{number:06}")
}

/// A pod of about a kilobyte, as a Deployment's would be.
pub fn pod(number: usize) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod_name(number),
            "labels": { "app": "web", "pod-template-hash": "7d4b9c6f5", "tier": "front" },
            "annotations": { "example.com/padding": "x".repeat(200) },
        },
        "spec": template(1),
    })
    .to_string()
}

fn template(version: usize) -> Value {
    json!({
        "schedulerName": "nobody",
        "containers": [{
            "name": "web",
            "image": format!("localhost/hello:v{version:06}"),
            "ports": [{ "name": "http", "containerPort": 8080 }],
            "env": [{ "name": "POD_NAME", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } }],
            "readinessProbe": { "httpGet": { "path": "/healthz", "port": "http" } },
            "resources": {
                "requests": { "cpu": "10m", "memory": "8Mi" },
                "limits": { "cpu": "500m", "memory": "64Mi" },
            },
        }],
    })
}

/// A Deployment as it is applied, of one image or another.
pub fn deployment(version: usize) -> String {
    let labels = json!({ "app": "web", "tier": "front" });
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": "web", "labels": labels },
        "spec": {
            "replicas": 3,
            "selector": { "matchLabels": labels },
            "template": { "metadata": { "labels": labels }, "spec": template(version) },
        },
    })
    .to_string()
}

fn running_status() -> String {
    let time = "2026-05-28T20:26:40Z";
    let condition = |name: &str| json!({ "type": name, "status": "True", "lastTransitionTime": time });
    let conditions = ["PodScheduled", "Initialized", "ContainersReady", "Ready"].map(condition);
    json!({ "status": {
        "phase": "Running",
        "conditions": conditions,
        "hostIP": "10.0.0.7",
        "podIP": "10.244.0.9",
        "podIPs": [{ "ip": "10.244.0.9" }],
        "startTime": time,
        "containerStatuses": [{
            "name": "web",
            "image": "localhost/hello:v000001",
            "imageID": "localhost/hello@sha256:0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0",
            "containerID": "wasm://5a69788796a5b4c3d2e1f00f1e2d3c4b",
            "ready": true,
            "started": true,
            "restartCount": 0,
            "state": { "running": { "startedAt": time } },
        }],
    } })
    .to_string()
}
