//! The same request over and over, on connections that stay.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Meter, Outcome, ms};
use crate::client::{Api, Connection};

pub async fn api(kubeconfig: &Path, path: &str, connections: usize, length: Duration) -> Result<Outcome> {
    let api = Api::open(kubeconfig)?;
    let mut open = Vec::new();
    for _ in 0..connections {
        open.push(api.connect().await?);
    }
    repeat(open, path, length).await
}

pub async fn plain(authority: &str, connections: usize, length: Duration) -> Result<Outcome> {
    let mut open = Vec::new();
    for _ in 0..connections {
        open.push(Connection::plain(authority).await?);
    }
    repeat(open, "/", length).await
}

async fn repeat(open: Vec<Connection>, path: &str, length: Duration) -> Result<Outcome> {
    let path: Arc<str> = path.into();
    let meter = Meter::begin();
    let end = Instant::now() + length;
    let mut tasks = tokio::task::JoinSet::new();
    for mut connection in open {
        let path = path.clone();
        tasks.spawn(async move {
            let mut latencies = Vec::new();
            loop {
                let start = Instant::now();
                if start >= end {
                    return Ok::<_, anyhow::Error>(latencies);
                }
                connection.get_and_forget(&path).await?;
                latencies.push(ms(start));
            }
        });
    }
    let mut latencies = Vec::new();
    while let Some(task) = tasks.join_next().await {
        latencies.extend(task??);
    }
    Ok(meter.end(&latencies))
}
