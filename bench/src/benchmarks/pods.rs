//! Pods of a node: how soon one is ready, how soon many are, and what they take.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{Context, hello};
use crate::cluster::Cluster;
use crate::load::{self, Engine, Load};
use crate::plot::{Plot, Series};
use crate::process;
use crate::row::{Reach, Row, quantile};

const RUNS: usize = 3;
const PODS: usize = 150;
const PATH: &str = "/api/v1/namespaces/default/pods";
const ONE: Duration = Duration::from_secs(30);

/// Create to Ready at a watcher, one pod after the other.
pub async fn ready(context: &Context) -> Result<Vec<Row>> {
    let commit = single_commit_ms().await?;
    let (mut p50, mut p99, mut series) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..RUNS {
        let cluster = Cluster::start(&context.program, "up", &[]).await?;
        hello::import(context, &cluster).await?;
        // The first one brings the tenant's host process, which then stays.
        start(&cluster, "first", 1, &hello::spec(true, "500m")).await?;
        let times = start(&cluster, "hello", PODS, &hello::spec(true, "500m")).await?;
        p50.push(quantile(&times, 0.5));
        p99.push(quantile(&times, 0.99));
        let points = (0..=100).map(|percent| (quantile(&times, f64::from(percent) / 100.0), f64::from(percent)));
        series.push(Series { name: format!("run {}", run + 1), points: points.collect() });
    }
    let title = "Wasm pod from create to Ready: how many are ready within a time";
    Plot { title, x: "ms", y: "% of pods", series }.save(&context.out, "pod_ready")?;
    let p50 = Row::new("pod_ready_p50_ms", "ms", p50, Reach::AtMost(8.0 + 3.0 * commit))
        .note(format!("{PODS} pods a run, one after the other; a commit of the store takes {commit:.2} ms"));
    Ok(vec![p50, Row::new("pod_ready_p99_ms", "ms", p99, Reach::AtMost(50.0))])
}

/// Median of one writer's writes.
async fn single_commit_ms() -> Result<f64> {
    let dir = tempfile::Builder::new().prefix("sampan-bench-").tempdir()?;
    let dir = dir.path().to_owned();
    let load = Load::Store { dir, engine: Engine::Sampan, writers: 1, value_bytes: 2000, seconds: 2.0 };
    Ok(load::run(&load).await?.percentile(50))
}

/// Milliseconds that pods take to be ready, made one after the other.
pub async fn start(cluster: &Cluster, prefix: &str, count: usize, spec: &Value) -> Result<Vec<f64>> {
    let api = cluster.api()?;
    let (mut connection, mut watching) = (api.connect().await?, api.connect().await?);
    let mut watch = watching.watch(&format!("{PATH}?watch=true")).await?;
    let mut times = Vec::with_capacity(count);
    for number in 0..count {
        let name = format!("{prefix}-{number}");
        let pod = json!({ "metadata": { "name": name }, "spec": spec });
        let start = Instant::now();
        connection.create(PATH, &pod).await?;
        let ready = async {
            loop {
                let event = watch.next().await?;
                if event["object"]["metadata"]["name"] == *name && is_ready(&event["object"]) {
                    return Ok::<_, anyhow::Error>(start.elapsed());
                }
            }
        };
        let took = tokio::time::timeout(ONE, ready).await.with_context(|| format!("pod {name} is not ready"))??;
        // They stay: to end one takes longer than to start it, and would be measured with the next.
        times.push(took.as_secs_f64() * 1e3);
    }
    Ok(times)
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
}

const MANY: usize = 1000;

/// A Deployment from 1 to 1,000 replicas.
pub async fn scale_1000(context: &Context) -> Result<Vec<Row>> {
    let (mut runs, mut series) = (Vec::new(), Vec::new());
    let mut cost = String::new();
    for run in 0..RUNS {
        let cluster = Cluster::start(&context.program, "up", &["--max-pods", "1100"]).await?;
        hello::import(context, &cluster).await?;
        hello::deploy(&mut cluster.api()?.connect().await?, 1, true, "500m").await?;
        hello::addresses(&cluster, 1).await?;
        let before = process::cpu_seconds(&cluster.pid()?.to_string());
        let (took, curve) = hello::scale(&cluster, MANY, Duration::from_secs(120)).await?;
        let cpu = process::cpu_seconds(&cluster.pid()?.to_string()) - before;
        cost = format!("server and node: {cpu:.1} s of processor time, {:.1} ms a pod", cpu * 1e3 / MANY as f64);
        runs.push(took.as_secs_f64());
        series.push(Series { name: format!("run {}", run + 1), points: curve });
    }
    Plot { title: "hello from 1 to 1,000 replicas on one node", x: "s", y: "ready pods", series }
        .save(&context.out, "scale_1000")?;
    Ok(vec![Row::new("scale_1000_s", "s", runs, Reach::AtMost(5.0)).note(cost)])
}

const DENSE: usize = 10_000;

/// All processes of ours with 10,000 idle pods, less what they took with one.
pub async fn density(context: &Context) -> Result<Vec<Row>> {
    let (mut runs, mut notes) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let cluster = Cluster::start(&context.program, "up", &["--max-pods", "10500"]).await?;
        hello::import(context, &cluster).await?;
        hello::deploy(&mut cluster.api()?.connect().await?, 1, false, "500m").await?;
        hello::addresses(&cluster, 1).await?;
        let own = [cluster.pid()?];
        let sum = |pids: &[u32]| pids.iter().map(|pid| process::resident_kib(*pid)).sum::<u64>();
        let before = sum(&process::running(&context.program));
        let own_before = sum(&own);
        let (took, _) = hello::scale(&cluster, DENSE, Duration::from_secs(600)).await?;
        tokio::time::sleep(Duration::from_secs(10)).await;
        let running = process::running(&context.program);
        let each = |after: u64, before: u64| after.saturating_sub(before) as f64 / (DENSE - 1) as f64;
        runs.push(each(sum(&running), before));
        notes = vec![
            format!("of it server and node {:.1} KiB, the rest their host process", each(sum(&own), own_before)),
            format!(
                "{} processes with {:.0} MiB in all ({:.0} where shared pages count once); ready after {:.0} s",
                running.len(),
                sum(&running) as f64 / 1024.0,
                process::proportional_kib(&running) as f64 / 1024.0,
                took.as_secs_f64()
            ),
        ];
    }
    let row = Row::new("density_kb_per_pod", "KiB", runs, Reach::AtMost(100.0));
    Ok(vec![notes.into_iter().fold(row, Row::note)])
}
