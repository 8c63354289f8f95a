//! Which replica set is of the current template, and making it where there is none.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams, PostParams};
use sampan_client::EventKind;
use serde_json::json;

use super::arithmetic::{self, Size};
use super::{Deployments, Sync, annotations, hash, status};
use crate::error::{Error, found, namespace_terminating};
use crate::owner;

/// The set of the current template and all others, oldest first.
pub fn sort(deployment: &Deployment, sets: &[Arc<ReplicaSet>]) -> (Option<ReplicaSet>, Vec<ReplicaSet>) {
    let mut sets: Vec<ReplicaSet> = sets.iter().map(|set| (**set).clone()).collect();
    sets.sort_by(|a, b| age(a).cmp(&age(b)));
    let at = deployment.spec.as_ref().and_then(|spec| sets.iter().position(|set| is_of(set, &spec.template)));
    let new = at.map(|at| sets.remove(at));
    (new, sets)
}

fn age(set: &ReplicaSet) -> (Option<jiff::Timestamp>, Option<&str>) {
    (set.metadata.creation_timestamp.as_ref().map(|time| time.0), set.metadata.name.as_deref())
}

fn is_of(set: &ReplicaSet, template: &k8s_openapi::api::core::v1::PodTemplateSpec) -> bool {
    set.spec.as_ref().and_then(|spec| spec.template.as_ref()).is_some_and(|of| hash::same(of, template))
}

/// What counts of a set. Its status may be of before it was scaled down: those that go by then are
/// not available any more.
pub fn size(set: &ReplicaSet) -> Size {
    let wanted = status::wanted(set);
    Size { wanted, available: status::available(set).min(wanted) }
}

impl Deployments {
    fn sets_in(&self, sync: &Sync) -> Api<ReplicaSet> {
        Api::namespaced(self.context.client.clone(), &sync.key.0)
    }

    /// Writes a part of a set; `None` when it is gone.
    pub(super) async fn patch_set(
        &self,
        sync: &Sync,
        set: &ReplicaSet,
        mut patch: serde_json::Value,
    ) -> Result<Option<ReplicaSet>, Error> {
        if let Some(meta) = patch.get_mut("metadata").and_then(|meta| meta.as_object_mut()) {
            meta.insert("uid".to_owned(), json!(set.metadata.uid));
        }
        let patch = Patch::Merge(patch);
        let written = self.sets_in(sync).patch(&set.name_any(), &PatchParams::default(), &patch).await;
        let written = found(written)?;
        if let Some(set) = &written {
            self.written.note(&sync.key, set.metadata.resource_version.as_deref());
        }
        Ok(written)
    }

    /// Brings revision, annotations and minReadySeconds of the current template's set up to date.
    pub(super) async fn adopt_template(&self, sync: &mut Sync) -> Result<(), Error> {
        let Some(set) = sync.new.clone() else { return Ok(()) };
        let newest = sync.old.iter().map(annotations::revision).max().unwrap_or_default() + 1;
        let current = set.metadata.annotations.clone().unwrap_or_default();
        let wanted = annotations::of_new(&sync.deployment, &current, newest);
        let min_ready = |seconds: Option<i32>| seconds.unwrap_or_default();
        let of_deployment = min_ready(sync.deployment.spec.as_ref().and_then(|it| it.min_ready_seconds));
        let of_set = min_ready(set.spec.as_ref().and_then(|spec| spec.min_ready_seconds));
        let mut patch = json!({ "metadata": {} });
        if wanted != current {
            patch["metadata"]["annotations"] = json!(wanted);
        }
        if of_deployment != of_set {
            patch["spec"]["minReadySeconds"] = json!(of_deployment);
        }
        let set = if wanted != current || of_deployment != of_set {
            match self.patch_set(sync, &set, patch).await? {
                Some(set) => set,
                None => return Err(Error::Waiting("the cache to see a deleted ReplicaSet".to_owned())),
            }
        } else {
            set
        };
        let revision = annotations::revision(&set);
        if status::deadline(&sync.deployment).is_some() && status::get(&sync.conditions, status::PROGRESSING).is_none()
        {
            let text = format!("Found new replica set \"{}\"", set.name_any());
            let now = self.context.clock.time();
            status::set(&mut sync.conditions, status::PROGRESSING, "True", status::NEW_SET_FOUND, text, &now);
        }
        sync.new = Some(set);
        Self::note_revision(sync, revision);
        Ok(())
    }

    /// As [`Self::adopt_template`], and creates the set if there is none.
    pub(super) async fn ensure_new(&self, sync: &mut Sync) -> Result<(), Error> {
        if sync.new.is_some() {
            return self.adopt_template(sync).await;
        }
        let newest = sync.old.iter().map(annotations::revision).max().unwrap_or_default() + 1;
        let set = template_set(sync, newest)?;
        let count = status::wanted(&set);
        let (name, now) = (set.name_any(), self.context.clock.time());
        let mut is_there = false;
        let set = match self.sets_in(sync).create(&PostParams::default(), &set).await {
            Ok(set) => {
                self.written.note(&sync.key, set.metadata.resource_version.as_deref());
                set
            }
            Err(error) if crate::error::status(&error).is_some_and(|it| it.is_already_exists()) => {
                is_there = true;
                self.existing(sync, &name, error).await?
            }
            Err(error) if namespace_terminating(&error) => return Err(error.into()),
            Err(error) => {
                let error = Error::from(error);
                let text = format!("Failed to create new replica set \"{name}\": {}", error.text());
                self.events.record(&sync.deployment, EventKind::Warning, status::NEW_SET_FAILED, text.clone());
                if status::deadline(&sync.deployment).is_some() {
                    let conditions = &mut sync.conditions;
                    status::set(conditions, status::PROGRESSING, "False", status::NEW_SET_FAILED, text, &now);
                }
                return Err(error);
            }
        };
        if !is_there {
            if count > 0 {
                let text = format!("Scaled up replica set {name} from 0 to {count}");
                self.events.record(&sync.deployment, EventKind::Normal, "ScalingReplicaSet", text);
            }
            if status::deadline(&sync.deployment).is_some() {
                let text = format!("Created new replica set \"{name}\"");
                let conditions = &mut sync.conditions;
                status::set(conditions, status::PROGRESSING, "True", status::NEW_SET_CREATED, text, &now);
            }
        }
        sync.new = Some(set);
        Self::note_revision(sync, newest);
        Ok(())
    }

    /// The set that has the name which the new one was to get: ours already, or a collision.
    async fn existing(&self, sync: &mut Sync, name: &str, error: kube::Error) -> Result<ReplicaSet, Error> {
        let Some(set) = found(self.sets_in(sync).get(name).await)? else { return Err(error.into()) };
        let uid = sync.deployment.metadata.uid.as_deref();
        let ours = owner::controller(&set.metadata).is_some_and(|owner| Some(owner.uid.as_str()) == uid);
        let template = sync.deployment.spec.as_ref().map(|spec| &spec.template);
        if ours && template.is_some_and(|template| is_of(&set, template)) {
            self.written.note(&sync.key, set.metadata.resource_version.as_deref());
            return Ok(set);
        }
        // Told with the status; the next run takes another name.
        let status = sync.deployment.status.get_or_insert_default();
        let count = status.collision_count.get_or_insert_default();
        *count = count.saturating_add(1);
        tracing::info!(set = name, collisions = *count, "a hash is taken; counting on");
        Err(error.into())
    }
}

/// The set of the Deployment's template.
fn template_set(sync: &Sync, revision: i64) -> Result<ReplicaSet, Error> {
    let deployment = &sync.deployment;
    let Some(spec) = &deployment.spec else {
        return Err(Error::Invalid("the Deployment has no specification".to_owned()));
    };
    let collisions = deployment.status.as_ref().and_then(|status| status.collision_count);
    let hash = hash::hash(&spec.template, collisions.unwrap_or_default())?;
    let mut template = hash::without_label(&spec.template);
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(hash::LABEL.to_owned(), hash.clone());
    let mut selector = spec.selector.clone();
    selector.match_labels.get_or_insert_default().insert(hash::LABEL.to_owned(), hash.clone());
    let mut all: Vec<Size> = sync.old.iter().map(size).collect();
    all.push(Size::default());
    let mut notes = annotations::of_new(deployment, &Default::default(), revision);
    notes.extend(annotations::sizes(&sync.bounds));
    Ok(ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", deployment.name_any())),
            namespace: deployment.metadata.namespace.clone(),
            labels: Some(labels.clone()),
            annotations: Some(notes),
            owner_references: Some(vec![owner::reference(deployment)]),
            ..Default::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(arithmetic::new_size(&sync.bounds, 0, &all)),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    })
}
