//! Power lost at every write: what was acknowledged is there, what was not is there whole or not
//! at all.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::StreamExt;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sampan_store::{Change, Error, Options, Range, RedbStore, Revision, StorageBackend, Store};

#[derive(Debug, Clone)]
enum Step {
    Write {
        offset: usize,
        data: Vec<u8>,
    },
    SetLen(usize),
    Sync,
    /// The store said that this revision is written.
    Acknowledged(Revision),
}

/// A disk that remembers every step, so that it can be cut off after any of them.
#[derive(Debug, Clone, Default)]
struct Disk {
    now: Arc<Mutex<Vec<u8>>>,
    steps: Arc<Mutex<Vec<Step>>>,
    full: Arc<AtomicBool>,
}

impl Disk {
    fn holding(image: Vec<u8>) -> Self {
        Self { now: Arc::new(Mutex::new(image)), ..Self::default() }
    }

    fn room(&self) -> io::Result<()> {
        match self.full.load(Ordering::SeqCst) {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => Ok(()),
        }
    }

    fn record(&self, step: Step) {
        apply(&mut self.now.lock().unwrap(), &step);
        self.steps.lock().unwrap().push(step);
    }
}

fn apply(image: &mut Vec<u8>, step: &Step) {
    match step {
        Step::Write { offset, data } => image[*offset..*offset + data.len()].copy_from_slice(data),
        Step::SetLen(len) => image.resize(*len, 0),
        Step::Sync | Step::Acknowledged(_) => {}
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.now.lock().unwrap().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let offset = offset as usize;
        let now = self.now.lock().unwrap();
        let part = now.get(offset..offset + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(part);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.room()?;
        self.record(Step::SetLen(len as usize));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.record(Step::Sync);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.room()?;
        self.record(Step::Write { offset: offset as usize, data: data.to_vec() });
        Ok(())
    }
}

/// What of the steps since the last sync reaches the disk.
#[derive(Debug, Clone, Copy)]
enum Survives {
    Nothing,
    All,
    /// Some of them, in part: a disk writes sectors in any order.
    Some(u64),
}

const SECTOR: usize = 512;

/// The disk after the power went: `durable` as of the last sync, and some of `unsynced`.
fn after_power_loss(durable: &[u8], unsynced: &[Step], survives: Survives) -> Vec<u8> {
    let mut image = durable.to_vec();
    match survives {
        Survives::Nothing => {}
        Survives::All => unsynced.iter().for_each(|step| apply(&mut image, step)),
        Survives::Some(seed) => {
            let mut random = StdRng::seed_from_u64(seed);
            for step in unsynced {
                match step {
                    // Without it later writes have nowhere to go.
                    Step::SetLen(_) => apply(&mut image, step),
                    Step::Write { offset, data } => {
                        for (index, sector) in data.chunks(SECTOR).enumerate() {
                            if random.random_bool(0.5) {
                                let at = offset + index * SECTOR;
                                image[at..at + sector.len()].copy_from_slice(sector);
                            }
                        }
                    }
                    Step::Sync | Step::Acknowledged(_) => {}
                }
            }
        }
    }
    image
}

type Contents = BTreeMap<String, (Bytes, Revision)>;

/// Bytes that tell which write they are of, from the first to the last.
fn value(revision: Revision) -> Bytes {
    let size = 100 + (revision as usize * 613) % 5000;
    revision.to_le_bytes().iter().copied().cycle().take(size).collect()
}

/// Writes of every kind, alone and together, with compaction in between. Values depend on the
/// revision they will get, so a state is known from its revision.
async fn workload(disk: &Disk) -> Vec<Contents> {
    let options = Options { keep_bytes: 40_000, ..Options::default() };
    let store = RedbStore::open_backend(disk.clone(), options).unwrap();
    // Making a store is another matter: a file gets its name only once it is one.
    disk.record(Step::Acknowledged(1));
    let mut states = vec![Contents::new(), Contents::new()];
    let mut random = StdRng::seed_from_u64(7);
    for round in 0..36 {
        let count = if round % 3 == 0 { 6 } else { 1 };
        let mut state = states.last().unwrap().clone();
        let mut writes = Vec::new();
        for _ in 0..count {
            let revision = states.len() as Revision;
            let key = format!("/pods/{}", random.random_range(0..12));
            let current = state.get(&key).map(|(_, at)| *at);
            let delete = current.is_some() && random.random_bool(0.3);
            if delete {
                state.remove(&key);
            } else {
                state.insert(key.clone(), (value(revision), revision));
            }
            states.push(state.clone());
            writes.push((key, current, delete, revision));
        }
        let sent = writes.into_iter().map(|(key, current, delete, revision)| {
            let store = &store;
            async move {
                let written = match (current, delete) {
                    (None, _) => store.create(&key, value(revision)).await,
                    (Some(current), true) => store.delete(&key, current).await,
                    (Some(current), false) => store.update(&key, value(revision), current).await,
                };
                assert_eq!(written, Ok(revision));
                disk.record(Step::Acknowledged(revision));
            }
        });
        // Polled in order, so that they reach the queue in order.
        tokio::task::unconstrained(futures::future::join_all(sent)).await;
        if round % 10 == 9 {
            store.compact(states.len() as Revision - 5).await.unwrap();
        }
    }
    states
}

/// Opens what is left and holds it against what was acknowledged.
async fn check(image: Vec<u8>, acknowledged: Revision, states: &[Contents]) {
    let disk = Disk::holding(image);
    let store = RedbStore::open_backend(disk, Options::default()).unwrap();
    let revision = store.revision().await.unwrap();
    assert!(revision >= acknowledged, "{acknowledged} was acknowledged, and {revision} is there");
    let holds = |revision: Revision, page: &sampan_store::Page| {
        let found: Contents = page.entries.iter().map(|e| (e.key.to_string(), (e.value.clone(), e.revision))).collect();
        assert!(found == states[revision as usize], "torn at revision {revision}");
    };
    holds(revision, &store.list(Range::default(), None, 0).await.unwrap());
    // History is whole, too: every state since the compaction, and the events between them.
    let oldest = store.stats().compacted.max(1);
    for at in oldest..revision {
        holds(at, &store.list(Range::default(), Some(at), 0).await.unwrap());
    }
    let mut state = states[oldest as usize].clone();
    let mut at = oldest;
    let mut watch = store.watch("", oldest).unwrap();
    while at < revision {
        for event in watch.next().await.unwrap().unwrap().iter() {
            assert_eq!(event.revision, at + 1);
            at = event.revision;
            match event.change {
                Change::Deleted => state.remove(&*event.key),
                _ => state.insert(event.key.to_string(), (event.value.clone(), at)),
            };
            assert!(state == states[at as usize], "event {at}");
        }
    }
    // And it can be written.
    let next = store.create("/after", Bytes::from_static(b"power")).await.unwrap();
    assert_eq!(next, revision + 1);
}

async fn lose_power(survives: impl Fn(usize) -> Survives) {
    let disk = Disk::default();
    let states = workload(&disk).await;
    let steps = std::mem::take(&mut *disk.steps.lock().unwrap());
    let mut durable = Vec::new();
    let mut unsynced = Vec::new();
    let mut acknowledged = 0;
    let mut points = 0;
    for (index, step) in steps.into_iter().enumerate() {
        match step {
            Step::Acknowledged(revision) => acknowledged = acknowledged.max(revision),
            Step::Sync => {
                unsynced.iter().for_each(|step| apply(&mut durable, step));
                unsynced.clear();
            }
            step => unsynced.push(step),
        }
        if acknowledged == 0 {
            continue;
        }
        points += 1;
        check(after_power_loss(&durable, &unsynced, survives(index)), acknowledged, &states).await;
    }
    assert_eq!(acknowledged as usize, states.len() - 1);
    assert!(points > 300, "{points}");
}

#[tokio::test]
async fn power_loss_that_keeps_nothing_unsynced() {
    lose_power(|_| Survives::Nothing).await;
}

#[tokio::test]
async fn power_loss_that_keeps_everything_unsynced() {
    lose_power(|_| Survives::All).await;
}

#[tokio::test]
async fn power_loss_that_keeps_some_sectors() {
    lose_power(|index| Survives::Some(index as u64)).await;
}

/// The test must be able to fail: a disk that forgets what it said it synced loses writes.
#[tokio::test]
async fn a_missing_fsync_would_be_seen() {
    let disk = Disk::default();
    let states = workload(&disk).await;
    let steps = std::mem::take(&mut *disk.steps.lock().unwrap());
    // Everything up to the middle is synced, nothing later is.
    let middle = steps.iter().position(|s| matches!(s, Step::Acknowledged(20))).unwrap();
    let mut durable = Vec::new();
    steps[..middle].iter().for_each(|step| apply(&mut durable, step));
    let lost = tokio::spawn(async move {
        check(durable, states.len() as Revision - 1, &states).await;
    });
    assert!(lost.await.is_err());
}

/// A disk without room fails the write and everything after it, and costs nothing written before.
#[tokio::test]
async fn a_full_disk_stops_the_store_and_loses_nothing() {
    let disk = Disk::default();
    let store = RedbStore::open_backend(disk.clone(), Options::default()).unwrap();
    let mut watch = store.watch("", 1).unwrap();
    for index in 0..20 {
        store.create(&format!("/{index}"), value(index)).await.unwrap();
    }
    disk.full.store(true, Ordering::SeqCst);
    let writes = (20..30).map(|index| {
        let (store, key) = (&store, format!("/{index}"));
        async move { store.create(&key, value(index)).await }
    });
    for answer in futures::future::join_all(writes).await {
        let error = answer.unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error:?}");
        assert!(error.to_string().contains("free some space"), "{error}");
    }
    assert!(matches!(store.get("/1").await, Err(Error::Io { .. })));
    assert!(matches!(store.compact(3).await, Err(Error::Io { .. })));
    // The watch says so once it has been told what was written.
    for revision in 2..22 {
        assert_eq!(watch.next().await.unwrap().unwrap()[0].revision, revision);
    }
    assert!(matches!(watch.next().await, Some(Err(Error::Io { .. }))));
    assert_eq!(watch.next().await, None);
    drop(store);

    disk.full.store(false, Ordering::SeqCst);
    let store = RedbStore::open_backend(disk, Options::default()).unwrap();
    assert_eq!(store.revision().await, Ok(21));
    assert_eq!(store.list(Range::default(), None, 0).await.unwrap().entries.len(), 20);
    assert_eq!(store.create("/20", value(20)).await, Ok(22));
}
