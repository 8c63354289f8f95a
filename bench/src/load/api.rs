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
    let next = Arc::new(AtomicUsize::new(0));
    let meter = Meter::begin();
    let mut tasks = tokio::task::JoinSet::new();
    for mut connection in open {
        let (path, next) = (path.clone(), next.clone());
        tasks.spawn(async move {
            let mut latencies = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok::<_, anyhow::Error>(latencies);
                }
                let body = pod(number);
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

/// A pod as a Deployment's would be, of [`POD_BYTES`] bytes.
fn pod(number: usize) -> Vec<u8> {
    let with = |padding: usize| {
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": format!("web-7d4b9c6f5-{number:06}"),
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
        .into_bytes()
    };
    let bare = with(0).len();
    with(POD_BYTES.saturating_sub(bare))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_pod_weighs_what_is_promised() {
        assert_eq!(super::pod(7).len(), super::POD_BYTES);
    }
}
