//! Events: what a user reads under `kubectl describe`. The same event again counts up instead of
//! filling the store.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Resource, ResourceExt};
use serde_json::json;
use tokio::sync::mpsc;

use crate::clock::Clock;

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

/// How many events, sources and groups are remembered.
const REMEMBERED: usize = 4096;
/// How many may wait to be written; more are dropped, never waited for.
const QUEUE: usize = 4096;
/// How many events one object may have at once, and after how many seconds it may have one more.
const BURST: f64 = 25.0;
const REFILL_SECONDS: f64 = 300.0;
/// So many different messages with one reason within so many seconds become one event.
const SIMILAR: usize = 10;
const SIMILAR_SECONDS: i64 = 600;

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
        Self::with_clock(client, component, host, Clock::system())
    }

    pub fn with_clock(client: Client, component: &str, host: Option<&str>, clock: Clock) -> Self {
        let (queue, notes) = mpsc::channel(QUEUE);
        tokio::spawn(write(client, notes, clock));
        let source = EventSource { component: Some(component.to_owned()), host: host.map(str::to_owned) };
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
    pub fn record_reference(&self, object: ObjectReference, kind: EventKind, reason: &str, message: impl Into<String>) {
        let note =
            Note { object, kind, reason: reason.to_owned(), message: message.into(), source: self.source.clone() };
        if self.queue.try_send(note).is_err() {
            tracing::debug!(reason, "event dropped: the queue is full or the recorder ended");
        }
    }
}

/// The object an event is about, as far as it tells events apart.
type Subject = (Option<String>, Option<String>, Option<String>, Option<String>, Option<String>);

fn subject(object: &ObjectReference) -> Subject {
    let object = object.clone();
    (object.kind, object.namespace, object.name, object.uid, object.field_path)
}

/// What makes two events the same; without a message where several were combined.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Identity {
    subject: Subject,
    kind: EventKind,
    reason: String,
    message: Option<String>,
}

/// A map that forgets its oldest entries.
struct Recent<K, V> {
    entries: HashMap<K, V>,
    order: VecDeque<K>,
}

impl<K: Clone + Eq + Hash, V> Recent<K, V> {
    fn new() -> Self {
        Self { entries: HashMap::new(), order: VecDeque::new() }
    }

    fn get_or(&mut self, key: K, make: impl FnOnce() -> V) -> &mut V {
        if !self.entries.contains_key(&key) {
            self.order.push_back(key.clone());
            if self.order.len() > REMEMBERED
                && let Some(oldest) = self.order.pop_front()
            {
                self.entries.remove(&oldest);
            }
        }
        self.entries.entry(key).or_insert_with(make)
    }
}

struct Bucket {
    tokens: f64,
    filled: Timestamp,
}

struct Group {
    messages: HashSet<String>,
    last: Timestamp,
}

/// Decides which events are written, and which are one and the same.
struct Correlator {
    buckets: Recent<Subject, Bucket>,
    groups: Recent<Identity, Group>,
    /// Name and count of what was written.
    written: Recent<Identity, (String, i32)>,
}

impl Correlator {
    fn new() -> Self {
        Self { buckets: Recent::new(), groups: Recent::new(), written: Recent::new() }
    }

    /// What the event counts as and its text; `None` when its object had too many.
    fn admit(&mut self, note: &Note, now: Timestamp) -> Option<(Identity, String)> {
        let mut identity =
            Identity { subject: subject(&note.object), kind: note.kind, reason: note.reason.clone(), message: None };
        let group = self.groups.get_or(identity.clone(), || Group { messages: HashSet::new(), last: now });
        if now.as_second() - group.last.as_second() > SIMILAR_SECONDS {
            group.messages.clear();
        }
        group.last = now;
        if group.messages.len() < SIMILAR {
            group.messages.insert(note.message.clone());
        }
        let message = if group.messages.len() < SIMILAR {
            identity.message = Some(note.message.clone());
            note.message.clone()
        } else {
            format!("(combined from similar events): {}", note.message)
        };
        let bucket = self.buckets.get_or(identity.subject.clone(), || Bucket { tokens: BURST, filled: now });
        let elapsed = now.duration_since(bucket.filled).as_secs_f64().max(0.0);
        bucket.tokens = (bucket.tokens + elapsed / REFILL_SECONDS).min(BURST);
        bucket.filled = now;
        if bucket.tokens < 1.0 {
            return None;
        }
        bucket.tokens -= 1.0;
        Some((identity, message))
    }
}

async fn write(client: Client, mut notes: mpsc::Receiver<Note>, clock: Clock) {
    let mut correlator = Correlator::new();
    while let Some(note) = notes.recv().await {
        let now = clock.now();
        let Some((identity, message)) = correlator.admit(&note, now) else {
            tracing::debug!(reason = note.reason, "event dropped: its object has too many");
            continue;
        };
        if let Err(error) = write_one(&client, &mut correlator, note, identity, message, now).await {
            tracing::debug!(%error, "event not written");
        }
    }
}

async fn write_one(
    client: &Client,
    correlator: &mut Correlator,
    note: Note,
    identity: Identity,
    message: String,
    now: Timestamp,
) -> kube::Result<()> {
    // Events of cluster-scoped objects live in `default`.
    let namespace = note.object.namespace.clone().unwrap_or_else(|| "default".to_owned());
    let events: Api<Event> = Api::namespaced(client.clone(), &namespace);
    if let Some((name, count)) = correlator.written.entries.get_mut(&identity) {
        let patch = json!({ "count": *count + 1, "lastTimestamp": Time(now), "message": message });
        match events.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(_) => {
                *count += 1;
                return Ok(());
            }
            // Expired meanwhile: a new one.
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    let suffix: String = uuid::Uuid::new_v4().simple().to_string().chars().take(16).collect();
    let name = format!("{}.{suffix}", note.object.name.as_deref().unwrap_or("unknown"));
    let event = Event {
        metadata: ObjectMeta { name: Some(name.clone()), namespace: Some(namespace.clone()), ..Default::default() },
        involved_object: note.object,
        type_: Some(note.kind.as_str().to_owned()),
        reason: Some(note.reason),
        message: Some(message),
        reporting_component: note.source.component.clone(),
        reporting_instance: note.source.host.clone(),
        source: Some((*note.source).clone()),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(1),
        ..Default::default()
    };
    crate::create(client, &namespace, &event).await?;
    *correlator.written.get_or(identity, Default::default) = (name, 1);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(object: &str, message: &str) -> Note {
        Note {
            object: ObjectReference { name: Some(object.to_owned()), ..Default::default() },
            kind: EventKind::Normal,
            reason: "Pulled".to_owned(),
            message: message.to_owned(),
            source: Arc::default(),
        }
    }

    #[test]
    fn the_same_event_has_one_identity() {
        let mut correlator = Correlator::new();
        let now = Timestamp::UNIX_EPOCH;
        let first = correlator.admit(&note("a", "x"), now).map(|it| it.0);
        assert!(first == correlator.admit(&note("a", "x"), now).map(|it| it.0));
        assert!(first != correlator.admit(&note("a", "y"), now).map(|it| it.0));
        assert!(first != correlator.admit(&note("b", "x"), now).map(|it| it.0));
    }

    #[test]
    fn similar_events_are_combined() {
        let mut correlator = Correlator::new();
        let now = Timestamp::UNIX_EPOCH;
        let texts: Vec<String> = (0..12)
            .filter_map(|n| correlator.admit(&note("a", &n.to_string()), now))
            .map(|(_, message)| message)
            .collect();
        assert_eq!(texts.first().map(String::as_str), Some("0"));
        assert_eq!(texts.last().map(String::as_str), Some("(combined from similar events): 11"));
    }

    #[test]
    fn an_object_has_a_burst_of_events_and_then_one_in_five_minutes() {
        let mut correlator = Correlator::new();
        let mut now = Timestamp::UNIX_EPOCH;
        let written = (0..100).filter(|_| correlator.admit(&note("a", "x"), now).is_some()).count();
        assert_eq!(written, 25);
        assert!(correlator.admit(&note("b", "x"), now).is_some());
        now += jiff::SignedDuration::from_secs(301);
        assert!(correlator.admit(&note("a", "x"), now).is_some());
        assert!(correlator.admit(&note("a", "x"), now).is_none());
    }
}
