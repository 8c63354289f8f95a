//! Shared caches: one watch a kind and process, however many read it.

use std::any::{Any, TypeId};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use futures::StreamExt;
use kube::api::Api;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// What an informer can hold.
pub trait Object:
    Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static
{
}

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

/// Changes in order, beginning with an `Added` for all that was there. Ends with the process.
pub type Subscription<K> = mpsc::UnboundedReceiver<Change<K>>;

/// The shared caches of a process; each starts with its first use.
#[derive(Clone)]
pub struct Informers {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    shutdown: CancellationToken,
    running: Mutex<HashMap<(TypeId, String), Arc<dyn Any + Send + Sync>>>,
}

impl Informers {
    pub fn new(client: Client, shutdown: CancellationToken) -> Self {
        Self { inner: Arc::new(Inner { client, shutdown, running: Mutex::default() }) }
    }

    pub fn client(&self) -> &Client {
        &self.inner.client
    }

    /// The cache of all objects of a kind.
    pub fn all<K: Object>(&self) -> Informer<K> {
        self.selected("")
    }

    /// The cache of the objects that a field selector picks (`spec.nodeName=a`); empty: all.
    pub fn selected<K: Object>(&self, fields: &str) -> Informer<K> {
        let mut running = self.inner.running.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = running.entry((TypeId::of::<K>(), fields.to_owned())).or_insert_with(|| {
            let informer: Informer<K> = Informer { cache: Arc::new(Cache::default()) };
            let task = informer.clone();
            let api = Api::all(self.inner.client.clone());
            let shutdown = self.inner.shutdown.clone();
            let mut config = watcher::Config::default();
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
}

struct State<K> {
    objects: BTreeMap<Key, Arc<K>>,
    subscribers: Vec<mpsc::UnboundedSender<Change<K>>>,
}

impl<K> Default for Cache<K> {
    fn default() -> Self {
        Self {
            state: RwLock::new(State { objects: BTreeMap::new(), subscribers: Vec::new() }),
            synced: watch::Sender::new(false),
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

impl<K: Object> Informer<K> {
    async fn follow(self, api: Api<K>, config: watcher::Config) {
        let mut events = std::pin::pin!(watcher(api, config).default_backoff());
        let mut relisted = HashSet::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init) => relisted.clear(),
                Ok(watcher::Event::InitApply(object)) => {
                    relisted.insert(key(&object));
                    self.apply(object);
                }
                Ok(watcher::Event::InitDone) => {
                    self.retain(&relisted);
                    relisted.clear();
                    self.cache.synced.send_replace(true);
                }
                Ok(watcher::Event::Apply(object)) => self.apply(object),
                Ok(watcher::Event::Delete(object)) => self.remove(&key(&object)),
                Err(error) => {
                    tracing::warn!(kind = %K::kind(&()), %error, "watch failed; trying again");
                }
            }
        }
    }

    fn apply(&self, object: K) {
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

impl<K> State<K> {
    fn publish(&mut self, change: &Change<K>) {
        self.subscribers.retain(|subscriber| subscriber.send(change.clone()).is_ok());
    }
}

