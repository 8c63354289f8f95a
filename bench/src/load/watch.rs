//! One write seen by many watchers.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tokio::sync::mpsc;

use super::{Meter, Outcome};
use crate::client::Api;

const PARALLEL_CONNECTS: usize = 16;

/// Each watcher has a connection of its own. A latency runs from before the write is sent until a
/// watcher has read the whole event.
pub async fn fan_out(kubeconfig: &Path, namespace: &str, watchers: usize, writes: usize) -> Result<Outcome> {
    let api = Api::open(kubeconfig)?;
    let all = format!("/api/v1/namespaces/{namespace}/configmaps");
    let mut writer = api.connect().await?;
    let made = writer.create(&all, &json!({ "metadata": { "name": "watched" }, "data": { "write": "none" } })).await?;
    let version = made["metadata"]["resourceVersion"].as_str().context("no resourceVersion")?;
    let path = format!("{all}?watch=true&fieldSelector=metadata.name%3Dwatched&resourceVersion={version}");
    let (seen, mut sightings) = mpsc::unbounded_channel();
    let mut watches = tokio::task::JoinSet::new();
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(PARALLEL_CONNECTS));
    let (open, mut opened) = mpsc::unbounded_channel();
    for _ in 0..watchers {
        let (api, path, seen, gate, open) = (api.clone(), path.clone(), seen.clone(), gate.clone(), open.clone());
        watches.spawn(async move {
            let permit = gate.acquire().await?;
            let mut connection = api.connect().await?;
            let mut watch = connection.watch(&path).await?;
            drop(permit);
            open.send(())?;
            loop {
                let line = watch.next_line().await?;
                seen.send((Instant::now(), line))?;
            }
            #[allow(unreachable_code)]
            Ok::<_, anyhow::Error>(())
        });
    }
    // Only the watchers hold the other ends: if all fail, nobody waits.
    drop((seen, open));
    for _ in 0..watchers {
        tokio::select! {
            Some(()) = opened.recv() => {}
            Some(ended) = watches.join_next() => return Err(ended?.err().context("a watch ended")?),
        }
    }
    let meter = Meter::begin();
    let mut latencies = Vec::with_capacity(watchers * writes);
    for number in 0..writes {
        let value = format!("write-{number}");
        let start = Instant::now();
        writer.merge(&format!("{all}/watched"), &json!({ "data": { "write": value } })).await?;
        for _ in 0..watchers {
            let (at, line) = tokio::select! {
                sighting = sightings.recv() => sighting.context("the watches ended")?,
                Some(ended) = watches.join_next() => return Err(ended?.err().context("a watch ended")?),
            };
            ensure!(
                line.windows(value.len()).any(|window| window == value.as_bytes()),
                "a watcher was told something else than write {number}: {}",
                String::from_utf8_lossy(&line)
            );
            latencies.push(at.saturating_duration_since(start).as_secs_f64() * 1e3);
        }
    }
    Ok(meter.end(&latencies))
}
