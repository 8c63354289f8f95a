//! Events go an hour after they last happened, so that the store does not grow with them.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Preconditions};
use kube::runtime::{WatchStreamExt, watcher};

use crate::context::Context;
use crate::error::{Error, found};
use crate::queue::{self, Controller, Queue};

/// Namespace and name.
type Key = (String, String);

pub(crate) async fn run(context: Context) {
    let queue = Queue::new();
    let expiry = Arc::new(Expiry {
        last: Mutex::default(),
        context: context.clone(),
    });
    tokio::join!(
        expiry.follow(&queue),
        queue::work(expiry.clone(), queue.clone(), 8, context.shutdown.clone()),
    );
}

/// An event as far as it matters here: the objects themselves are not kept.
struct Seen {
    last: Timestamp,
    uid: Option<String>,
    resource_version: Option<String>,
}

struct Expiry {
    context: Context,
    last: Mutex<HashMap<Key, Seen>>,
}

impl Expiry {
    async fn follow(&self, queue: &Queue<Key>) {
        let api: Api<Event> = Api::all(self.context.client.clone());
        let mut events = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
        let mut listed = HashSet::new();
        loop {
            let event = tokio::select! {
                () = self.context.shutdown.cancelled() => return,
                event = events.next() => event,
            };
            match event {
                None => return,
                Some(Ok(watcher::Event::Init)) => listed.clear(),
                Some(Ok(watcher::Event::InitApply(event))) => {
                    listed.insert(self.put(event, queue));
                }
                Some(Ok(watcher::Event::InitDone)) => {
                    self.known().retain(|key, _| listed.contains(key));
                    listed.clear();
                }
                Some(Ok(watcher::Event::Apply(event))) => {
                    self.put(event, queue);
                }
                Some(Ok(watcher::Event::Delete(event))) => {
                    self.known().remove(&key(&event));
                }
                Some(Err(error)) => tracing::warn!(%error, "watch failed; trying again"),
            }
        }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Seen>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, event: Event, queue: &Queue<Key>) -> Key {
        let key = key(&event);
        let now = self.context.clock.now();
        let last = last_time(&event).unwrap_or(now);
        let seen =
            Seen { last, uid: event.metadata.uid, resource_version: event.metadata.resource_version };
        self.known().insert(key.clone(), seen);
        queue.add_after(key.clone(), left(last, now, self.context.config.event_ttl));
        key
    }
}

fn key(event: &Event) -> Key {
    (event.namespace().unwrap_or_default(), event.name_any())
}

/// When an event last happened, however its author says so.
fn last_time(event: &Event) -> Option<Timestamp> {
    let times = [
        event.last_timestamp.as_ref().map(|time| time.0),
        event.series.as_ref().and_then(|series| series.last_observed_time.as_ref()).map(|time| time.0),
        event.event_time.as_ref().map(|time| time.0),
        event.metadata.creation_timestamp.as_ref().map(|time| time.0),
    ];
    times.into_iter().flatten().max()
}

/// How long an event still stays. No longer than the whole time, whatever a clock elsewhere says.
fn left(last: Timestamp, now: Timestamp, ttl: Duration) -> Duration {
    let age = Duration::try_from(now.duration_since(last)).unwrap_or_default();
    ttl.saturating_sub(age)
}

impl Controller for Expiry {
    const NAME: &'static str = "event-ttl";
    type Key = Key;

    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let preconditions = {
            let known = self.known();
            let Some(seen) = known.get(key) else { return Ok(None) };
            let left = left(seen.last, self.context.clock.now(), self.context.config.event_ttl);
            if !left.is_zero() {
                return Ok(Some(left));
            }
            // Not if it happened again meanwhile.
            Preconditions { uid: seen.uid.clone(), resource_version: seen.resource_version.clone() }
        };
        let params = DeleteParams { preconditions: Some(preconditions), ..Default::default() };
        let events: Api<Event> = Api::namespaced(self.context.client.clone(), &key.0);
        found(events.delete(&key.1, &params).await)?;
        Ok(None)
    }
}
