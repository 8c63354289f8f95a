//! The sample workload `hello`, as the benchmarks deploy it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::Context;
use crate::client::Connection;
use crate::cluster::Cluster;

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const PODS: &str = "/api/v1/namespaces/default/pods";
/// One pod on a module that the node has.
const FIRST: Duration = Duration::from_secs(60);

/// Brings the module onto the nodes; compiled when this answers.
pub async fn import(context: &Context, cluster: &Cluster) -> Result<()> {
    let file = context.samples.join("hello.wasm");
    let file = file.to_str().context("the path of the samples is not UTF-8")?;
    cluster.sampan(&["image", "import", file, "--as", "localhost/hello:v1"]).await?;
    Ok(())
}

/// The spec of its pods; with a probe as its manifest has it, and a limit that holds a CPU or more.
pub fn spec(probe: bool, cpu: &str) -> Value {
    let mut container = json!({
        "name": "hello",
        "image": "localhost/hello:v1",
        "ports": [{ "name": "http", "containerPort": 8080 }],
        "env": [
            { "name": "POD_NAME", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
            { "name": "POD_IP", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } },
        ],
        "resources": {
            // So little that 10,000 fit onto any machine.
            "requests": { "cpu": "0", "memory": "256Ki" },
            "limits": { "cpu": cpu, "memory": "64Mi" },
        },
    });
    if probe {
        container["readinessProbe"] = json!({ "httpGet": { "path": "/healthz", "port": "http" }, "periodSeconds": 5 });
    }
    json!({ "containers": [container], "terminationGracePeriodSeconds": 1 })
}

pub async fn deploy(api: &mut Connection, replicas: usize, probe: bool, cpu: &str) -> Result<()> {
    let labels = json!({ "app": "hello" });
    api.create(
        DEPLOYMENTS,
        &json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": { "name": "hello" },
            "spec": {
                "replicas": replicas,
                "selector": { "matchLabels": labels },
                "template": { "metadata": { "labels": labels }, "spec": spec(probe, cpu) },
            },
        }),
    )
    .await?;
    Ok(())
}

/// A Service in front of it; answers with its address and port.
pub async fn expose(api: &mut Connection, name: &str) -> Result<String> {
    let service = json!({
        "metadata": { "name": name },
        "spec": { "selector": { "app": "hello" }, "ports": [{ "port": 8080, "targetPort": "http" }] },
    });
    let made = api.create("/api/v1/namespaces/default/services", &service).await?;
    let address = made["spec"]["clusterIP"].as_str().context("the Service has no address")?;
    Ok(format!("{address}:8080"))
}

/// Sets the number of replicas; answers once as many are ready: how long that took, and how many
/// were ready when.
pub async fn scale(cluster: &Cluster, replicas: usize, limit: Duration) -> Result<(Duration, Vec<(f64, f64)>)> {
    let api = cluster.api()?;
    let mut connection = api.connect().await?;
    let mut watching = api.connect().await?;
    let mut watch = watching.watch(&format!("{DEPLOYMENTS}?watch=true&fieldSelector=metadata.name%3Dhello")).await?;
    let start = Instant::now();
    connection.merge(&format!("{DEPLOYMENTS}/hello"), &json!({ "spec": { "replicas": replicas } })).await?;
    let mut curve = vec![(0.0, 0.0)];
    let until_ready = async {
        loop {
            let event = watch.next().await?;
            let ready = event["object"]["status"]["readyReplicas"].as_u64().unwrap_or(0);
            if event["object"]["spec"]["replicas"].as_u64() == Some(replicas as u64) {
                curve.push((start.elapsed().as_secs_f64(), ready as f64));
                if ready >= replicas as u64 {
                    return Ok::<_, anyhow::Error>(start.elapsed());
                }
            }
        }
    };
    let result = tokio::time::timeout(limit, until_ready).await;
    let reached = curve.last().map_or(0.0, |point| point.1);
    let took = result.with_context(|| format!("{reached} of {replicas} pods ready after {limit:?}"))??;
    Ok((took, curve))
}

/// The addresses of the pods once all `replicas` are ready.
pub async fn addresses(cluster: &Cluster, replicas: usize) -> Result<Vec<String>> {
    scale(cluster, replicas, FIRST).await?;
    let mut api = cluster.api()?.connect().await?;
    let pods: Value = serde_json::from_slice(&api.get(&format!("{PODS}?labelSelector=app%3Dhello")).await?)?;
    let pods = pods["items"].as_array().context("no list of pods")?;
    let addresses: Vec<String> =
        pods.iter().filter_map(|pod| Some(format!("{}:8080", pod["status"]["podIP"].as_str()?))).collect();
    ensure!(addresses.len() == replicas, "{} of {replicas} pods have an address", addresses.len());
    Ok(addresses)
}

/// Waits until a request to this address is answered as hello does.
pub async fn answers(authority: &str) -> Result<()> {
    let asked = async {
        loop {
            if let Ok(mut connection) = Connection::plain(authority).await
                && let Ok(text) = connection.get("/").await
                && text.starts_with(b"Hello from")
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(FIRST, asked).await.with_context(|| format!("http://{authority} does not answer"))
}
