//! Who controls what: controller references, adoption and release.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use kube::api::{Api, Patch, PatchParams};
use kube::core::{Selector, SelectorExt};
use kube::{Client, Resource, ResourceExt};
use sampan_client::{Informer, Object};
use serde_json::json;

use crate::error::{Error, found};

/// The reference to the controller of an object.
pub fn controller(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// The reference that makes `object` the controller of another.
pub fn reference<K: Resource<DynamicType = ()>>(object: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: object.meta().name.clone().unwrap_or_default(),
        uid: object.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Index function: the uid of the controller, or [`orphans`] of its namespace.
pub fn by_controller<K: Object>(object: &K) -> Vec<String> {
    match controller(object.meta()) {
        Some(owner) => vec![owner.uid.clone()],
        None => vec![orphans(object.meta().namespace.as_deref().unwrap_or_default())],
    }
}

/// The bucket of the objects in a namespace that no controller owns.
pub fn orphans(namespace: &str) -> String {
    format!("orphans/{namespace}")
}

/// A label selector that matches what the API says it does; `None` if it is not well-formed.
pub fn selector(selector: &LabelSelector) -> Option<Selector> {
    Selector::try_from(selector.clone()).ok()
}

/// Whether a selector picks everything, which no controller accepts.
pub fn selects_all(selector: &LabelSelector) -> bool {
    selector.match_labels.as_ref().is_none_or(|labels| labels.is_empty())
        && selector.match_expressions.as_ref().is_none_or(Vec::is_empty)
}

pub fn matches(selector: &Selector, meta: &ObjectMeta) -> bool {
    match &meta.labels {
        Some(labels) => selector.matches(labels),
        None => selector.matches(&Default::default()),
    }
}

/// What `owner` owns of `candidates` once those that match were adopted and those that match no
/// longer were let go.
pub async fn claim<O, K>(
    client: &Client,
    owner: &O,
    by: &Selector,
    candidates: Vec<Arc<K>>,
    may_adopt: impl Fn(&K) -> bool,
) -> Result<Vec<Arc<K>>, Error>
where
    O: Object + Resource<Scope = NamespaceResourceScope>,
    K: Object + Resource<Scope = NamespaceResourceScope>,
{
    let uid = owner.meta().uid.as_deref().unwrap_or_default();
    let namespace = owner.meta().namespace.as_deref().unwrap_or_default();
    let objects: Api<K> = Api::namespaced(client.clone(), namespace);
    let mut claimed = Vec::with_capacity(candidates.len());
    let mut asked: Option<bool> = None;
    for object in candidates {
        let meta = object.meta();
        let fits = matches(by, meta);
        match controller(meta) {
            Some(of) if of.uid != uid => {}
            Some(_) if fits => claimed.push(object),
            Some(_) => {
                if owner.meta().deletion_timestamp.is_none() {
                    let _: Option<K> = write_owners(&objects, meta, |owners| owners.retain(|of| of.uid != uid)).await?;
                }
            }
            None if !fits || meta.deletion_timestamp.is_some() || !may_adopt(&object) => {}
            None if owner.meta().deletion_timestamp.is_some() => {}
            None => {
                // The cache may not know yet that the owner is going.
                if asked.is_none() {
                    let owners: Api<O> = Api::namespaced(client.clone(), namespace);
                    let live = found(owners.get(&owner.name_any()).await)?;
                    asked = Some(live.is_some_and(|live| {
                        live.meta().uid.as_deref() == Some(uid) && live.meta().deletion_timestamp.is_none()
                    }));
                }
                if asked == Some(true) {
                    let adopted: Option<K> =
                        write_owners(&objects, meta, |owners| owners.push(reference(owner))).await?;
                    claimed.extend(adopted.map(Arc::new));
                }
            }
        }
    }
    Ok(claimed)
}

/// Changes the owners of exactly this state of an object; `None` when it is gone.
async fn write_owners<K>(
    objects: &Api<K>,
    meta: &ObjectMeta,
    change: impl FnOnce(&mut Vec<OwnerReference>),
) -> Result<Option<K>, Error>
where
    K: Object,
{
    let mut owners = meta.owner_references.clone().unwrap_or_default();
    change(&mut owners);
    let patch = json!({ "metadata": {
        "uid": meta.uid,
        "resourceVersion": meta.resource_version,
        "ownerReferences": owners,
    }});
    let name = meta.name.as_deref().unwrap_or_default();
    found(objects.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await)
}

/// What a controller wrote for each of its keys and its cache may not show yet. Acting only once
/// the cache shows it keeps a controller from doing a thing twice.
pub struct Written<K> {
    versions: Mutex<HashMap<K, u64>>,
}

impl<K: crate::queue::Key> Written<K> {
    pub fn new() -> Self {
        Self { versions: Mutex::default() }
    }

    /// Notes the state that a write for `key` returned.
    pub fn note(&self, key: &K, resource_version: Option<&str>) {
        let Some(version) = resource_version.and_then(|it| it.parse::<u64>().ok()) else { return };
        let mut versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = versions.entry(key.clone()).or_default();
        *newest = version.max(*newest);
    }

    /// Waits until `cache` holds whatever was written for `key`.
    pub async fn seen<T: Object>(&self, key: &K, cache: &Informer<T>) {
        let version = {
            let versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
            versions.get(key).copied()
        };
        let Some(version) = version else { return };
        if !cache.reached(&version.to_string()).await {
            tracing::warn!(?key, version, "the cache is behind one's own write; going on without");
        }
        let mut versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        if versions.get(key) == Some(&version) {
            versions.remove(key);
        }
    }
}
