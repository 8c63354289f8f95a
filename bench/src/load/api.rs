//! Writes to the API.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::Result;
use hyper::Method;
use serde_json::json;

use super::{Meter, Outcome, ms};
use crate::client::Api;

/// What a created pod weighs as JSON.
const POD_BYTES: usize = 1000;

/// Creates pods that nobody schedules: what is measured is the create.
pub async fn create(kubeconfig: &Path, namespace: &str, connections: usize, count: usize) -> Result<Outcome> {
    let api = Api::open(kubeconfig)?;
    let mut open = Vec::new();
    for _ in 0..connections {
        open.push(api.connect().await?);
    }
    let path: Arc<str> = format!("/api/v1/namespaces/{namespace}/pods").into();
    let pods = Arc::new(Pods::new());
    let next = Arc::new(AtomicUsize::new(0));
    let meter = Meter::begin();
    let mut tasks = tokio::task::JoinSet::new();
    for mut connection in open {
        let (path, pods, next) = (path.clone(), pods.clone(), next.clone());
        tasks.spawn(async move {
            let mut latencies = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok::<_, anyhow::Error>(latencies);
                }
                let body = pods.pod(number);
                let start = Instant::now();
                connection.call(Method::POST, &path, "application/json", body).await?;
                latencies.push(ms(start));
            }
        });
    }
    let mut latencies = Vec::with_capacity(count);
    while let Some(task) = tasks.join_next().await {
        latencies.extend(task??);
    }
    Ok(meter.end(&latencies))
}

/// Where the text of a pod has its number.
const PLACE: &str = "######";

/// Pods as a Deployment's would be, of [`POD_BYTES`] bytes. The text is made once: its making is no part of what
/// is measured, and would take its processor time from the server.
struct Pods {
    before: String,
    after: String,
}

impl Pods {
    fn new() -> Self {
        let bare = text(0).len();
        let text = text(POD_BYTES.saturating_sub(bare));
        let (before, after) = text.split_once(PLACE).unwrap_or_default();
        Self { before: before.to_owned(), after: after.to_owned() }
    }

    fn pod(&self, number: usize) -> Vec<u8> {
        format!("{}{number:06}{}", self.before, self.after).into_bytes()
    }
}

fn text(padding: usize) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": format!("web-7d4b9c6f5-{PLACE}"),
            "labels": { "app": "web", "pod-template-hash": "7d4b9c6f5", "tier": "front" },
            "annotations": { "bench/padding": "x".repeat(padding) },
        },
        "spec": {
            "schedulerName": "nobody",
            "containers": [{
                "name": "web",
                "image": "localhost/hello:v1",
                "ports": [{ "name": "http", "containerPort": 8080 }],
                "env": [{ "name": "POD_NAME", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } }],
                "readinessProbe": { "httpGet": { "path": "/healthz", "port": "http" } },
                "resources": {
                    "requests": { "cpu": "10m", "memory": "8Mi" },
                    "limits": { "cpu": "500m", "memory": "64Mi" },
                },
            }],
        },
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    #[test]
    fn a_pod_weighs_what_is_promised() {
        let pod = super::Pods::new().pod(7);
        assert_eq!(pod.len(), super::POD_BYTES);
        let pod: serde_json::Value = serde_json::from_slice(&pod).unwrap();
        assert_eq!(pod["metadata"]["name"], "web-7d4b9c6f5-000007");
    }
}
