//! Garbage collection: when the disk of the images is nearly full, those that no pod uses go, the
//! least recently used first. What was brought by hand stays: no registry could bring it again. Where
//! pods are about to be evicted for want of room, images go first, however full the thresholds let the
//! disk become.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1 as core;
use sampan_client::{EventKind, Informer};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::Reference;
use crate::pod::shared::Shared;
use crate::pod::spec;

/// How often it is looked, as the kubelet does.
const PERIOD: Duration = Duration::from_secs(300);
/// How often it is looked what has come since.
const DETECT: Duration = Duration::from_secs(60);
/// An image that came a moment ago has a pod that is about to use it.
const MIN_AGE: SignedDuration = SignedDuration::from_mins(2);

/// In percent of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// So full, and images are removed; 100: never, unless pods were to go otherwise.
    pub high: u8,
    /// Until it is as full as this.
    pub low: u8,
}

/// The kubelet's.
impl Default for Thresholds {
    fn default() -> Self {
        Self { high: 85, low: 80 }
    }
}

/// Bytes.
#[derive(Clone, Copy, Debug)]
pub struct Disk {
    pub capacity: u64,
    pub available: u64,
}

impl Disk {
    fn of(path: &Path) -> std::io::Result<Self> {
        let stat = rustix::fs::statvfs(path)?;
        Ok(Self { capacity: stat.f_blocks * stat.f_frsize, available: stat.f_bavail * stat.f_frsize })
    }

    /// What is too much by the thresholds.
    fn excess(self, thresholds: Thresholds) -> Option<u64> {
        let percent = |part: u64| u64::try_from(u128::from(part) * 100 / u128::from(self.capacity.max(1)));
        let used = 100 - percent(self.available.min(self.capacity)).unwrap_or(100);
        let wanted = u128::from(self.capacity) * u128::from(100 - thresholds.low.min(100)) / 100;
        let wanted = u64::try_from(wanted).unwrap_or(u64::MAX);
        let full = thresholds.high < 100 && used >= u64::from(thresholds.high);
        full.then(|| wanted.saturating_sub(self.available))
    }
}

/// One image, whatever its names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub id: String,
    pub size: u64,
    pub in_use: bool,
    /// Not to be removed at all.
    pub kept: bool,
}

struct Record {
    detected: Timestamp,
    used: Option<Timestamp>,
}

#[derive(Default)]
struct Records(HashMap<String, Record>);

impl Records {
    fn note(&mut self, images: &[Found], now: Timestamp) {
        self.0.retain(|id, _| images.iter().any(|image| image.id == *id));
        for image in images {
            let record = self.0.entry(image.id.clone()).or_insert(Record { detected: now, used: None });
            if image.in_use {
                record.used = Some(now);
            }
        }
    }

    /// What may go, in its order.
    fn removable<'a>(&self, images: &'a [Found], now: Timestamp) -> Vec<&'a Found> {
        let free = images.iter().filter(|image| !image.in_use && !image.kept).filter_map(|image| {
            let record = self.0.get(&image.id)?;
            (now.duration_since(record.detected) >= MIN_AGE).then_some((record.used, record.detected, image))
        });
        let mut free: Vec<_> = free.collect();
        free.sort_by_key(|(used, detected, _)| (*used, *detected));
        free.into_iter().map(|(_, _, image)| image).collect()
    }

    /// Removes what may go until so much is `wanted` no more.
    async fn relieve(&self, store: &dyn Store, images: &[Found], wanted: u64, now: Timestamp) -> u64 {
        let mut freed = 0;
        for image in self.removable(images, now) {
            if freed >= wanted {
                break;
            }
            match store.remove(&image.id).await {
                Ok(()) => {
                    tracing::info!(image = image.id, bytes = image.size, "image removed for want of space");
                    freed += image.size;
                }
                Err(error) => tracing::warn!(image = image.id, error = format!("{error:#}"), "image stays"),
            }
        }
        freed
    }
}

/// Something that holds images.
#[async_trait]
trait Store: Send + Sync {
    /// Where they lie; none: it holds nothing now.
    async fn dir(&self) -> Option<PathBuf>;
    async fn images(&self) -> Vec<Found>;
    async fn remove(&self, id: &str) -> anyhow::Result<()>;
}

/// What a round came to, in bytes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    wanted: u64,
    freed: u64,
}

/// Bytes that somebody needs at once.
struct Demand {
    bytes: u64,
    freed: oneshot::Sender<u64>,
}

/// Asks the collector for room.
pub struct Collecting(mpsc::Sender<Demand>);

/// What [`Collecting`] asks of [`run`].
pub struct Demands(mpsc::Receiver<Demand>);

pub fn collecting() -> (Collecting, Demands) {
    let (demands, demanded) = mpsc::channel(1);
    (Collecting(demands), Demands(demanded))
}

impl Collecting {
    /// Removes images that no pod uses until so much is freed on the disk of the node's own; the bytes
    /// that it came to.
    pub async fn free(&self, bytes: u64) -> u64 {
        let (freed, answer) = oneshot::channel();
        if self.0.send(Demand { bytes, freed }).await.is_err() {
            return 0;
        }
        answer.await.unwrap_or(0)
    }
}

/// A store, where its images lie, and what they are.
type Held<'a> = (&'a dyn Store, PathBuf, Vec<Found>);

async fn held(stores: &[Box<dyn Store>]) -> Vec<Held<'_>> {
    let mut held = Vec::new();
    for store in stores {
        if let Some(dir) = store.dir().await {
            held.push((store.as_ref(), dir, store.images().await));
        }
    }
    held
}

struct Collector {
    thresholds: Thresholds,
    stores: Vec<Box<dyn Store>>,
    records: Records,
}

impl Collector {
    fn note(records: &mut Records, held: &[Held<'_>], now: Timestamp) {
        let all: Vec<Found> = held.iter().flat_map(|(_, _, images)| images).cloned().collect();
        records.note(&all, now);
    }

    /// Looks what there is: how old images are is known only from then on.
    async fn detect(&mut self, now: Timestamp) {
        let held = held(&self.stores).await;
        Self::note(&mut self.records, &held, now);
    }

    /// Frees so many bytes, if it can, among the images whose directory is `near`.
    async fn free(&mut self, bytes: u64, now: Timestamp, near: impl Fn(&Path) -> bool) -> u64 {
        let held = held(&self.stores).await;
        Self::note(&mut self.records, &held, now);
        let mut freed = 0;
        for (store, dir, images) in &held {
            if near(dir) && freed < bytes {
                freed += self.records.relieve(*store, images, bytes - freed, now).await;
            }
        }
        freed
    }

    async fn round(&mut self, now: Timestamp, disk: impl Fn(&Path) -> std::io::Result<Disk>) -> Vec<Outcome> {
        let held = held(&self.stores).await;
        Self::note(&mut self.records, &held, now);
        let mut outcomes = Vec::new();
        // Stores on the same disk see what the one before has freed.
        for (store, dir, images) in &held {
            let excess = match disk(dir) {
                Ok(disk) => disk.excess(self.thresholds),
                Err(error) => {
                    tracing::warn!(dir = %dir.display(), %error, "the disk of the images cannot be measured");
                    None
                }
            };
            let Some(wanted) = excess else { continue };
            let freed = self.records.relieve(*store, images, wanted, now).await;
            outcomes.push(Outcome { wanted, freed });
        }
        outcomes
    }
}

/// Looks after the images of a node until shutdown.
pub async fn run(
    shared: Arc<Shared>,
    pods: Informer<core::Pod>,
    thresholds: Thresholds,
    mut demands: Demands,
    shutdown: CancellationToken,
) {
    let (wasm, linux) = (Wasm { shared: shared.clone(), pods: pods.clone() }, Linux { shared: shared.clone(), pods });
    let stores: Vec<Box<dyn Store>> = vec![Box::new(wasm), Box::new(linux)];
    let mut collector = Collector { thresholds, stores, records: Records::default() };
    let begin = tokio::time::Instant::now();
    let mut ticks = tokio::time::interval_at(begin + PERIOD, PERIOD);
    let mut looks = tokio::time::interval_at(begin + DETECT, DETECT);
    // What is here at the start did not come a moment ago.
    collector.detect(Timestamp::UNIX_EPOCH).await;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            Some(Demand { bytes, freed }) = demands.0.recv() => {
                let images = shared.paths.images();
                let near = |dir: &Path| is_same_disk(dir, &images);
                let _ = freed.send(collector.free(bytes, Timestamp::now(), near).await);
                continue;
            }
            _ = looks.tick() => {
                collector.detect(Timestamp::now()).await;
                continue;
            }
            _ = ticks.tick() => {}
        }
        let outcomes = collector.round(Timestamp::now(), Disk::of).await;
        let (wanted, freed) =
            outcomes.iter().fold((0, 0), |(wanted, freed), it| (wanted.max(it.wanted), freed + it.freed));
        if freed < wanted {
            let node = core::ObjectReference {
                kind: Some("Node".to_owned()),
                name: Some(shared.node_name.clone()),
                uid: Some(shared.node_name.clone()),
                ..core::ObjectReference::default()
            };
            let message = format!(
                "Failed to garbage collect required amount of images. Attempted to free {wanted} bytes, but only found {freed} bytes eligible to free."
            );
            shared.recorder.record_reference(node, EventKind::Warning, "FreeDiskSpaceFailed", message);
        }
    }
}

fn is_same_disk(one: &Path, other: &Path) -> bool {
    let device = |path: &Path| std::fs::metadata(path).map(|it| std::os::unix::fs::MetadataExt::dev(&it));
    matches!((device(one), device(other)), (Ok(one), Ok(other)) if one == other)
}

/// Whether a pod has a container or a volume whose image, as asked for or as it was told, matches.
fn uses(pod: &core::Pod, matches: impl Fn(&str) -> bool) -> bool {
    let status = pod.status.as_ref();
    let told = status.into_iter().flat_map(|status| {
        [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses]
    });
    let mut told = told.flatten().flatten().map(|container| container.image_id.as_str());
    !spec::is_terminal(pod) && (told.any(&matches) || spec::images(pod).any(|image| matches(&image)))
}

struct Wasm {
    shared: Arc<Shared>,
    pods: Informer<core::Pod>,
}

impl Wasm {
    fn is_used(&self, digest: &str) -> Option<String> {
        let images = &self.shared.images;
        let same = |name: &str| {
            Reference::parse(name).ok().and_then(|it| images.find(&it)).is_some_and(|image| image.digest == digest)
        };
        let pod = self.pods.list().into_iter().find(|pod| uses(pod, same))?;
        Some(spec::title(&pod))
    }
}

#[async_trait]
impl Store for Wasm {
    async fn dir(&self) -> Option<PathBuf> {
        Some(self.shared.paths.images())
    }

    async fn images(&self) -> Vec<Found> {
        let mut found: HashMap<String, Found> = HashMap::new();
        for (_, image) in self.shared.images.list() {
            let by_hand = image.manifest.is_none();
            let entry = found.entry(image.digest.clone()).or_insert_with(|| Found {
                in_use: self.is_used(&image.digest).is_some(),
                id: image.digest,
                size: image.size,
                kept: false,
            });
            entry.kept |= by_hand;
        }
        found.into_values().collect()
    }

    async fn remove(&self, id: &str) -> anyhow::Result<()> {
        let names = self.shared.images.list().into_iter().filter(|(_, image)| image.digest == id);
        for (name, _) in names {
            // Asked again: a pod may have come since.
            self.shared.images.remove(&name, |digest| self.is_used(digest)).await?;
        }
        self.shared.puller.forget(id);
        Ok(())
    }
}

struct Linux {
    shared: Arc<Shared>,
    pods: Informer<core::Pod>,
}

#[async_trait]
impl Store for Linux {
    async fn dir(&self) -> Option<PathBuf> {
        self.shared.oci().images_dir().await
    }

    async fn images(&self) -> Vec<Found> {
        let all = self.shared.oci().held().await;
        let pods = self.pods.list();
        let found = all.into_iter().map(|image| {
            let same = |name: &str| {
                let full = Reference::parse(name).map(|it| it.to_string()).unwrap_or_default();
                image.id == name || image.names.iter().any(|known| *known == full || known == name)
            };
            // Where others bring images too, only what this node has pulled is its own to remove.
            let foreign = self.shared.oci().which.is_given() && !self.shared.puller.knows(&image.id);
            Found {
                in_use: pods.iter().any(|pod| uses(pod, same)),
                kept: image.kept || foreign,
                size: image.size,
                id: image.id,
            }
        });
        found.collect()
    }

    async fn remove(&self, id: &str) -> anyhow::Result<()> {
        self.shared.oci().remove_image(id).await?;
        self.shared.puller.forget(id);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Mutex;

    use super::*;

    /// A disk of 1,000 bytes, and images on it by name: size, in use, kept.
    #[derive(Clone, Default)]
    struct Simulated {
        images: Arc<Mutex<Vec<Found>>>,
        /// What else is on the disk.
        other: u64,
        dir: &'static str,
    }

    impl Simulated {
        fn new(dir: &'static str, images: &[(&str, u64)]) -> Self {
            let found = |(id, size): &(&str, u64)| Found { id: (*id).into(), size: *size, in_use: false, kept: false };
            Self { images: Arc::new(Mutex::new(images.iter().map(found).collect())), other: 0, dir }
        }

        fn set(&self, id: &str, change: impl FnOnce(&mut Found)) {
            change(self.images.lock().unwrap().iter_mut().find(|image| image.id == id).unwrap());
        }

        fn ids(&self) -> Vec<String> {
            self.images.lock().unwrap().iter().map(|image| image.id.clone()).collect()
        }

        fn disk(&self) -> Disk {
            let images: u64 = self.images.lock().unwrap().iter().map(|image| image.size).sum();
            Disk { capacity: 1_000, available: 1_000 - images - self.other }
        }
    }

    #[async_trait]
    impl Store for Simulated {
        async fn dir(&self) -> Option<PathBuf> {
            Some(self.dir.into())
        }

        async fn images(&self) -> Vec<Found> {
            self.images.lock().unwrap().clone()
        }

        async fn remove(&self, id: &str) -> anyhow::Result<()> {
            anyhow::ensure!(id != "stuck", "it cannot be");
            self.images.lock().unwrap().retain(|image| image.id != id);
            Ok(())
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    fn collector(stores: &[&Simulated]) -> Collector {
        let stores = stores.iter().map(|store| Box::new((*store).clone()) as Box<dyn Store>).collect();
        Collector { thresholds: Thresholds::default(), stores, records: Records::default() }
    }

    #[tokio::test]
    async fn the_least_recently_used_go_until_there_is_room() {
        let store = Simulated::new("/a", &[("never", 100), ("long ago", 100), ("lately", 100), ("now", 200)]);
        let store = Simulated { other: 340, ..store };
        let mut collector = collector(&[&store]);
        let disk = |_: &Path| Ok(store.disk());
        for (second, used) in [(0, "long ago"), (300, "lately"), (600, "now")] {
            store.set(used, |image| image.in_use = true);
            // 84 in 100: it does not come to it.
            assert_eq!(collector.round(at(second), disk).await, []);
            store.set(used, |image| image.in_use = used == "now");
        }
        store.images.lock().unwrap().push(Found { id: "new".into(), size: 110, in_use: false, kept: false });
        assert_eq!(collector.round(at(900), disk).await, [Outcome { wanted: 150, freed: 200 }]);
        assert_eq!(store.ids(), ["lately", "now", "new"]);
    }

    #[tokio::test]
    async fn what_is_used_new_or_brought_by_hand_stays() {
        let store = Simulated::new("/a", &[("used", 300), ("by hand", 300), ("stuck", 300)]);
        store.set("used", |image| image.in_use = true);
        store.set("by hand", |image| image.kept = true);
        let mut collector = collector(&[&store]);
        let disk = |_: &Path| Ok(store.disk());
        collector.round(at(0), disk).await;
        assert_eq!(collector.round(at(900), disk).await, [Outcome { wanted: 100, freed: 0 }]);
        store.images.lock().unwrap().push(Found { id: "new".into(), size: 50, in_use: false, kept: false });
        assert_eq!(collector.round(at(960), disk).await, [Outcome { wanted: 150, freed: 0 }]);
        assert_eq!(store.ids().len(), 4);
        assert_eq!(collector.round(at(1100), disk).await, [Outcome { wanted: 150, freed: 50 }]);
        assert_eq!(store.ids(), ["used", "by hand", "stuck"]);
    }

    #[tokio::test]
    async fn two_stores_on_one_disk_free_once() {
        let one = Simulated::new("/a", &[("a", 450)]);
        let other = Simulated::new("/b", &[("b", 450)]);
        let mut collector = collector(&[&one, &other]);
        let disk = |_: &Path| {
            let (one, other) = (one.disk(), other.disk());
            Ok(Disk { capacity: 1_000, available: (one.available + other.available).saturating_sub(1_000) })
        };
        collector.round(at(0), disk).await;
        assert_eq!(collector.round(at(300), disk).await, [Outcome { wanted: 100, freed: 450 }]);
        assert_eq!((one.ids().len(), other.ids().len()), (0, 1));
        let broken = |_: &Path| Err(std::io::Error::other("no disk"));
        assert_eq!(collector.round(at(600), broken).await, []);
    }

    #[tokio::test]
    async fn who_asks_for_room_gets_what_no_pod_uses() {
        let (near, far) = (Simulated::new("/a", &[("used", 10), ("old", 10), ("older", 10)]), "/b");
        let far = Simulated::new(far, &[("far", 10)]);
        near.set("used", |image| image.in_use = true);
        let mut collector = collector(&[&far, &near]);
        near.set("old", |image| image.in_use = true);
        collector.detect(at(0)).await;
        near.set("old", |image| image.in_use = false);
        near.images.lock().unwrap().push(Found { id: "new".into(), size: 10, in_use: false, kept: false });
        let on_a = |dir: &Path| dir == Path::new("/a");
        // The disk is nowhere near the thresholds.
        assert_eq!(collector.free(5, at(200), on_a).await, 10);
        assert_eq!(near.ids(), ["used", "old", "new"]);
        assert_eq!(collector.free(100, at(201), on_a).await, 10, "one is used, one has just come");
        assert_eq!((near.ids(), far.ids()), (vec!["used".into(), "new".into()], vec!["far".into()]));
    }

    #[test]
    fn a_full_disk_and_an_empty_one() {
        let all = Thresholds { high: 0, low: 0 };
        assert_eq!(Disk { capacity: 10, available: 10 }.excess(all), Some(0));
        assert_eq!(Disk { capacity: 10, available: 0 }.excess(all), Some(10));
        assert_eq!(Disk { capacity: 0, available: 0 }.excess(Thresholds::default()), Some(0));
        let never = Thresholds { high: 100, low: 80 };
        assert_eq!(Disk { capacity: u64::MAX, available: 0 }.excess(never), None);
        assert!(Disk { capacity: u64::MAX, available: 0 }.excess(Thresholds::default()).is_some());
    }
}
