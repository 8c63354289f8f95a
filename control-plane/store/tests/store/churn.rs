//! The file under churn: leases renewed and events coming and going for ever.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use sampan_store::{Clock, Options, Range, RedbStore, StorageBackend, Store};

/// Memory whose size can be asked for from outside.
#[derive(Debug, Clone, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl Memory {
    fn size(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

impl StorageBackend for Memory {
    fn len(&self) -> io::Result<u64> {
        Ok(self.size() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let offset = offset as usize;
        out.copy_from_slice(&self.0.lock().unwrap()[offset..offset + out.len()]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.lock().unwrap().resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let offset = offset as usize;
        self.0.lock().unwrap()[offset..offset + data.len()].copy_from_slice(data);
        Ok(())
    }
}

/// A clock that a test moves.
#[derive(Debug, Default)]
struct Hands(AtomicU64);

impl Hands {
    fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_millis() as u64, Ordering::SeqCst);
    }
}

impl Clock for Hands {
    fn now(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::SeqCst))
    }
}

/// Renews every lease once.
async fn renew(store: &RedbStore, leases: &mut [u64]) {
    let value = Bytes::from(vec![b'l'; 400]);
    let renewed = futures::future::join_all(leases.iter().enumerate().map(|(index, at)| {
        let (key, value) = (format!("/leases/kube-node-lease/node-{index:03}"), value.clone());
        async move {
            match at {
                0 => store.create(&key, value).await,
                at => store.update(&key, value, *at).await,
            }
        }
    }))
    .await;
    for (lease, at) in leases.iter_mut().zip(renewed) {
        *lease = at.unwrap();
    }
}

/// An event appears, and the one an hour older goes.
async fn events(store: &RedbStore, round: u64, kept: u64) {
    let key = |round: u64| format!("/events/default/event-{round}");
    store.create(&key(round), Bytes::from(vec![b'e'; 900])).await.unwrap();
    if round >= kept {
        let old = store.get(&key(round - kept)).await.unwrap().unwrap();
        store.delete(&old.key, old.revision).await.unwrap();
    }
}

/// The file never passes what it reached in the first third.
fn settled(sizes: &[usize]) {
    let (warm, later) = sizes.split_at(sizes.len() / 3);
    let (warm, later) = (warm.iter().max().unwrap(), later.iter().max().unwrap());
    assert!(later <= warm, "{warm} bytes, then {later}");
    assert!(*warm < 8 << 20, "{warm}");
}

#[tokio::test]
async fn the_file_does_not_grow_under_churn() {
    let file = Memory::default();
    let clock = Arc::new(Hands::default());
    let options = Options { clock: clock.clone(), ..Options::default() };
    let store = RedbStore::open_backend(file.clone(), options).unwrap();
    let mut leases = [0; 50];
    let mut sizes = Vec::new();
    // Fifty nodes for three hours, history kept for five minutes.
    for round in 0..1080 {
        clock.advance(Duration::from_secs(10));
        renew(&store, &mut leases).await;
        events(&store, round, 100).await;
        sizes.push(file.size());
    }
    let history = store.stats().revision - store.stats().compacted;
    // Five minutes are 30 rounds of 52 writes; a mark is passed every tenth second.
    assert!(history <= 34 * 52, "{history}");
    settled(&sizes);
    let page = store.list(Range::prefix("/"), None, 0).await.unwrap();
    assert_eq!(page.entries.len(), 150);
}

#[tokio::test]
async fn the_file_does_not_grow_flat_out() {
    let file = Memory::default();
    // No time passes: only size can limit history.
    let clock = Arc::new(Hands::default());
    let options = Options { clock, keep_bytes: 1 << 20, ..Options::default() };
    let store = RedbStore::open_backend(file.clone(), options).unwrap();
    let mut leases = [0; 64];
    let mut sizes = Vec::new();
    for _ in 0..400 {
        renew(&store, &mut leases).await;
        sizes.push(file.size());
        // At most one commit's writes over the limit before compaction has caught up.
        assert!(store.stats().history_bytes < (1 << 20) + 64 * 600);
    }
    settled(&sizes);
}

#[tokio::test]
async fn an_idle_store_forgets_too() {
    let clock = Arc::new(Hands::default());
    // A short history makes the writer look often.
    let keep_history = Duration::from_millis(40);
    let options = Options { clock: clock.clone(), keep_history, ..Options::default() };
    let store = RedbStore::in_memory(options).unwrap();
    let mut leases = [0; 20];
    renew(&store, &mut leases).await;
    renew(&store, &mut leases).await;
    while store.stats().compacted < store.stats().revision {
        clock.advance(Duration::from_millis(10));
        tokio::task::yield_now().await;
    }
    assert_eq!(store.stats().history_bytes, 0);
    let page = store.list(Range::prefix("/leases/"), None, 0).await.unwrap();
    assert_eq!(page.entries.len(), 20);
}
