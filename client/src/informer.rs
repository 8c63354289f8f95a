//! Shared caches: one watch a kind and process, however many read it.

use std::any::{Any, TypeId};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use futures::StreamExt;
use kube::api::Api;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::unmanaged::Unmanaged;

/// What an informer can hold.
pub trait Object: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static {}

impl<K> Object for K where K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static {}

/// A change of one object, as a subscriber sees it.
#[derive(Debug)]
pub enum Change<K> {
    Added(Arc<K>),
    Updated { old: Arc<K>, new: Arc<K> },
    Deleted(Arc<K>),
}

impl<K> Clone for Change<K> {
    fn clone(&self) -> Self {
        match self {
            Self::Added(object) => Self::Added(object.clone()),
            Self::Updated { old, new } => Self::Updated { old: old.clone(), new: new.clone() },
            Self::Deleted(object) => Self::Deleted(object.clone()),
        }
    }
}

impl<K> Change<K> {
    /// The object as it is now, or was last.
    pub fn object(&self) -> &Arc<K> {
        match self {
            Self::Added(object) | Self::Updated { new: object, .. } | Self::Deleted(object) => object,
        }
    }
}

/// How long [`Informer::reached`] waits for a watch that does not deliver.
const PATIENCE: Duration = Duration::from_secs(60);

/// Changes in order, beginning with an `Added` for all that was there. Ends with the process.
pub type Subscription<K> = mpsc::UnboundedReceiver<Change<K>>;

/// The shared caches of a process; each starts with its first use.
#[derive(Clone)]
pub struct Informers {
    /// Who uses them.
    client: Client,
    inner: Arc<Inner>,
}

struct Inner {
    /// Of the watches.
    client: Client,
    shutdown: CancellationToken,
    running: Mutex<HashMap<(TypeId, String), Arc<dyn Any + Send + Sync>>>,
    /// Each a [`Trim`] of the type it is under.
    trims: Mutex<HashMap<TypeId, Box<dyn Any + Send + Sync>>>,
}

/// Takes away what no reader of a cache looks at.
type Trim<K> = fn(&mut K);

impl Informers {
    pub fn new(client: Client, shutdown: CancellationToken) -> Self {
        let inner = Inner { client: client.clone(), shutdown, running: Mutex::default(), trims: Mutex::default() };
        Self { client, inner: Arc::new(inner) }
    }

    /// Holds of a kind no more than `trim` leaves; for caches that nobody has asked for yet.
    pub fn trimmed<K: Object>(self, trim: fn(&mut K)) -> Self {
        let mut trims = self.inner.trims.lock().unwrap_or_else(PoisonError::into_inner);
        trims.insert(TypeId::of::<K>(), Box::new(trim as Trim<K>));
        drop(trims);
        self
    }

    fn trim<K: Object>(&self) -> Trim<K> {
        let trims = self.inner.trims.lock().unwrap_or_else(PoisonError::into_inner);
        trims.get(&TypeId::of::<K>()).and_then(|trim| trim.downcast_ref().copied()).unwrap_or(|_| ())
    }

    /// The same caches for somebody who asks and writes under another name: a kind that two parts of a
    /// process read is decoded and held once.
    pub fn shared_with(&self, client: Client) -> Self {
        Self { client, inner: self.inner.clone() }
    }

    /// Of the user of these caches.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The cache of all objects of a kind.
    pub fn all<K: Object>(&self) -> Informer<K> {
        self.selected("")
    }

    /// The cache of the objects that a field selector picks (`spec.nodeName=a`); empty: all.
    pub fn selected<K: Object>(&self, fields: &str) -> Informer<K> {
        let mut running = self.inner.running.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = running.entry((TypeId::of::<K>(), fields.to_owned())).or_insert_with(|| {
            let informer: Informer<K> = Informer { cache: Arc::new(Cache::new(self.trim())) };
            let task = informer.clone();
            let api = Api::all(self.inner.client.clone());
            let shutdown = self.inner.shutdown.clone();
            // What is there comes as the first events: decoded one by one as they arrive, not a page at a time.
            let mut config = watcher::Config::default().streaming_lists();
            if !fields.is_empty() {
                config = config.fields(fields);
            }
            tokio::spawn(async move {
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = task.follow(api, config) => {}
                }
            });
            Arc::new(informer)
        });
        // The key holds the type, so the cast holds.
        slot.clone().downcast::<Informer<K>>().map_or_else(|_| unreachable!("keyed by type"), |it| (*it).clone())
    }
}

/// Namespace (empty for cluster-scoped kinds) and name.
type Key = (String, String);

fn key<K: ResourceExt>(object: &K) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

struct Cache<K> {
    state: RwLock<State<K>>,
    synced: watch::Sender<bool>,
    /// The newest resourceVersion up to which the cache is complete.
    revision: watch::Sender<u64>,
    trim: Trim<K>,
}

struct State<K> {
    objects: BTreeMap<Key, Arc<K>>,
    indexes: Vec<Buckets<K>>,
    subscribers: Vec<mpsc::UnboundedSender<Change<K>>>,
}

/// The objects by what a function says of them.
struct Buckets<K> {
    name: &'static str,
    keys: fn(&K) -> Vec<String>,
    buckets: HashMap<String, BTreeMap<Key, Arc<K>>>,
}

impl<K: ResourceExt> Buckets<K> {
    fn insert(&mut self, object: &Arc<K>) {
        for bucket in (self.keys)(object) {
            self.buckets.entry(bucket).or_default().insert(key(&**object), object.clone());
        }
    }

    fn remove(&mut self, object: &K) {
        let key = key(object);
        for name in (self.keys)(object) {
            if let Some(bucket) = self.buckets.get_mut(&name) {
                bucket.remove(&key);
                if bucket.is_empty() {
                    self.buckets.remove(&name);
                }
            }
        }
    }
}

impl<K> Cache<K> {
    fn new(trim: Trim<K>) -> Self {
        Self {
            state: RwLock::new(State { objects: BTreeMap::new(), indexes: Vec::new(), subscribers: Vec::new() }),
            synced: watch::Sender::new(false),
            revision: watch::Sender::new(0),
            trim,
        }
    }
}

/// A cache of one kind, kept by one watch.
pub struct Informer<K> {
    cache: Arc<Cache<K>>,
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Self { cache: self.cache.clone() }
    }
}

impl<K> Informer<K> {
    /// Waits until the first list is in the cache.
    pub async fn synced(&self) {
        // The sender lives in the cache that `self` holds: no error.
        let _ = self.cache.synced.subscribe().wait_for(|synced| *synced).await;
    }

    /// `namespace` is empty for cluster-scoped kinds.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.read(|state| state.objects.get(&(namespace.to_owned(), name.to_owned())).cloned())
    }

    /// All objects, ordered by namespace and name.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.read(|state| state.objects.values().cloned().collect())
    }

    pub fn list_in(&self, namespace: &str) -> Vec<Arc<K>> {
        self.read(|state| {
            state
                .objects
                .range((namespace.to_owned(), String::new())..)
                .take_while(|((of, _), _)| of == namespace)
                .map(|(_, object)| object.clone())
                .collect()
        })
    }

    /// Waits until the cache holds what a write returned: one's own write is then never missed.
    /// False when the watch did not deliver it in time. For caches of all objects of a kind only:
    /// a selected one may never see it.
    pub async fn reached(&self, resource_version: &str) -> bool {
        let Ok(wanted) = resource_version.parse::<u64>() else { return true };
        let mut revision = self.cache.revision.subscribe();
        let reached = revision.wait_for(|revision| *revision >= wanted);
        tokio::time::timeout(PATIENCE, reached).await.is_ok()
    }

    pub fn len(&self) -> usize {
        self.read(|state| state.objects.len())
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Everything that is there as `Added`, then each change.
    pub fn subscribe(&self) -> Subscription<K> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut state = self.cache.state.write().unwrap_or_else(PoisonError::into_inner);
        for object in state.objects.values() {
            let _ = sender.send(Change::Added(object.clone()));
        }
        state.subscribers.push(sender);
        receiver
    }

    fn read<T>(&self, read: impl FnOnce(&State<K>) -> T) -> T {
        read(&self.cache.state.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The objects of a cache by one more key than their name.
pub struct Index<K> {
    cache: Arc<Cache<K>>,
    slot: usize,
}

impl<K> Clone for Index<K> {
    fn clone(&self) -> Self {
        Self { cache: self.cache.clone(), slot: self.slot }
    }
}

impl<K> Index<K> {
    /// The objects under `bucket`, ordered by namespace and name.
    pub fn get(&self, bucket: &str) -> Vec<Arc<K>> {
        let state = self.cache.state.read().unwrap_or_else(PoisonError::into_inner);
        let bucket = state.indexes.get(self.slot).and_then(|index| index.buckets.get(bucket));
        bucket.map(|objects| objects.values().cloned().collect()).unwrap_or_default()
    }

    /// How many objects there are under `bucket`.
    pub fn count(&self, bucket: &str) -> usize {
        let state = self.cache.state.read().unwrap_or_else(PoisonError::into_inner);
        let bucket = state.indexes.get(self.slot).and_then(|index| index.buckets.get(bucket));
        bucket.map_or(0, BTreeMap::len)
    }
}

impl<K: Object> Informer<K> {
    /// An index of the cache: `keys` says under which buckets an object is found. Asked for twice
    /// by one name it is the same one.
    pub fn index(&self, name: &'static str, keys: fn(&K) -> Vec<String>) -> Index<K> {
        let mut state = self.cache.state.write().unwrap_or_else(PoisonError::into_inner);
        let slot = state.indexes.iter().position(|index| index.name == name).unwrap_or_else(|| {
            let mut index = Buckets { name, keys, buckets: HashMap::new() };
            state.objects.values().for_each(|object| index.insert(object));
            state.indexes.push(index);
            state.indexes.len() - 1
        });
        Index { cache: self.cache.clone(), slot }
    }

    async fn follow(self, api: Api<Unmanaged<K>>, config: watcher::Config) {
        let mut events = std::pin::pin!(watcher(api, config).default_backoff());
        let mut relisted = HashSet::new();
        let mut newest = 0;
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init) => relisted.clear(),
                // What is there comes in the order of names: it counts as seen at its end.
                Ok(watcher::Event::InitApply(Unmanaged(object))) => {
                    newest = newest.max(revision(&object));
                    relisted.insert(key(&object));
                    self.apply(object);
                }
                Ok(watcher::Event::InitDone) => {
                    self.retain(&relisted);
                    relisted.clear();
                    self.advance(newest);
                    self.cache.synced.send_replace(true);
                }
                Ok(watcher::Event::Apply(Unmanaged(object))) => {
                    let revision = revision(&object);
                    self.apply(object);
                    self.advance(revision);
                }
                Ok(watcher::Event::Delete(Unmanaged(object))) => {
                    self.remove(&key(&object));
                    self.advance(revision(&object));
                }
                Err(error) => {
                    tracing::warn!(kind = %K::kind(&()), %error, "watch failed; trying again");
                }
            }
        }
    }

    fn advance(&self, to: u64) {
        self.cache.revision.send_if_modified(|revision| {
            let newer = to > *revision;
            *revision = to.max(*revision);
            newer
        });
    }

    fn apply(&self, mut object: K) {
        (self.cache.trim)(&mut object);
        let new = Arc::new(object);
        let mut state = self.cache.state.write().unwrap_or_else(PoisonError::into_inner);
        let change = match state.objects.insert(key(&*new), new.clone()) {
            Some(old) if old.meta().resource_version == new.meta().resource_version => return,
            // Deleted and made again while nobody looked.
            Some(old) if old.meta().uid != new.meta().uid => {
                state.publish(&Change::Deleted(old));
                Change::Added(new)
            }
            Some(old) => Change::Updated { old, new },
            None => Change::Added(new),
        };
        state.publish(&change);
    }

    fn remove(&self, key: &Key) {
        let mut state = self.cache.state.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = state.objects.remove(key) {
            state.publish(&Change::Deleted(old));
        }
    }

    fn retain(&self, listed: &HashSet<Key>) {
        let gone: Vec<Key> =
            self.read(|state| state.objects.keys().filter(|key| !listed.contains(*key)).cloned().collect());
        for key in gone {
            self.remove(&key);
        }
    }
}

/// The resourceVersion; 0 where it is none that can be compared.
fn revision<K: ResourceExt>(object: &K) -> u64 {
    object.meta().resource_version.as_deref().and_then(|it| it.parse().ok()).unwrap_or_default()
}

impl<K: ResourceExt> State<K> {
    fn publish(&mut self, change: &Change<K>) {
        for index in &mut self.indexes {
            match change {
                Change::Added(new) => index.insert(new),
                Change::Updated { old, new } => {
                    index.remove(old);
                    index.insert(new);
                }
                Change::Deleted(old) => index.remove(old),
            }
        }
        self.subscribers.retain(|subscriber| subscriber.send(change.clone()).is_ok());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::api::core::v1::ConfigMap;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    fn object(name: &str, colour: &str, revision: u64) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some("n".to_owned()),
                uid: Some(name.to_owned()),
                resource_version: Some(revision.to_string()),
                labels: Some(BTreeMap::from([("colour".to_owned(), colour.to_owned())])),
                ..Default::default()
            },
            ..Default::default()
        }
    }

    fn informer() -> Informer<ConfigMap> {
        Informer { cache: Arc::new(Cache::new(|_| ())) }
    }

    fn names(objects: Vec<Arc<ConfigMap>>) -> Vec<String> {
        objects.iter().map(|object| object.name_any()).collect()
    }

    #[test]
    fn an_index_follows_the_cache() {
        let informer = informer();
        informer.apply(object("a", "red", 1));
        let colours = informer.index("colour", |object| object.labels().values().cloned().collect());
        informer.apply(object("b", "red", 2));
        informer.apply(object("c", "blue", 3));
        assert_eq!(names(colours.get("red")), ["a", "b"]);
        informer.apply(object("a", "blue", 4));
        assert_eq!(names(colours.get("red")), ["b"]);
        assert_eq!(names(colours.get("blue")), ["a", "c"]);
        informer.remove(&("n".to_owned(), "b".to_owned()));
        assert!(colours.get("red").is_empty());
        let again = informer.index("colour", |_| Vec::new());
        assert_eq!(names(again.get("blue")), ["a", "c"]);
    }

    #[test]
    fn what_is_trimmed_is_not_held() {
        let informer = Informer { cache: Arc::new(Cache::new(|object: &mut ConfigMap| object.data = None)) };
        let data = Some(BTreeMap::from([("a".to_owned(), "b".to_owned())]));
        informer.apply(ConfigMap { data, ..object("a", "red", 1) });
        let held = informer.get("n", "a");
        assert!(held.is_some_and(|held| held.data.is_none() && held.labels().contains_key("colour")));
    }

    #[test]
    fn subscribers_see_what_was_there_and_each_change_once() {
        let informer = informer();
        informer.apply(object("a", "red", 1));
        let mut changes = informer.subscribe();
        informer.apply(object("a", "red", 1));
        informer.apply(object("a", "blue", 2));
        let mut other = object("a", "blue", 3);
        other.metadata.uid = Some("another".to_owned());
        informer.apply(other);
        let mut seen = Vec::new();
        while let Ok(change) = changes.try_recv() {
            let kind = match &change {
                Change::Added(_) => "added",
                Change::Updated { .. } => "updated",
                Change::Deleted(_) => "deleted",
            };
            seen.push((kind, change.object().metadata.resource_version.clone().unwrap_or_default()));
        }
        let expected = [("added", "1"), ("updated", "2"), ("deleted", "2"), ("added", "3")];
        assert_eq!(seen, expected.map(|(kind, version)| (kind, version.to_owned())));
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_is_waited_for() {
        let informer = informer();
        let waiting = tokio::spawn({
            let informer = informer.clone();
            async move { informer.reached("7").await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        informer.advance(9);
        assert!(waiting.await.is_ok_and(|reached| reached));
        assert!(!informer.reached("10").await, "gives up after a while");
    }
}
