//! Writes per second of 64 writers through the store, beside redb with the same tables written as
//! one fsync per 64 writes: what the store could reach at best. Prints the disk's fsync too.
//!
//!     cargo run --release -p sampan-store --example throughput [-- DIRECTORY]

use std::fs::File;
use std::io::{Seek, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use redb::{Database, TableDefinition};
use sampan_store::{Options, RedbStore, Store};

const WRITERS: usize = 64;
const KEYS: usize = 64;
const VALUE: usize = 2048;
const RUN: Duration = Duration::from_secs(3);

fn key(writer: usize, index: usize) -> String {
    format!("/registry/pods/default/writer-{writer:03}-{index:03}")
}

/// The middle of 101 fsyncs of a page.
fn fsync(dir: &Path) -> Duration {
    let mut file = File::create(dir.join("fsync")).expect("a file");
    let mut times: Vec<Duration> = (0..101)
        .map(|_| {
            file.rewind().expect("seek");
            file.write_all(&[1; 4096]).expect("write");
            let started = Instant::now();
            file.sync_data().expect("fsync");
            started.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[50]
}

fn bare(path: &Path) -> f64 {
    const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
    const INDEX: TableDefinition<&str, u64> = TableDefinition::new("index");
    const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
    let mut builder = Database::builder();
    builder.set_cache_size(Options::default().cache_bytes);
    let db = builder.create(path).expect("a database");
    let value = [7; VALUE + 60];
    let (mut revision, started) = (0, Instant::now());
    while started.elapsed() < RUN {
        let txn = db.begin_write().expect("a transaction");
        {
            let mut log = txn.open_table(LOG).expect("a table");
            let mut index = txn.open_table(INDEX).expect("a table");
            for writer in 0..WRITERS {
                revision += 1;
                log.insert(revision, &value[..]).expect("insert");
                let key = key(writer, revision as usize / WRITERS % KEYS);
                index.insert(&*key, revision).expect("insert");
            }
            txn.open_table(META).expect("a table").insert("revision", revision).expect("insert");
        }
        txn.commit().expect("a commit");
    }
    revision as f64 / started.elapsed().as_secs_f64()
}

async fn store(path: &Path) -> (f64, Duration, Duration) {
    let store = Arc::new(RedbStore::open(path, Options::default()).expect("a store"));
    // The server's watch cache reads along.
    let mut watch = store.watch("", 1).expect("a watch");
    let watching = tokio::spawn(async move { while let Some(Ok(_)) = watch.next().await {} });
    let started = Instant::now();
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let value = Bytes::from(vec![7; VALUE]);
                let mut at = [0; KEYS];
                let mut times = Vec::new();
                for index in (0..KEYS).cycle() {
                    if started.elapsed() >= RUN {
                        break;
                    }
                    let (key, begun) = (key(writer, index), Instant::now());
                    at[index] = match at[index] {
                        0 => store.create(&key, value.clone()).await.expect("a write"),
                        before => store.update(&key, value.clone(), before).await.expect("a write"),
                    };
                    times.push(begun.elapsed());
                }
                times
            })
        })
        .collect();
    let mut times = Vec::new();
    for writer in writers {
        times.extend(writer.await.expect("a writer"));
    }
    let rate = times.len() as f64 / started.elapsed().as_secs_f64();
    times.sort_unstable();
    let stats = store.stats();
    println!(
        "store: {} writes in {} commits ({:.0} a commit), {} revisions of history left",
        stats.writes,
        stats.commits,
        stats.writes as f64 / stats.commits as f64,
        stats.revision - stats.compacted,
    );
    // As a kill would leave it.
    let killed = path.with_extension("killed");
    std::fs::copy(path, &killed).expect("a copy");
    store.close();
    for (path, left) in [(&*killed, "after a kill"), (path, "closed in order")] {
        let begun = Instant::now();
        drop(RedbStore::open(path, Options::default()).expect("the store again"));
        println!("store: opened in {:?} ({left})", begun.elapsed());
    }
    std::fs::remove_file(&killed).expect("remove");
    watching.await.expect("the watch");
    (rate, times[times.len() / 2], times[times.len() * 99 / 100])
}

#[tokio::main]
async fn main() {
    let dir = match std::env::args_os().nth(1) {
        Some(dir) => tempfile::tempdir_in(dir),
        None => tempfile::tempdir(),
    };
    let dir = dir.expect("a directory");
    println!("fsync: {:?} (median)", fsync(dir.path()));
    for _ in 0..2 {
        let path = dir.path().join("store.redb");
        let (rate, p50, p99) = store(&path).await;
        let size = std::fs::metadata(&path).expect("the file").len() >> 20;
        println!("store: {rate:.0} writes/s, p50 {p50:?}, p99 {p99:?}, file {size} MB");
        std::fs::remove_file(&path).expect("remove");
        let path = dir.path().join("bare.redb");
        let rate = bare(&path);
        let size = std::fs::metadata(&path).expect("the file").len() >> 20;
        println!("redb:  {rate:.0} writes/s, file {size} MB");
        std::fs::remove_file(&path).expect("remove");
    }
}
