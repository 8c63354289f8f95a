//! The store alone, and the database under it with the same tables, records and batches.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use redb::{Builder, Durability, TableDefinition};
use sampan_store::{Options, RedbStore, Store as _};
use serde::{Deserialize, Serialize};

use super::{Meter, Outcome, for_long, ms};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Engine {
    /// Through [`RedbStore`]: checks, revisions, history, watches.
    Sampan,
    /// Batches of as many writes as there are writers, one after the other, made beforehand.
    Redb,
}

pub async fn run(dir: &Path, engine: Engine, writers: usize, value_bytes: usize, length: Duration) -> Result<Outcome> {
    let path = dir.join(format!("{engine:?}.redb"));
    match engine {
        Engine::Sampan => sampan(&path, writers, value_bytes, length).await,
        Engine::Redb => tokio::task::spawn_blocking(move || bare(&path, writers, value_bytes, length)).await?,
    }
}

pub fn key(writer: usize, number: usize) -> String {
    format!("/registry/pods/default/writer-{writer:03}-{number:08}")
}

async fn sampan(path: &Path, writers: usize, value_bytes: usize, length: Duration) -> Result<Outcome> {
    let store = Arc::new(RedbStore::open(path, Options::default())?);
    let value = bytes::Bytes::from(vec![b'v'; value_bytes]);
    let shared = store.clone();
    let each = move |writer, number| {
        let (store, value) = (shared.clone(), value.clone());
        async move {
            store.create(&key(writer, number), value).await?;
            Ok(writer)
        }
    };
    let mut outcome = for_long((0..writers).collect(), length, each).await?;
    let stats = store.stats();
    outcome.note = format!("{:.1} writes a commit", stats.writes as f64 / stats.commits.max(1) as f64);
    store.close();
    Ok(outcome)
}

const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const INDEX: TableDefinition<'_, &str, u64> = TableDefinition::new("index");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// What a record of the store's log has before its key: kind, length, two revisions.
const HEADER: usize = 19;

fn bare(path: &Path, batch: usize, value_bytes: usize, length: Duration) -> Result<Outcome> {
    let db = Builder::new().set_cache_size(Options::default().cache_bytes).create(path)?;
    let mut revision = 0_u64;
    let mut history = 0_u64;
    let mut latencies = Vec::new();
    let meter = Meter::begin();
    let end = Instant::now() + length;
    for number in 0.. {
        let start = Instant::now();
        if start >= end {
            break;
        }
        let mut txn = db.begin_write()?;
        txn.set_durability(Durability::Immediate).context("durability")?;
        {
            let mut log = txn.open_table(LOG)?;
            let mut index = txn.open_table(INDEX)?;
            let mut meta = txn.open_table(META)?;
            for writer in 0..batch {
                let key = key(writer, number);
                let mut record = vec![0; HEADER];
                record.extend_from_slice(key.as_bytes());
                record.resize(HEADER + key.len() + value_bytes, b'v');
                revision += 1;
                history += record.len() as u64;
                log.insert(revision, record.as_slice())?;
                index.insert(key.as_str(), revision)?;
            }
            meta.insert("revision", revision)?;
            meta.insert("history-bytes", history)?;
        }
        txn.commit()?;
        // All of a batch are answered at its end.
        latencies.resize(latencies.len() + batch, ms(start));
    }
    Ok(meter.end(&latencies))
}
