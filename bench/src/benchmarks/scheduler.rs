//! A large cluster of simulated nodes.

use anyhow::Result;

use super::{Context, each};
use crate::cluster::Cluster;
use crate::load::{self, Load, Outcome};
use crate::process;
use crate::row::{Reach, Row};

const RUNS: usize = 3;
const NODES: usize = 5000;
const PODS: usize = 50_000;
/// Room for the pods of all nodes.
const RANGES: [&str; 4] = ["--cluster-cidr", "10.0.0.0/9", "--service-cidr", "10.200.0.0/16"];
const NAMESPACE: &str = "schedule";

/// Creates, decisions, bindings and their events all count: they share the machine.
pub async fn run(context: &Context) -> Result<Vec<Row>> {
    let mut runs = Vec::new();
    let mut cost = String::new();
    for _ in 0..RUNS {
        let cluster = Cluster::start(&context.program, "server", &RANGES).await?;
        super::api::namespace(&cluster, NAMESPACE).await?;
        let kubeconfig = cluster.kubeconfig();
        let namespace = NAMESPACE.to_owned();
        let outcome = load::run(&Load::Schedule { kubeconfig, namespace, nodes: NODES, pods: PODS }).await?;
        let pid = cluster.pid()?;
        cost = format!(
            "server: {:.1} s of processor time from its start, {:.0} MiB at the end",
            process::cpu_seconds(&pid.to_string()),
            process::resident_kib(pid) as f64 / 1024.0
        );
        runs.push(outcome);
    }
    let mut row = Row::new("scheduler_pods_per_s", "pods/s", each(&runs, Outcome::rate), Reach::AtLeast(5000.0));
    if let Some(last) = runs.last() {
        let waits =
            format!("p50 {:.0} ms, p99 {:.0} ms from create to bound", last.percentile(50), last.percentile(99));
        row = row.note(last.note.clone()).note(waits).note(last.cost());
    }
    Ok(vec![row.note(cost)])
}
