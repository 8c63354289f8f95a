//! Scaling replica sets: rolling, recreating, proportionally, and clearing away old ones.

use k8s_openapi::api::apps::v1::ReplicaSet;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Preconditions};
use sampan_client::EventKind;
use serde_json::json;

use super::arithmetic::{self, Share, Size};
use super::{Deployments, Sync, annotations, sets, status};
use crate::error::{Error, found};
use crate::pod;

/// Which of the sets of a run.
#[derive(Clone, Copy)]
enum Which {
    New,
    Old(usize),
}

impl Sync {
    fn set(&self, which: Which) -> Option<&ReplicaSet> {
        match which {
            Which::New => self.new.as_ref(),
            Which::Old(at) => self.old.get(at),
        }
    }

    fn replace(&mut self, which: Which, set: ReplicaSet) {
        match which {
            Which::New => self.new = Some(set),
            Which::Old(at) => {
                if let Some(slot) = self.old.get_mut(at) {
                    *slot = set;
                }
            }
        }
    }

    fn sizes(&self) -> Vec<Size> {
        self.all().into_iter().map(sets::size).collect()
    }
}

impl Deployments {
    /// Scales a set and notes the Deployment's sizes on it; true if its size changed.
    async fn scale(&self, sync: &mut Sync, which: Which, to: i32) -> Result<bool, Error> {
        let Some(set) = sync.set(which) else { return Ok(false) };
        let from = status::wanted(set);
        let notes = annotations::sizes(&sync.bounds);
        let noted = notes.iter().all(|(name, value)| set.annotations().get(name) == Some(value));
        if from == to && noted {
            return Ok(false);
        }
        let mut patch = json!({ "metadata": { "annotations": notes } });
        if from != to {
            patch["spec"]["replicas"] = json!(to);
        }
        let Some(written) = self.patch_set(sync, set, patch).await? else {
            return Err(Error::Waiting("the cache to see a deleted ReplicaSet".to_owned()));
        };
        if from != to {
            let way = if from < to { "up" } else { "down" };
            let text = format!("Scaled {way} replica set {} from {from} to {to}", written.name_any());
            self.events.record(&sync.deployment, EventKind::Normal, "ScalingReplicaSet", text);
        }
        sync.replace(which, written);
        Ok(from != to)
    }

    /// One step of a rolling update: up first; down once nothing goes up.
    pub(super) async fn roll(&self, sync: &mut Sync) -> Result<(), Error> {
        self.ensure_new(sync).await?;
        let new = sync.new.as_ref().map(sets::size).unwrap_or_default();
        let wanted = if new.wanted > sync.bounds.replicas {
            sync.bounds.replicas
        } else {
            arithmetic::new_size(&sync.bounds, new.wanted, &sync.sizes())
        };
        if wanted != new.wanted && self.scale(sync, Which::New, wanted).await? {
            return Ok(());
        }
        let old: Vec<Size> = sync.old.iter().map(sets::size).collect();
        let mut scaled = false;
        for (at, to) in arithmetic::old_sizes(&sync.bounds, new, &old).into_iter().enumerate() {
            if old.get(at).is_some_and(|size| size.wanted != to) {
                scaled |= self.scale(sync, Which::Old(at), to).await?;
            }
        }
        if scaled {
            return Ok(());
        }
        self.clean_up_when_complete(sync).await
    }

    /// Ends all old pods, then makes all new ones.
    pub(super) async fn recreate(&self, sync: &mut Sync) -> Result<(), Error> {
        // Revisions are noted even while the old pods are still there.
        self.adopt_template(sync).await?;
        let mut scaled = false;
        for at in 0..sync.old.len() {
            if sync.old.get(at).is_some_and(|set| status::wanted(set) > 0) {
                scaled |= self.scale(sync, Which::Old(at), 0).await?;
            }
        }
        if scaled || self.old_pods_run(sync) {
            return Ok(());
        }
        self.ensure_new(sync).await?;
        self.scale(sync, Which::New, sync.bounds.replicas).await?;
        self.clean_up_when_complete(sync).await
    }

    fn old_pods_run(&self, sync: &Sync) -> bool {
        sync.old.iter().any(|set| {
            set.status.as_ref().is_some_and(|status| status.replicas > 0)
                || self
                    .pods_by_owner
                    .get(set.metadata.uid.as_deref().unwrap_or_default())
                    .iter()
                    .any(|pod| !pod::is_finished(pod))
        })
    }

    /// Brings the sets to a changed `spec.replicas` without going on with a rollout.
    pub(super) async fn scale_all(&self, sync: &mut Sync) -> Result<(), Error> {
        let replicas = sync.bounds.replicas;
        if let Some(only) = active_or_latest(sync) {
            self.scale(sync, only, replicas).await?;
            return Ok(());
        }
        if sync.new.as_ref().is_some_and(|set| is_saturated(set, replicas)) {
            for at in 0..sync.old.len() {
                if sync.old.get(at).is_some_and(|set| status::wanted(set) > 0) {
                    self.scale(sync, Which::Old(at), 0).await?;
                }
            }
            return Ok(());
        }
        if !sync.bounds.rolling {
            return Ok(());
        }
        let mut active = active(sync);
        let total: i32 = active.iter().filter_map(|which| sync.set(*which)).map(status::wanted).sum();
        let growing = sync.bounds.replicas > 0 && sync.bounds.most() > total;
        // Oldest first as they come; the sort keeps that order among equals.
        if growing {
            active.reverse();
        }
        active.sort_by_key(|which| std::cmp::Reverse(sync.set(*which).map(status::wanted)));
        let shares: Vec<Share> = active
            .iter()
            .filter_map(|which| sync.set(*which))
            .map(|set| Share { wanted: status::wanted(set), most: annotations::most(set) })
            .collect();
        let replicas = sync.deployment.status.as_ref().and_then(|status| status.replicas);
        let sizes = arithmetic::proportional(&sync.bounds, replicas.unwrap_or_default(), &shares);
        for (which, to) in active.into_iter().zip(sizes) {
            self.scale(sync, which, to).await?;
        }
        Ok(())
    }

    async fn clean_up_when_complete(&self, sync: &Sync) -> Result<(), Error> {
        let all = sync.all();
        let now = self.context.clock.time();
        let status = status::count(&sync.deployment, Vec::new(), &all, sync.new.as_ref(), &now);
        if status::is_complete(&sync.deployment, &status) {
            self.clean_up(sync).await?;
        }
        Ok(())
    }

    /// Deletes the oldest empty sets beyond `revisionHistoryLimit`.
    pub(super) async fn clean_up(&self, sync: &Sync) -> Result<(), Error> {
        let limit = sync.deployment.spec.as_ref().and_then(|spec| spec.revision_history_limit);
        let Some(limit) = limit.filter(|limit| *limit != i32::MAX) else { return Ok(()) };
        let mut old: Vec<&ReplicaSet> =
            sync.old.iter().filter(|set| set.metadata.deletion_timestamp.is_none()).collect();
        let excess = old.len().saturating_sub(usize::try_from(limit).unwrap_or_default());
        old.sort_by_key(|set| annotations::revision(set));
        let sets: Api<ReplicaSet> = Api::namespaced(self.context.client.clone(), &sync.key.0);
        for set in old.into_iter().take(excess) {
            let status = set.status.clone().unwrap_or_default();
            if status.replicas != 0 || status::wanted(set) != 0 || set.metadata.generation > status.observed_generation
            {
                continue;
            }
            tracing::debug!(key = ?sync.key, set = set.name_any(), "beyond the history limit");
            let params = DeleteParams {
                preconditions: Some(Preconditions { uid: set.metadata.uid.clone(), resource_version: None }),
                ..DeleteParams::background()
            };
            found(sets.delete(&set.name_any(), &params).await)?;
        }
        Ok(())
    }
}

/// The sets that have pods, oldest first.
fn active(sync: &Sync) -> Vec<Which> {
    let which = (0..sync.old.len()).map(Which::Old).chain([Which::New]);
    which.filter(|which| sync.set(*which).is_some_and(|set| status::wanted(set) > 0)).collect()
}

/// The one set that has pods; if none has, the new one or else the latest. `None` when several have.
fn active_or_latest(sync: &Sync) -> Option<Which> {
    match active(sync).as_slice() {
        [] if sync.new.is_some() => Some(Which::New),
        [] => sync.old.len().checked_sub(1).map(Which::Old),
        [only] => Some(*only),
        _ => None,
    }
}

/// Whether a set is all that its Deployment wants.
fn is_saturated(set: &ReplicaSet, replicas: i32) -> bool {
    status::wanted(set) == replicas && annotations::desired(set) == Some(replicas) && status::available(set) == replicas
}
