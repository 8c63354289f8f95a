//! The API over HTTPS: creates, gets, lists, and what the objects take in memory.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::{Context, each, repeat};
use crate::cluster::Cluster;
use crate::load::{self, Load, Outcome};
use crate::plot::{Plot, Series};
use crate::process;
use crate::row::{Reach, Row, median};

const RUNS: usize = 5;
const CONNECTIONS: usize = 64;
const PODS: usize = 10_000;
const NAMESPACE: &str = "bench";
const SETTLE: Duration = Duration::from_secs(5);

/// `sampan server` with a namespace to fill.
async fn server(context: &Context) -> Result<Cluster> {
    let cluster = Cluster::start(&context.program, "server", &[]).await?;
    namespace(&cluster, NAMESPACE).await?;
    Ok(cluster)
}

/// A namespace in which pods can be made: with its service account.
pub async fn namespace(cluster: &Cluster, name: &str) -> Result<()> {
    let mut api = cluster.api()?.connect().await?;
    api.create("/api/v1/namespaces", &json!({ "metadata": { "name": name } })).await?;
    let accounts =
        format!("/api/v1/namespaces/{name}/serviceaccounts?watch=true&fieldSelector=metadata.name%3Ddefault");
    let mut watch = api.watch(&accounts).await?;
    let made = async {
        while watch.next().await?["type"] != "ADDED" {}
        Ok::<_, anyhow::Error>(())
    };
    tokio::time::timeout(Duration::from_secs(30), made).await.context("no default service account came")?
}

async fn fill(cluster: &Cluster) -> Result<Outcome> {
    load::run(&Load::Create {
        kubeconfig: cluster.kubeconfig(),
        namespace: NAMESPACE.to_owned(),
        connections: CONNECTIONS,
        count: PODS,
    })
    .await
}

pub async fn create_pods(context: &Context) -> Result<Vec<Row>> {
    let mut runs = Vec::new();
    let mut server_cpu = 0.0;
    for _ in 0..RUNS {
        let cluster = server(context).await?;
        let before = process::cpu_seconds(&cluster.pid()?.to_string());
        runs.push(fill(&cluster).await?);
        server_cpu = process::cpu_seconds(&cluster.pid()?.to_string()) - before;
    }
    let curves = runs.iter().enumerate().map(|(index, run)| Series {
        name: format!("run {}", index + 1),
        points: run.quantiles_ms.iter().enumerate().map(|(percent, ms)| (*ms, percent as f64)).collect(),
    });
    let title = "Creating pods over 64 connections: how many are answered within a time";
    Plot { title, x: "ms", y: "% of creates", series: curves.collect() }.save(&context.out, "create_pods")?;
    let mut row = Row::new("create_pods_per_s", "pods/s", each(&runs, Outcome::rate), Reach::AtLeast(5000.0));
    let mut p99 = Row::new("create_pods_p99_ms", "ms", each(&runs, |run| run.percentile(99)), Reach::None);
    p99.notes.push(format!("p50 {:.1} ms", median(&each(&runs, |run| run.percentile(50)))));
    if let Some(last) = runs.last() {
        row.notes.push(last.cost());
        row.notes.push(format!("server: {:.0} µs of processor time a pod", server_cpu * 1e6 / PODS as f64));
    }
    Ok(vec![row, p99])
}

pub async fn get_pods(context: &Context) -> Result<Vec<Row>> {
    let cluster = server(context).await?;
    load::run(&Load::Create {
        kubeconfig: cluster.kubeconfig(),
        namespace: NAMESPACE.to_owned(),
        connections: 1,
        count: 1,
    })
    .await?;
    let before = process::cpu_seconds(&cluster.pid()?.to_string());
    let runs = repeat(RUNS, |_| Load::Get {
        kubeconfig: cluster.kubeconfig(),
        path: format!("/api/v1/namespaces/{NAMESPACE}/pods/web-7d4b9c6f5-000000"),
        connections: CONNECTIONS,
        seconds: 4.0,
    })
    .await?;
    let cpu = process::cpu_seconds(&cluster.pid()?.to_string()) - before;
    let gets: u64 = runs.iter().map(|run| run.operations).sum();
    let mut row = Row::new("get_pods_per_s", "gets/s", each(&runs, Outcome::rate), Reach::AtLeast(30_000.0));
    if let Some(last) = runs.last() {
        row.notes.push(format!("p50 {:.2} ms, p99 {:.2} ms", last.percentile(50), last.percentile(99)));
        row.notes.push(last.cost());
    }
    row.notes.push(format!("server: {:.1} µs of processor time a get", cpu * 1e6 / gets.max(1) as f64));
    Ok(vec![row])
}

pub async fn list_pods(context: &Context) -> Result<Vec<Row>> {
    let cluster = server(context).await?;
    fill(&cluster).await?;
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods");
    let mut api = cluster.api()?.connect().await?;
    let list = api.get(&path).await?;
    let count = serde_json::from_slice::<serde_json::Value>(&list)?["items"].as_array().map_or(0, Vec::len);
    ensure!(count == PODS, "{count} pods are listed, {PODS} were made");
    let runs = repeat(RUNS, |_| Load::Get {
        kubeconfig: cluster.kubeconfig(),
        path: path.clone(),
        connections: 1,
        seconds: 2.0,
    })
    .await?;
    let mut row = Row::new("list_10k_ms", "ms", each(&runs, |run| run.percentile(50)), Reach::AtMost(60.0));
    row.notes.push(format!("{:.1} MB a list", list.len() as f64 / 1e6));
    if let Some(last) = runs.last() {
        row.notes.push(format!("{} lists a run, p99 {:.1} ms", last.operations, last.percentile(99)));
        row.notes.push(last.cost());
    }
    Ok(vec![row])
}

/// Scheduler and controllers watch from inside; beside them a node's two watches from outside.
pub async fn memory_of_pods(context: &Context) -> Result<Vec<Row>> {
    let mut runs = Vec::new();
    let mut empty = Vec::new();
    for _ in 0..3 {
        let cluster = server(context).await?;
        let api = cluster.api()?;
        let mut watches = Vec::new();
        for path in ["/api/v1/nodes?watch=true", "/api/v1/pods?watch=true"] {
            let mut connection = api.connect().await?;
            let mut watch = connection.watch(path).await?;
            watches.push(tokio::spawn(async move {
                let _connection = connection;
                while watch.next_line().await.is_ok() {}
            }));
        }
        empty.push(process::resident_kib(cluster.pid()?) as f64 / 1024.0);
        fill(&cluster).await?;
        tokio::time::sleep(SETTLE).await;
        runs.push(process::resident_kib(cluster.pid()?) as f64 / 1024.0);
        for watch in watches {
            watch.abort();
        }
    }
    let row = Row::new("rss_10k_pods_mb", "MiB", runs, Reach::AtMost(200.0));
    let each = (row.value() - median(&empty)) * 1024.0 / PODS as f64;
    Ok(vec![row.note(format!("{:.0} MiB before the pods; {each:.1} KiB a pod", median(&empty)))])
}
