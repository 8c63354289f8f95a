//! ReplicaSet: so many pods of one template.

mod rank;
mod status;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use sampan_client::{Change, EventKind, EventRecorder, Index, Informer};

use crate::context::Context;
use crate::error::{Error, found, namespace_terminating};
use crate::owner::{self, Written};
use crate::pod::{self, Availability};
use crate::queue::{self, Controller, Queue};

/// Namespace and name.
type Key = (String, String);

const CONCURRENCY: usize = 16;
/// How many pods one look at a replica set makes or ends: its status tells of them in between.
const BURST: usize = 500;
/// How many requests of one replica set are on their way at once.
const IN_FLIGHT: usize = 128;

pub(crate) async fn run(context: Context) {
    let sets = context.informers.all::<ReplicaSet>();
    let pods = context.informers.all::<Pod>();
    let controller = Arc::new(ReplicaSets {
        events: context.recorder("replicaset-controller"),
        sets_by_owner: sets.index("controller", owner::by_controller),
        pods_by_owner: pods.index("controller", owner::by_controller),
        sets: sets.clone(),
        pods: pods.clone(),
        created: Written::new(),
        deleted: Mutex::default(),
        context: context.clone(),
    });
    let queue = Queue::new();
    sets.synced().await;
    pods.synced().await;
    let keys = queue.clone();
    queue::feed(&sets, &context.shutdown, move |change| keys.add(key(&change.object().metadata)));
    let (keys, owners) = (queue.clone(), sets.clone());
    queue::feed(&pods, &context.shutdown, move |change| {
        for key in touched(&change, &owners) {
            keys.add(key);
        }
    });
    queue::work(controller, queue, CONCURRENCY, context.shutdown).await;
}

fn key(meta: &ObjectMeta) -> Key {
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

/// The replica sets that a change of a pod concerns.
fn touched(change: &Change<Pod>, sets: &Informer<ReplicaSet>) -> BTreeSet<Key> {
    let mut keys = BTreeSet::new();
    let mut owned = |pod: &Pod| {
        if let Some(owner) = owner::controller(&pod.metadata)
            && owner.kind == "ReplicaSet"
            && owner.api_version.starts_with("apps/")
        {
            keys.insert((pod.metadata.namespace.clone().unwrap_or_default(), owner.name.clone()));
        }
    };
    if let Change::Updated { old, .. } = change {
        owned(old);
    }
    let pod = change.object();
    owned(pod);
    // Nobody's: whoever selects it may adopt it.
    if owner::controller(&pod.metadata).is_none()
        && !matches!(change, Change::Deleted(_))
        && pod.metadata.labels.as_ref().is_some_and(|labels| !labels.is_empty())
    {
        for set in sets.list_in(pod.metadata.namespace.as_deref().unwrap_or_default()) {
            let selector = set.spec.as_ref().and_then(|spec| owner::selector(&spec.selector));
            if selector.is_some_and(|selector| owner::matches(&selector, &pod.metadata)) {
                keys.insert(key(&set.metadata));
            }
        }
    }
    keys
}

struct ReplicaSets {
    context: Context,
    events: EventRecorder,
    sets: Informer<ReplicaSet>,
    sets_by_owner: Index<ReplicaSet>,
    pods: Informer<Pod>,
    pods_by_owner: Index<Pod>,
    created: Written<Key>,
    /// Pods that were deleted here and that the cache may still show as alive.
    deleted: Mutex<HashMap<Key, HashSet<String>>>,
}

impl Controller for ReplicaSets {
    const NAME: &'static str = "replicaset";
    type Key = Key;

    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        self.created.seen(key, &self.pods).await;
        let Some(set) = self.sets.get(&key.0, &key.1) else {
            self.deleted().remove(key);
            return Ok(None);
        };
        let Some(spec) = &set.spec else { return Ok(None) };
        let Some(selector) = owner::selector(&spec.selector) else {
            tracing::warn!(?key, "its selector is not well-formed");
            return Ok(None);
        };
        if owner::selects_all(&spec.selector) {
            return Ok(None);
        }
        let uid = set.metadata.uid.clone().unwrap_or_default();
        let mut candidates = self.pods_by_owner.get(&uid);
        candidates.extend(self.pods_by_owner.get(&owner::orphans(&key.0)));
        let owned = owner::claim(&self.context.client, &*set, &selector, candidates, pod::is_active).await?;
        let going = self.going(key, &owned);
        let (active, rest): (Vec<_>, Vec<_>) = owned
            .into_iter()
            .partition(|pod| pod::is_active(pod) && !going.contains(pod.metadata.uid.as_deref().unwrap_or_default()));
        let terminating = rest.iter().filter(|pod| !pod::is_finished(pod)).count();

        let managed =
            if set.metadata.deletion_timestamp.is_none() { self.manage(key, &set, &active).await } else { Ok(()) };
        let now = self.context.clock.now();
        let counted = status::Counted::new(&set, &active, terminating, now);
        let status = status::status(&set, &counted, managed.as_ref().err(), &self.context.clock.time());
        self.write_status(&set, status).await?;
        managed.map_err(|failure| failure.error)?;
        Ok(counted.next)
    }
}

/// What kept pods from being created or deleted.
pub(crate) struct Failure {
    pub reason: &'static str,
    pub error: Error,
}

impl ReplicaSets {
    fn deleted(&self) -> std::sync::MutexGuard<'_, HashMap<Key, HashSet<String>>> {
        self.deleted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The uids that were deleted here and still look alive in `owned`; forgets the others.
    fn going(&self, key: &Key, owned: &[Arc<Pod>]) -> HashSet<String> {
        let mut deleted = self.deleted();
        let Some(uids) = deleted.get_mut(key) else { return HashSet::new() };
        let alive: HashSet<&str> = owned
            .iter()
            .filter(|pod| !pod::is_terminating(pod))
            .filter_map(|pod| pod.metadata.uid.as_deref())
            .collect();
        uids.retain(|uid| alive.contains(uid.as_str()));
        if uids.is_empty() {
            deleted.remove(key);
            return HashSet::new();
        }
        uids.clone()
    }

    async fn manage(&self, key: &Key, set: &Arc<ReplicaSet>, active: &[Arc<Pod>]) -> Result<(), Failure> {
        let wanted = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
        let wanted = usize::try_from(wanted).unwrap_or_default();
        if active.len() < wanted {
            tracing::debug!(?key, have = active.len(), wanted, "too few pods");
            let failed = self.create(key, set, (wanted - active.len()).min(BURST)).await;
            failed.map_err(|error| Failure { reason: "FailedCreate", error })
        } else if active.len() > wanted {
            tracing::debug!(?key, have = active.len(), wanted, "too many pods");
            let related = self.related(set);
            let now = self.context.clock.now();
            let doomed = rank::to_delete(active, &related, (active.len() - wanted).min(BURST), now);
            let failed = self.delete(key, set, doomed).await;
            failed.map_err(|error| Failure { reason: "FailedDelete", error })
        } else {
            Ok(())
        }
    }

    /// The pods of all replica sets of the same owner.
    fn related(&self, set: &ReplicaSet) -> Vec<Arc<Pod>> {
        let sets = match owner::controller(&set.metadata) {
            Some(owner) => self.sets_by_owner.get(&owner.uid),
            None => vec![Arc::new(set.clone())],
        };
        let uids = sets.iter().filter_map(|set| set.metadata.uid.as_deref());
        uids.flat_map(|uid| self.pods_by_owner.get(uid)).collect()
    }

    /// Creates pods in batches that double: when the first fails, a thousand need not.
    async fn create(&self, key: &Key, set: &Arc<ReplicaSet>, count: usize) -> Result<(), Error> {
        let template = from_template(set);
        let created = slow_start(count, || async {
            match sampan_client::create(&self.context.client, &key.0, &template).await {
                Ok(pod) => {
                    self.created.note(key, Some(pod.resource_version()));
                    let text = format!("Created pod: {}", pod.name());
                    self.events.record(&**set, EventKind::Normal, "SuccessfulCreate", text);
                    Ok(())
                }
                // It goes with all that is in it; there is nothing to try again.
                Err(error) if namespace_terminating(&error) => Err(None),
                Err(error) => {
                    let error = Error::from(error);
                    let text = format!("Error creating: {}", error.text());
                    self.events.record(&**set, EventKind::Warning, "FailedCreate", text);
                    Err(Some(error))
                }
            }
        });
        created.await
    }

    async fn delete(&self, key: &Key, set: &Arc<ReplicaSet>, doomed: Vec<Arc<Pod>>) -> Result<(), Error> {
        let pods: Api<Pod> = Api::namespaced(self.context.client.clone(), &key.0);
        let tried = doomed.len();
        let deletions = futures::stream::iter(doomed).map(|pod| {
            let pods = &pods;
            async move {
                let (name, uid) = (pod.name_any(), pod.metadata.uid.clone());
                let params = DeleteParams {
                    preconditions: Some(Preconditions { uid: uid.clone(), resource_version: None }),
                    ..Default::default()
                };
                self.deleted().entry(key.clone()).or_default().extend(uid.clone());
                match found(pods.delete(&name, &params).await) {
                    Ok(Some(_)) => {
                        let text = format!("Deleted pod: {name}");
                        self.events.record(&**set, EventKind::Normal, "SuccessfulDelete", text);
                        Ok(())
                    }
                    Ok(None) => Ok(()),
                    // Another pod of that name.
                    Err(error) if error.status().is_some_and(|it| it.is_conflict()) => Ok(()),
                    Err(error) => {
                        if let (Some(uids), Some(uid)) = (self.deleted().get_mut(key), uid) {
                            uids.remove(&uid);
                        }
                        let text = format!("Error deleting: {}", error.text());
                        self.events.record(&**set, EventKind::Warning, "FailedDelete", text);
                        Err(error)
                    }
                }
            }
        });
        let failed: Vec<Error> =
            deletions.buffer_unordered(IN_FLIGHT).filter_map(|result| std::future::ready(result.err())).collect().await;
        several(failed, tried)
    }

    async fn write_status(
        &self,
        set: &ReplicaSet,
        status: k8s_openapi::api::apps::v1::ReplicaSetStatus,
    ) -> Result<(), Error> {
        if set.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        let sets: Api<ReplicaSet> = Api::namespaced(self.context.client.clone(), namespace);
        let written = ReplicaSet { status: Some(status), ..set.clone() };
        found(sets.replace_status(&set.name_any(), &PostParams::default(), &written).await)?;
        Ok(())
    }
}

fn several(failed: Vec<Error>, tried: usize) -> Result<(), Error> {
    let count = failed.len();
    let Some(first) = failed.into_iter().next() else { return Ok(()) };
    if tried == 1 {
        return Err(first);
    }
    Err(Error::Several { failed: count, tried, first: Box::new(first) })
}

/// Runs `make` `count` times, in batches of 1, 2, 4 and so on; ends after a batch with a failure.
/// `Err(None)` ends it without one.
async fn slow_start<F: Future<Output = Result<(), Option<Error>>>>(
    count: usize,
    make: impl Fn() -> F,
) -> Result<(), Error> {
    let (mut left, mut batch, mut tried) = (count, 1, 0);
    while left > 0 {
        let size = left.min(batch);
        let results: Vec<_> =
            futures::stream::iter(0..size).map(|_| make()).buffer_unordered(IN_FLIGHT).collect().await;
        tried += size;
        if results.iter().any(Result::is_err) {
            return several(results.into_iter().filter_map(Result::err).flatten().collect(), tried);
        }
        left -= size;
        batch *= 2;
    }
    Ok(())
}

/// A pod as the template says, owned by the set.
fn from_template(set: &ReplicaSet) -> Pod {
    let template: PodTemplateSpec = set.spec.as_ref().and_then(|spec| spec.template.clone()).unwrap_or_default();
    let meta = template.metadata.unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", set.name_any())),
            namespace: set.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner::reference(set)]),
            ..Default::default()
        },
        spec: template.spec,
        status: None,
    }
}

/// Nearest of two waits.
pub(crate) fn sooner(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// How many are ready, how many long enough, and when the next will be.
pub(crate) fn available(pods: &[Arc<Pod>], min_ready: i32, now: jiff::Timestamp) -> (usize, usize, Option<Duration>) {
    let (mut ready, mut available, mut next) = (0, 0, None);
    for pod in pods {
        ready += usize::from(pod::is_ready(pod));
        match pod::availability(pod, min_ready, now) {
            Availability::Yes => available += 1,
            Availability::In(wait) => next = sooner(next, Some(wait)),
            Availability::No => {}
        }
    }
    (ready, available, next)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn slow_start_doubles_and_stops_at_a_failure() {
        let made = Cell::new(0);
        let all = slow_start(1000, || async {
            made.set(made.get() + 1);
            Ok(())
        });
        assert!(all.await.is_ok());
        assert_eq!(made.get(), 1000);

        for (fails_from, asked) in [(0, 1), (1, 3), (2, 3), (3, 7), (900, 1000)] {
            let made = Cell::new(0);
            let result = slow_start(1000, || async {
                made.set(made.get() + 1);
                if made.get() > fails_from { Err(Some(Error::Invalid("no".to_owned()))) } else { Ok(()) }
            });
            assert!(result.await.is_err());
            assert_eq!(made.get(), asked, "failing from {fails_from}");
        }
        assert!(slow_start(5, || async { Err(None) }).await.is_ok());
    }
}
