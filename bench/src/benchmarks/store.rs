//! The store alone.

use anyhow::Result;

use super::{Context, each};
use crate::load::{self, Engine, Load, Outcome};
use crate::peers::Etcd;
use crate::row::{Reach, Row, median};

const RUNS: usize = 5;
const SECONDS: f64 = 3.0;
const WRITERS: usize = 64;
const VALUE_BYTES: usize = 2000;

pub async fn run(_: &Context) -> Result<Vec<Row>> {
    let (mut ours, mut bare, mut etcd) = (Vec::new(), Vec::new(), Vec::new());
    let mut version = None;
    // In turns, so that a disk that changes its mind does so for all.
    for _ in 0..RUNS {
        ours.push(once(Engine::Sampan).await?);
        bare.push(once(Engine::Redb).await?);
        // A new one each time, as the others are.
        if let Some(server) = Etcd::start().await? {
            let url = server.url.clone();
            etcd.push(
                load::run(&Load::Etcd { url, writers: WRITERS, value_bytes: VALUE_BYTES, seconds: SECONDS }).await?,
            );
            version = Some(server.version.clone());
        }
    }
    let p99 = median(&each(&ours, |run| run.percentile(99)));
    let mut row = Row::new("store_writes_per_s", "writes/s", each(&ours, Outcome::rate), Reach::TimesPeer(0.9))
        .peer("bare redb, same tables and batches", each(&bare, Outcome::rate))
        .note(format!("p50 {:.1} ms, p99 {p99:.1} ms a write", median(&each(&ours, |run| run.percentile(50)))));
    if let Some(last) = ours.last() {
        row = row.note(format!("{}; {} (the store is in that process)", last.note, last.cost()));
    }
    if let Some(last) = bare.last() {
        row = row.note(format!("peer: {}", last.cost()));
    }
    let Some(version) = version else { return Ok(vec![row]) };
    let mut beside = Row::new("store_writes_per_s", "writes/s", each(&ours, Outcome::rate), Reach::None)
        .peer(format!("etcd {version}, one member, through gRPC"), each(&etcd, Outcome::rate))
        .note(format!("peer: p50 {:.1} ms a put", median(&each(&etcd, |run| run.percentile(50)))));
    if let Some(last) = etcd.last() {
        beside = beside.note(format!("peer: {}", last.cost()));
    }
    Ok(vec![row, beside])
}

async fn once(engine: Engine) -> Result<Outcome> {
    let dir = tempfile::Builder::new().prefix("sampan-bench-").tempdir()?;
    load::run(&Load::Store {
        dir: dir.path().to_owned(),
        engine,
        writers: WRITERS,
        value_bytes: VALUE_BYTES,
        seconds: SECONDS,
    })
    .await
}
