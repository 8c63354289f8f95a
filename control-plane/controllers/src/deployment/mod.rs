//! Deployment: brings its pods from one template to the next, by ReplicaSets.

mod annotations;
mod arithmetic;
mod hash;
mod rollout;
mod sets;
mod status;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::api::{Api, PostParams};
use sampan_client::{Change, EventKind, EventRecorder, Index, Informer};

use crate::context::Context;
use crate::error::{Error, found};
use crate::owner::{self, Written};
use crate::pod;
use crate::queue::{self, Controller, Queue};
use arithmetic::Bounds;

/// Namespace and name.
type Key = (String, String);

const CONCURRENCY: usize = 16;

pub(crate) async fn run(context: Context) {
    let deployments = context.informers.all::<Deployment>();
    let sets = context.informers.all::<ReplicaSet>();
    let pods = context.informers.all::<Pod>();
    let controller = Arc::new(Deployments {
        events: context.recorder("deployment-controller"),
        deployments: deployments.clone(),
        sets_by_owner: sets.index("controller", owner::by_controller),
        pods_by_owner: pods.index("controller", owner::by_controller),
        sets: sets.clone(),
        written: Written::new(),
        context: context.clone(),
    });
    let queue = Queue::new();
    deployments.synced().await;
    sets.synced().await;
    pods.synced().await;
    let keys = queue.clone();
    queue::feed(&deployments, &context.shutdown, move |change| keys.add(key(&change.object().metadata)));
    let (keys, owners) = (queue.clone(), deployments.clone());
    queue::feed(&sets, &context.shutdown, move |change| {
        for key in touched(&change, &owners) {
            keys.add(key);
        }
    });
    let keys = queue.clone();
    queue::feed(&pods, &context.shutdown, move |change| {
        if let Some(key) = recreating(&change, &sets, &deployments) {
            keys.add(key);
        }
    });
    queue::work(controller, queue, CONCURRENCY, context.shutdown).await;
}

fn key(meta: &ObjectMeta) -> Key {
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

fn deployment_of(set: &ReplicaSet) -> Option<Key> {
    let owner = owner::controller(&set.metadata)?;
    (owner.kind == "Deployment" && owner.api_version.starts_with("apps/"))
        .then(|| (set.metadata.namespace.clone().unwrap_or_default(), owner.name.clone()))
}

/// The Deployments that a change of a replica set concerns.
fn touched(change: &Change<ReplicaSet>, deployments: &Informer<Deployment>) -> BTreeSet<Key> {
    let mut keys = BTreeSet::new();
    if let Change::Updated { old, .. } = change {
        keys.extend(deployment_of(old));
    }
    let set = change.object();
    keys.extend(deployment_of(set));
    if owner::controller(&set.metadata).is_none()
        && !matches!(change, Change::Deleted(_))
        && set.metadata.labels.as_ref().is_some_and(|labels| !labels.is_empty())
    {
        for deployment in deployments.list_in(set.metadata.namespace.as_deref().unwrap_or_default()) {
            let selector = deployment.spec.as_ref().and_then(|spec| owner::selector(&spec.selector));
            if selector.is_some_and(|selector| owner::matches(&selector, &set.metadata)) {
                keys.insert(key(&deployment.metadata));
            }
        }
    }
    keys
}

/// The Deployment that waits for this pod to be gone before it makes new ones.
fn recreating(change: &Change<Pod>, sets: &Informer<ReplicaSet>, deployments: &Informer<Deployment>) -> Option<Key> {
    let pod = change.object();
    if !matches!(change, Change::Deleted(_)) && !pod::is_finished(pod) {
        return None;
    }
    let owner = owner::controller(&pod.metadata).filter(|owner| owner.kind == "ReplicaSet")?;
    let set = sets.get(pod.metadata.namespace.as_deref()?, &owner.name)?;
    let key = deployment_of(&set)?;
    let deployment = deployments.get(&key.0, &key.1)?;
    (!Bounds::of(&deployment).rolling).then_some(key)
}

struct Deployments {
    context: Context,
    events: EventRecorder,
    deployments: Informer<Deployment>,
    sets: Informer<ReplicaSet>,
    sets_by_owner: Index<ReplicaSet>,
    pods_by_owner: Index<Pod>,
    written: Written<Key>,
}

/// One run: the Deployment, its replica sets, and what it will say.
struct Sync {
    key: Key,
    deployment: Deployment,
    bounds: Bounds,
    /// The set of the current template.
    new: Option<ReplicaSet>,
    /// All others, oldest first.
    old: Vec<ReplicaSet>,
    conditions: status::Conditions,
}

impl Sync {
    fn all(&self) -> Vec<&ReplicaSet> {
        self.old.iter().chain(&self.new).collect()
    }
}

impl Controller for Deployments {
    const NAME: &'static str = "deployment";
    type Key = Key;

    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        self.written.seen(key, &self.sets).await;
        let Some(cached) = self.deployments.get(&key.0, &key.1) else { return Ok(None) };
        let mut deployment = (*cached).clone();
        let Some(spec) = &deployment.spec else { return Ok(None) };
        if owner::selects_all(&spec.selector) {
            let text = "This deployment is selecting all pods. A non-empty selector is required.";
            self.events.record(&deployment, EventKind::Warning, "SelectingAll", text);
            let mut status = deployment.status.clone().unwrap_or_default();
            status.observed_generation = deployment.metadata.generation;
            if deployment.status.as_ref() != Some(&status) {
                self.write_status(&deployment, status).await?;
            }
            return Ok(None);
        }
        let Some(selector) = owner::selector(&spec.selector) else {
            tracing::warn!(?key, "its selector is not well-formed");
            return Ok(None);
        };
        let uid = deployment.metadata.uid.clone().unwrap_or_default();
        let mut candidates = self.sets_by_owner.get(&uid);
        candidates.extend(self.sets_by_owner.get(&owner::orphans(&key.0)));
        let owned = owner::claim(&self.context.client, &deployment, &selector, candidates, |_| true).await?;
        let (new, old) = sets::sort(&deployment, &owned);
        let conditions = deployment.status.as_mut().and_then(|it| it.conditions.take());
        let mut sync = Sync {
            key: key.clone(),
            bounds: Bounds::of(&deployment),
            new,
            old,
            conditions: conditions.unwrap_or_default(),
            deployment,
        };
        let ended = self.act(&mut sync).await;
        // What went wrong is said, too.
        let next = self.tell(&cached, sync, ended.as_ref().ok().copied()).await;
        ended?;
        next
    }
}

/// Whether the rollout was worked on, so that progress counts, or the counts are all there is to say.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Acted {
    CountsOnly,
    Rollout,
}

impl Deployments {
    async fn act(&self, sync: &mut Sync) -> Result<Acted, Error> {
        if sync.deployment.metadata.deletion_timestamp.is_some() {
            return Ok(Acted::CountsOnly);
        }
        status::note_pause(&sync.deployment, &mut sync.conditions, &self.context.clock.time());
        let scaled = sync.all().into_iter().any(|set| {
            status::wanted(set) > 0 && annotations::desired(set).is_some_and(|desired| desired != sync.bounds.replicas)
        });
        if status::is_paused(&sync.deployment) || scaled {
            self.adopt_template(sync).await?;
            self.scale_all(sync).await?;
            if status::is_paused(&sync.deployment) {
                self.clean_up(sync).await?;
            }
            return Ok(Acted::CountsOnly);
        }
        if sync.bounds.rolling {
            self.roll(sync).await?;
        } else {
            self.recreate(sync).await?;
        }
        Ok(Acted::Rollout)
    }

    /// Writes what there is to say. `acted`: `None` after a failure.
    async fn tell(&self, cached: &Deployment, sync: Sync, acted: Option<Acted>) -> Result<Option<Duration>, Error> {
        let now = self.context.clock.time();
        let all = sync.all();
        let before = cached.status.clone().unwrap_or_default();
        let mut status = status::count(&sync.deployment, sync.conditions.clone(), &all, sync.new.as_ref(), &now);
        if acted == Some(Acted::Rollout) {
            let new = sync.new.as_ref();
            status::note_progress(&sync.deployment, &before, &mut status, &all, new, &now);
        }
        let next = status::next_check(&sync.deployment, &status, self.context.clock.now());
        if before != status || cached.annotations() != sync.deployment.annotations() {
            self.write_status(&sync.deployment, status).await?;
        }
        Ok(next)
    }

    async fn write_status(&self, deployment: &Deployment, status: DeploymentStatus) -> Result<(), Error> {
        let deployments = self.api(&deployment.metadata);
        let written = Deployment { status: Some(status), ..deployment.clone() };
        let name = deployment.name_any();
        found(deployments.replace_status(&name, &PostParams::default(), &written).await)?;
        Ok(())
    }

    fn api(&self, meta: &ObjectMeta) -> Api<Deployment> {
        Api::namespaced(self.context.client.clone(), meta.namespace.as_deref().unwrap_or_default())
    }

    /// Notes on the Deployment which revision its template is. Written with the status: other writes
    /// of annotations count as a new generation.
    fn note_revision(sync: &mut Sync, revision: i64) {
        sync.deployment.annotations_mut().insert(annotations::REVISION.to_owned(), revision.to_string());
    }
}
