//! A cluster that has just been started.

use std::time::Duration;

use anyhow::Result;

use super::Context;
use crate::cluster::Cluster;
use crate::process;
use crate::row::{Reach, Row};

const STARTS: usize = 7;
const CLUSTERS: usize = 3;
/// What a start still does in the background is over by then.
const SETTLE: Duration = Duration::from_secs(10);

pub async fn up_ready(context: &Context) -> Result<Vec<Row>> {
    let mut runs = Vec::new();
    for _ in 0..STARTS {
        let cluster = Cluster::start(&context.program, "up", &[]).await?;
        runs.push(cluster.ready.as_secs_f64() * 1e3);
    }
    Ok(vec![Row::new("up_ready_ms", "ms", runs, Reach::AtMost(300.0))])
}

pub async fn idle_memory(context: &Context) -> Result<Vec<Row>> {
    let mut runs = Vec::new();
    let mut processes = 0;
    for _ in 0..CLUSTERS {
        let _cluster = Cluster::start(&context.program, "up", &[]).await?;
        tokio::time::sleep(SETTLE).await;
        let running = process::running(&context.program);
        processes = running.len();
        let kib: u64 = running.iter().map(|pid| process::resident_kib(*pid)).sum();
        runs.push(kib as f64 / 1024.0);
    }
    let row = Row::new("idle_rss_mb", "MiB", runs, Reach::AtMost(60.0));
    Ok(vec![row.note(format!("{processes} process(es) of ours, {} s after ready", SETTLE.as_secs()))])
}
