//! Watches beside busy writers.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use sampan_store::{Error, Options, Range, RedbStore, Store};

use super::suite::{bytes, next};

/// Watches that begin anywhere, while writers write, see every revision once and in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn watches_that_begin_amid_writes_miss_and_repeat_nothing() {
    let store = Arc::new(RedbStore::in_memory(Options::default()).unwrap());
    const WRITERS: u64 = 8;
    const WRITES: u64 = 400;
    let last = 1 + WRITERS * WRITES;
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for write in 0..WRITES {
                    store.create(&format!("/{writer}/{write}"), bytes("value")).await.unwrap();
                }
            })
        })
        .collect();
    let watches: Vec<_> = (0..24)
        .map(|index| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for _ in 0..index * 3 {
                    tokio::task::yield_now().await;
                }
                // As a client does: list, then watch from there.
                let page = store.list(Range::default(), None, 1).await.unwrap();
                let from = if index % 2 == 0 { page.revision } else { page.revision / 2 + 1 };
                let mut watch = store.watch("", from).unwrap();
                let mut at = from;
                while at < last {
                    for event in watch.next().await.unwrap().unwrap().iter() {
                        assert_eq!(event.revision, at + 1);
                        at = event.revision;
                    }
                }
            })
        })
        .collect();
    for task in writers.into_iter().chain(watches) {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn long_history_is_replayed_in_parts() {
    let store = RedbStore::in_memory(Options::default()).unwrap();
    const WRITES: usize = 6000;
    for chunk in 0..WRITES / 500 {
        let writes = (0..500).map(|index| {
            let key = format!("/{}/{}", index % 2, chunk * 500 + index);
            let store = &store;
            async move { store.create(&key, bytes("value")).await.unwrap() }
        });
        tokio::task::unconstrained(futures::future::join_all(writes)).await;
    }
    let mut watch = store.watch("/1/", 1).unwrap();
    let first = watch.next().await.unwrap().unwrap();
    assert!(first.len() < WRITES / 2, "all at once");
    let rest = next(&mut watch, WRITES / 2 - first.len()).await;
    let revisions: Vec<u64> = first.iter().chain(&rest).map(|event| event.revision).collect();
    let expected: Vec<u64> = (0..WRITES as u64 / 2).map(|index| 3 + 2 * index).collect();
    assert_eq!(revisions, expected);
}

#[tokio::test]
async fn a_reader_that_falls_behind_is_dropped() {
    let options = Options { watch_backlog: 10, ..Options::default() };
    let store = RedbStore::in_memory(options).unwrap();
    let mut slow = store.watch("", 1).unwrap();
    let mut other = store.watch("/other/", 1).unwrap();
    for index in 0..11 {
        assert_eq!(store.stats().watchers, 2, "{index}");
        store.create(&format!("/{index}"), bytes("")).await.unwrap();
    }
    assert_eq!(store.stats().watchers, 1);
    assert_eq!(slow.next().await, Some(Err(Error::Lagged { behind: 11 })));
    assert_eq!(slow.next().await, None);
    // Who was not behind goes on.
    store.create("/other/1", bytes("")).await.unwrap();
    assert_eq!(next(&mut other, 1).await[0].revision, 13);

    // The same by size.
    let options = Options { watch_backlog_bytes: 10_000, ..Options::default() };
    let store = RedbStore::in_memory(options).unwrap();
    let mut slow = store.watch("", 1).unwrap();
    for index in 0..3 {
        store.create(&format!("/{index}"), Bytes::from(vec![0; 6000])).await.unwrap();
    }
    assert_eq!(slow.next().await, Some(Err(Error::Lagged { behind: 2 })));
}

#[tokio::test]
async fn a_dropped_watch_leaves_nothing_behind() {
    let store = RedbStore::in_memory(Options::default()).unwrap();
    let watch = store.watch("/a/", 1).unwrap();
    let replaying = store.watch("/a/", 0).unwrap();
    assert_eq!(store.stats().watchers, 1);
    drop((watch, replaying));
    assert_eq!(store.stats().watchers, 0);
    store.create("/b", bytes("")).await.unwrap();
    assert_eq!(store.stats().watchers, 0);
}

#[tokio::test]
async fn history_that_goes_under_a_watch_ends_it() {
    let store = RedbStore::in_memory(Options::default()).unwrap();
    store.create("/a", bytes("0")).await.unwrap();
    let mut watch = store.watch("", 2).unwrap();
    for at in 2..5000 {
        store.update("/a", bytes("1"), at).await.unwrap();
    }
    // Everything is still queued for it; a new one has to read the log.
    let mut replaying = store.watch("", 1).unwrap();
    store.compact(4000).await.unwrap();
    assert_eq!(replaying.next().await, Some(Err(Error::Compacted { requested: 1, oldest: 4000 })));
    assert_eq!(replaying.next().await, None);
    assert_eq!(next(&mut watch, 4998).await[4997].revision, 5000);
}

#[tokio::test]
async fn closing_ends_watches_and_writes() {
    let store = Arc::new(RedbStore::in_memory(Options::default()).unwrap());
    store.create("/a", bytes("0")).await.unwrap();
    let mut live = store.watch("", 2).unwrap();
    let mut replaying = store.watch("", 1).unwrap();
    let closing = Arc::clone(&store);
    tokio::task::spawn_blocking(move || closing.close()).await.unwrap();
    assert_eq!(live.next().await, Some(Err(Error::Closed)));
    assert_eq!(live.next().await, None);
    assert_eq!(replaying.next().await, Some(Err(Error::Closed)));
    assert_eq!(store.create("/b", bytes("")).await, Err(Error::Closed));
    assert_eq!(store.get("/a").await, Err(Error::Closed));
    assert_eq!(store.list(Range::default(), None, 0).await, Err(Error::Closed));
    assert_eq!(store.compact(1).await, Err(Error::Closed));
    assert_eq!(store.watch("", 2).err(), Some(Error::Closed));
}

/// Callers wait when the queue is full, and none is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_makes_writers_wait() {
    let options = Options { queue: 4, queue_bytes: 4000, ..Options::default() };
    let store = Arc::new(RedbStore::in_memory(options).unwrap());
    let writes: Vec<_> = (0..200)
        .map(|index| {
            let store = Arc::clone(&store);
            // One in ten is larger than the whole queue.
            let size = if index % 10 == 0 { 6000 } else { 10 };
            tokio::spawn(async move { store.create(&format!("/{index}"), Bytes::from(vec![1; size])).await.unwrap() })
        })
        .collect();
    let mut revisions = Vec::new();
    for write in writes {
        revisions.push(write.await.unwrap());
    }
    revisions.sort_unstable();
    assert_eq!(revisions, (2..202).collect::<Vec<_>>());
    assert!(store.stats().commits >= 200 / 4, "{:?}", store.stats());
}
