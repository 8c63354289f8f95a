//! Events: what a user reads under `kubectl describe`. The same event again counts up instead of
//! filling the store.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, Resource, ResourceExt};
use serde_json::json;
use tokio::sync::mpsc;

/// The two types an event can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    Normal,
    Warning,
}

impl EventKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// How many events are remembered for counting up.
const REMEMBERED: usize = 4096;
/// How many may wait to be written; more are dropped, never waited for.
const QUEUE: usize = 4096;

/// Writes events in the background: telling never holds up doing.
#[derive(Clone)]
pub struct EventRecorder {
    queue: mpsc::Sender<Note>,
    source: Arc<EventSource>,
}

struct Note {
    object: ObjectReference,
    kind: EventKind,
    reason: String,
    message: String,
    source: Arc<EventSource>,
}

impl EventRecorder {
    /// `component` as in `kubelet` or `default-scheduler`; `host` is the node, where there is one.
    pub fn new(client: Client, component: &str, host: Option<&str>) -> Self {
        let (queue, notes) = mpsc::channel(QUEUE);
        tokio::spawn(write(client, notes));
        let source =
            EventSource { component: Some(component.to_owned()), host: host.map(str::to_owned) };
        Self { queue, source: Arc::new(source) }
    }

    /// Tells that `reason` (one CamelCase word) happened to `object`.
    pub fn record<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        kind: EventKind,
        reason: &str,
        message: impl Into<String>,
    ) {
        let mut reference = object.object_ref(&());
        reference.namespace = object.namespace();
        self.record_reference(reference, kind, reason, message);
    }

    /// As [`Self::record`], for a part of an object (`fieldPath` set) or one known by reference only.
    pub fn record_reference(
        &self,
        object: ObjectReference,
        kind: EventKind,
        reason: &str,
        message: impl Into<String>,
    ) {
        let note = Note {
            object,
            kind,
            reason: reason.to_owned(),
            message: message.into(),
            source: self.source.clone(),
        };
        if self.queue.try_send(note).is_err() {
            tracing::debug!(reason, "event dropped: the queue is full or the recorder ended");
        }
    }
}

/// What makes two events the same.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Identity {
    object: (Option<String>, Option<String>, Option<String>, Option<String>, Option<String>),
    kind: EventKind,
    reason: String,
    message: String,
}

#[derive(Default)]
struct Remembered {
    written: HashMap<Identity, (String, i32)>,
    order: VecDeque<Identity>,
}

impl Remembered {
    fn insert(&mut self, identity: Identity, name: String, count: i32) {
        if self.written.insert(identity.clone(), (name, count)).is_none() {
            self.order.push_back(identity);
        }
        while self.order.len() > REMEMBERED {
            if let Some(oldest) = self.order.pop_front() {
                self.written.remove(&oldest);
            }
        }
    }
}

async fn write(client: Client, mut notes: mpsc::Receiver<Note>) {
    let remembered = Mutex::new(Remembered::default());
    while let Some(note) = notes.recv().await {
        if let Err(error) = write_one(&client, &remembered, note).await {
            tracing::debug!(%error, "event not written");
        }
    }
}

async fn write_one(client: &Client, remembered: &Mutex<Remembered>, note: Note) -> kube::Result<()> {
    // Events of cluster-scoped objects live in `default`.
    let namespace = note.object.namespace.clone().unwrap_or_else(|| "default".to_owned());
    let events: Api<Event> = Api::namespaced(client.clone(), &namespace);
    let object = &note.object;
    let identity = Identity {
        object: (
            object.kind.clone(),
            object.namespace.clone(),
            object.name.clone(),
            object.uid.clone(),
            object.field_path.clone(),
        ),
        kind: note.kind,
        reason: note.reason.clone(),
        message: note.message.clone(),
    };
    let now = Timestamp::now();
    let known = {
        let remembered = remembered.lock().unwrap_or_else(PoisonError::into_inner);
        remembered.written.get(&identity).cloned()
    };
    if let Some((name, count)) = known {
        let patch = json!({ "count": count + 1, "lastTimestamp": Time(now) });
        match events.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(_) => {
                let mut remembered = remembered.lock().unwrap_or_else(PoisonError::into_inner);
                remembered.insert(identity, name, count + 1);
                return Ok(());
            }
            // Expired meanwhile: a new one.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    let suffix: String = uuid::Uuid::new_v4().simple().to_string().chars().take(16).collect();
    let name = format!("{}.{suffix}", object.name.as_deref().unwrap_or("unknown"));
    let event = Event {
        metadata: ObjectMeta { name: Some(name.clone()), namespace: Some(namespace), ..Default::default() },
        involved_object: note.object,
        type_: Some(note.kind.as_str().to_owned()),
        reason: Some(note.reason),
        message: Some(note.message),
        reporting_component: note.source.component.clone(),
        reporting_instance: note.source.host.clone(),
        source: Some((*note.source).clone()),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(1),
        ..Default::default()
    };
    events.create(&PostParams::default(), &event).await?;
    let mut remembered = remembered.lock().unwrap_or_else(PoisonError::into_inner);
    remembered.insert(identity, name, 1);
    Ok(())
}
