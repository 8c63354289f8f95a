//! The ConfigMaps and Secrets that pods of this node use: each is watched once, by name, for as
//! long as a pod here refers to it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Client;
use kube::api::Api;
use kube::runtime::{WatchStreamExt, watcher};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    ConfigMap,
    Secret,
}

impl Kind {
    /// As messages name the resource.
    pub fn resource(self) -> &'static str {
        match self {
            Self::ConfigMap => "configmap",
            Self::Secret => "secret",
        }
    }

    pub fn title(self) -> &'static str {
        match self {
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
        }
    }
}

/// What pods use of a ConfigMap or Secret.
#[derive(Debug, Default, PartialEq)]
pub struct Data {
    /// `data`.
    pub data: BTreeMap<String, Vec<u8>>,
    /// `binaryData`: for files only.
    pub binary: BTreeMap<String, Vec<u8>>,
}

impl Data {
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        self.data.get(key).or_else(|| self.binary.get(key)).map(Vec::as_slice)
    }

    pub fn files(&self) -> impl Iterator<Item = (&String, &Vec<u8>)> {
        self.data.iter().chain(&self.binary)
    }
}

impl From<ConfigMap> for Data {
    fn from(object: ConfigMap) -> Self {
        let data = object.data.unwrap_or_default();
        let binary = object.binary_data.unwrap_or_default();
        Self {
            data: data.into_iter().map(|(key, value)| (key, value.into_bytes())).collect(),
            binary: binary.into_iter().map(|(key, value)| (key, value.0)).collect(),
        }
    }
}

impl From<Secret> for Data {
    fn from(object: Secret) -> Self {
        let data = object.data.unwrap_or_default();
        Self { data: data.into_iter().map(|(key, value)| (key, value.0)).collect(), binary: BTreeMap::new() }
    }
}

/// Kind, namespace and name.
type Key = (Kind, String, String);

#[derive(Clone, Debug)]
enum Known {
    NotYet,
    Absent,
    Present(Arc<Data>),
    Failed(String),
}

struct Entry {
    state: watch::Sender<Known>,
    users: Mutex<HashSet<String>>,
    /// Ends the watch.
    _watch: DropGuard,
}

/// Where pods' objects come from.
pub struct Objects {
    client: Client,
    entries: Mutex<HashMap<Key, Arc<Entry>>>,
    /// Uids of pods whose objects changed.
    changed: mpsc::UnboundedSender<Vec<String>>,
}

const PATIENCE: Duration = Duration::from_secs(10);

impl Objects {
    /// The receiver hears which pods use an object that changed.
    pub fn new(client: Client) -> (Arc<Self>, mpsc::UnboundedReceiver<Vec<String>>) {
        let (changed, receiver) = mpsc::unbounded_channel();
        (Arc::new(Self { client, entries: Mutex::default(), changed }), receiver)
    }

    /// The object as it is now, for a pod that hears of its changes until it is released.
    pub async fn get(
        &self,
        pod_uid: &str,
        kind: Kind,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Data>>, String> {
        let entry = self.entry((kind, namespace.to_owned(), name.to_owned()));
        entry.users.lock().unwrap_or_else(PoisonError::into_inner).insert(pod_uid.to_owned());
        let mut state = entry.state.subscribe();
        let ready = state.wait_for(|known| !matches!(known, Known::NotYet));
        let known = match tokio::time::timeout(PATIENCE, ready).await {
            Ok(Ok(known)) => known.clone(),
            _ => Known::NotYet,
        };
        match known {
            Known::Present(data) => Ok(Some(data)),
            Known::Absent => Ok(None),
            Known::Failed(error) => Err(error),
            Known::NotYet => {
                Err(format!("failed to sync {} cache: timed out waiting for the condition", kind.resource()))
            }
        }
    }

    /// A pod is gone: what nobody else uses is no longer watched.
    pub fn release(&self, pod_uid: &str) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|_, entry| {
            let mut users = entry.users.lock().unwrap_or_else(PoisonError::into_inner);
            users.remove(pod_uid);
            !users.is_empty()
        });
    }

    fn entry(&self, key: Key) -> Arc<Entry> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries
            .entry(key)
            .or_insert_with_key(|(kind, namespace, name)| {
                let stop = CancellationToken::new();
                let entry = Arc::new(Entry {
                    state: watch::Sender::new(Known::NotYet),
                    users: Mutex::default(),
                    _watch: stop.clone().drop_guard(),
                });
                // The task must not keep alive the guard that ends it.
                let weak = Arc::downgrade(&entry);
                let changed = self.changed.clone();
                let tell = move |known: Known| {
                    let Some(entry) = weak.upgrade() else { return };
                    let mut different = false;
                    entry.state.send_modify(|state| {
                        let first = matches!(state, Known::NotYet);
                        let same = match (&*state, &known) {
                            (Known::Present(old), Known::Present(new)) => old == new,
                            (Known::Absent, Known::Absent) => true,
                            // What is known stays good while the watch is being made anew.
                            (Known::Present(_) | Known::Absent, Known::Failed(_)) => return,
                            _ => false,
                        };
                        different = !same && !first;
                        *state = known;
                    });
                    if different {
                        let users = entry.users.lock().unwrap_or_else(PoisonError::into_inner);
                        let _ = changed.send(users.iter().cloned().collect());
                    }
                };
                let client = self.client.clone();
                match kind {
                    Kind::ConfigMap => {
                        follow::<ConfigMap>(Api::namespaced(client, namespace), name, stop, tell);
                    }
                    Kind::Secret => follow::<Secret>(Api::namespaced(client, namespace), name, stop, tell),
                }
                entry
            })
            .clone()
    }
}

fn follow<K>(api: Api<K>, name: &str, stop: CancellationToken, tell: impl Fn(Known) + Send + 'static)
where
    K: sampan_client::Object + Into<Data>,
{
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    tokio::spawn(async move {
        let mut events = std::pin::pin!(watcher(api, config).default_backoff());
        let mut listed = None;
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => return,
                event = events.next() => event,
            };
            match event {
                None => return,
                Some(Ok(watcher::Event::Init)) => listed = None,
                Some(Ok(watcher::Event::InitApply(object))) => listed = Some(object),
                Some(Ok(watcher::Event::InitDone)) => {
                    tell(listed.take().map_or(Known::Absent, |object| Known::Present(Arc::new(object.into()))));
                }
                Some(Ok(watcher::Event::Apply(object))) => tell(Known::Present(Arc::new(object.into()))),
                Some(Ok(watcher::Event::Delete(_))) => tell(Known::Absent),
                Some(Err(error)) => tell(Known::Failed(error.to_string())),
            }
        }
    });
}
