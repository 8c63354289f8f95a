//! The load generator: a process of its own, so that its cost is known and is not the server's.
//! It reads one [`Load`] as JSON from standard input and writes one [`Outcome`] to standard output.

mod api;
mod etcd;
mod http;
mod schedule;
mod services;
mod store;
mod watch;

use std::io::Read as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt as _;

pub use etcd::answers as etcd_answers;
pub use store::Engine;

use crate::client::{Api, Connection};
use crate::row::quantile;

/// Of loads that only set a scene.
const CONNECTIONS: usize = 32;

#[derive(Debug, Serialize, Deserialize)]
pub enum Load {
    /// POSTs `count` pods of 1 kB to a namespace.
    Create { kubeconfig: PathBuf, namespace: String, connections: usize, count: usize },
    /// GETs a path over and over.
    Get { kubeconfig: PathBuf, path: String, connections: usize, seconds: f64 },
    /// The same from something that speaks HTTP without TLS.
    Plain { authority: String, connections: usize, seconds: f64 },
    /// Writes one object, which many watch, and waits each time until all have seen it.
    Watch { kubeconfig: PathBuf, namespace: String, watchers: usize, writes: usize },
    /// Makes nodes that only the API knows, then pods, and waits until all are bound.
    Schedule { kubeconfig: PathBuf, namespace: String, nodes: usize, pods: usize },
    /// Makes Services with three endpoints each.
    Services { kubeconfig: PathBuf, namespace: String, count: usize },
    /// Puts keys into an etcd.
    Etcd { url: String, writers: usize, value_bytes: usize, seconds: f64 },
    /// Creates keys in the store, in this process.
    Store { dir: PathBuf, engine: store::Engine, writers: usize, value_bytes: usize, seconds: f64 },
}

/// What a load came to.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    pub operations: u64,
    pub seconds: f64,
    /// Processor time of the load generator meanwhile.
    pub cpu_seconds: f64,
    /// Latencies at 0, 1, … 100 %, in milliseconds.
    pub quantiles_ms: Vec<f64>,
    pub note: String,
}

impl Outcome {
    pub fn rate(&self) -> f64 {
        self.operations as f64 / self.seconds
    }

    pub fn percentile(&self, percent: usize) -> f64 {
        self.quantiles_ms.get(percent).copied().unwrap_or(0.0)
    }

    /// What the load generator itself cost, for the reader of a row.
    pub fn cost(&self) -> String {
        let each = self.cpu_seconds * 1e6 / self.operations.max(1) as f64;
        format!("load generator: {:.2} CPUs, {each:.0} µs an operation", self.cpu_seconds / self.seconds.max(1e-9))
    }
}

/// Runs a load in a process of its own.
pub async fn run(load: &Load) -> Result<Outcome> {
    let mut child = tokio::process::Command::new(std::env::current_exe()?)
        .arg("load")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut input = child.stdin.take().context("no standard input")?;
    input.write_all(&serde_json::to_vec(load)?).await?;
    drop(input);
    let output = child.wait_with_output().await?;
    ensure!(output.status.success(), "the load generator failed");
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// What the process does that [`run`] starts.
pub fn main() -> Result<()> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let load: Load = serde_json::from_str(&text)?;
    raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        match load {
            Load::Create { kubeconfig, namespace, connections, count } => {
                api::create(&kubeconfig, &namespace, connections, count).await
            }
            Load::Get { kubeconfig, path, connections, seconds } => {
                http::api(&kubeconfig, &path, connections, Duration::from_secs_f64(seconds)).await
            }
            Load::Etcd { url, writers, value_bytes, seconds } => {
                etcd::run(&url, writers, value_bytes, Duration::from_secs_f64(seconds)).await
            }
            Load::Plain { authority, connections, seconds } => {
                http::plain(&authority, connections, Duration::from_secs_f64(seconds)).await
            }
            Load::Watch { kubeconfig, namespace, watchers, writes } => {
                watch::fan_out(&kubeconfig, &namespace, watchers, writes).await
            }
            Load::Schedule { kubeconfig, namespace, nodes, pods } => {
                schedule::run(&kubeconfig, &namespace, nodes, pods).await
            }
            Load::Services { kubeconfig, namespace, count } => services::create(&kubeconfig, &namespace, count).await,
            Load::Store { dir, engine, writers, value_bytes, seconds } => {
                store::run(&dir, engine, writers, value_bytes, Duration::from_secs_f64(seconds)).await
            }
        }
    })?;
    println!("{}", serde_json::to_string(&outcome)?);
    // What is still connected needs no farewell.
    std::process::exit(0)
}

/// A thousand watchers are a thousand sockets.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// Each of `workers` does the same over and over, counted from 0, for so long.
async fn for_long<W, F>(
    workers: Vec<W>,
    length: Duration,
    each: impl Fn(W, usize) -> F + Clone + Send + 'static,
) -> Result<Outcome>
where
    W: Send + 'static,
    F: Future<Output = Result<W>> + Send + 'static,
{
    let meter = Meter::begin();
    let end = Instant::now() + length;
    let mut tasks = tokio::task::JoinSet::new();
    for mut worker in workers {
        let each = each.clone();
        tasks.spawn(async move {
            let mut latencies = Vec::new();
            for number in 0.. {
                let start = Instant::now();
                if start >= end {
                    break;
                }
                worker = each(worker, number).await?;
                latencies.push(ms(start));
            }
            Ok::<_, anyhow::Error>(latencies)
        });
    }
    let mut latencies = Vec::new();
    while let Some(task) = tasks.join_next().await {
        latencies.extend(task??);
    }
    Ok(meter.end(&latencies))
}

/// Runs `each` for 0 to `count` on connections of its own.
async fn spread_out<F>(
    api: &Api,
    count: usize,
    each: impl Fn(Connection, usize) -> F + Clone + Send + 'static,
) -> Result<Vec<f64>>
where
    F: Future<Output = Result<Connection>> + Send + 'static,
{
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..CONNECTIONS {
        let mut connection = api.connect().await?;
        let (next, each) = (next.clone(), each.clone());
        tasks.spawn(async move {
            let mut latencies = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok::<_, anyhow::Error>(latencies);
                }
                let start = Instant::now();
                connection = each(connection, number).await?;
                latencies.push(ms(start));
            }
        });
    }
    let mut latencies = Vec::with_capacity(count);
    while let Some(task) = tasks.join_next().await {
        latencies.extend(task??);
    }
    Ok(latencies)
}

/// Measures what runs from `begin` on.
struct Meter {
    start: Instant,
    cpu: f64,
}

impl Meter {
    fn begin() -> Self {
        Self { start: Instant::now(), cpu: crate::process::cpu_seconds("self") }
    }

    /// With the latency of each operation, in milliseconds.
    fn end(self, latencies: &[f64]) -> Outcome {
        let seconds = self.start.elapsed().as_secs_f64();
        let cpu_seconds = crate::process::cpu_seconds("self") - self.cpu;
        Outcome {
            operations: latencies.len() as u64,
            seconds,
            cpu_seconds,
            quantiles_ms: quantiles(latencies),
            note: String::new(),
        }
    }
}

fn quantiles(latencies: &[f64]) -> Vec<f64> {
    let mut sorted = latencies.to_vec();
    sorted.sort_by(f64::total_cmp);
    (0..=100).map(|percent| quantile_of_sorted(&sorted, f64::from(percent) / 100.0)).collect()
}

fn quantile_of_sorted(sorted: &[f64], at: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let index = (at * last as f64).round() as usize;
    // The nearest one: with as many as these nothing is gained by a mean.
    sorted.get(index).copied().unwrap_or_else(|| quantile(sorted, at))
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_what_was_measured() {
        let latencies: Vec<f64> = (0..1001).rev().map(f64::from).collect();
        let quantiles = quantiles(&latencies);
        assert_eq!(quantiles.len(), 101);
        assert_eq!((quantiles[0], quantiles[50], quantiles[99], quantiles[100]), (0.0, 500.0, 990.0, 1000.0));
        assert_eq!(super::quantiles(&[])[99], 0.0);
    }

    #[test]
    fn rate_and_cost_follow_from_the_sums() {
        let outcome = Outcome { operations: 1000, seconds: 2.0, cpu_seconds: 0.5, ..Outcome::default() };
        assert_eq!(outcome.rate(), 500.0);
        assert_eq!(outcome.cost(), "load generator: 0.25 CPUs, 500 µs an operation");
    }
}
