//! Deletion of namespaces: first all that is in one, pods before the rest, then itself.

mod conditions;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, PostParams};
use kube::core::metadata::PartialObjectMeta;
use kube::{Client, ResourceExt};
use sampan_client::{Change, Informer};

use crate::context::Context;
use crate::error::{Error, found};
use crate::kinds::{self, Kind};
use crate::queue::{self, Controller, Queue};

const FINALIZER: &str = "kubernetes";
/// How many kinds are cleared at once.
const AT_ONCE: usize = 8;
/// When to look again for what goes by itself: no watch tells of all kinds.
const AGAIN: Duration = Duration::from_secs(2);

pub(crate) async fn run(context: Context) {
    let namespaces = context.informers.all::<Namespace>();
    let pods = context.informers.all::<Pod>();
    let controller = Arc::new(Namespaces { namespaces: namespaces.clone(), context: context.clone() });
    let queue = Queue::new();
    namespaces.synced().await;
    pods.synced().await;
    let keys = queue.clone();
    queue::feed(&namespaces, &context.shutdown, move |change| {
        if change.object().metadata.deletion_timestamp.is_some() {
            keys.add(change.object().name_any());
        }
    });
    let keys = queue.clone();
    queue::feed(&pods, &context.shutdown, move |change| {
        if let Change::Deleted(pod) = change {
            let name = pod.namespace().unwrap_or_default();
            let going = |it: Arc<Namespace>| it.metadata.deletion_timestamp.is_some();
            if namespaces.get("", &name).is_some_and(going) {
                keys.add(name);
            }
        }
    });
    queue::work(controller, queue, 8, context.shutdown).await;
}

struct Namespaces {
    context: Context,
    namespaces: Informer<Namespace>,
}

impl Controller for Namespaces {
    const NAME: &'static str = "namespace";
    type Key = String;

    async fn reconcile(&self, key: &String) -> Result<Option<Duration>, Error> {
        let cached = self.namespaces.get("", key);
        if cached.is_none_or(|it| it.metadata.deletion_timestamp.is_none()) {
            return Ok(None);
        }
        let client = &self.context.client;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        // The cache may not know that it is finalized already.
        let Some(mut namespace) = found(namespaces.get(key).await)? else { return Ok(None) };
        let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.as_ref());
        if namespace.metadata.deletion_timestamp.is_none()
            || !finalizers.is_some_and(|all| all.iter().any(|it| it == FINALIZER))
        {
            return Ok(None);
        }
        let cleared = clear(client, key).await;
        let status = namespace.status.get_or_insert_default();
        let before = status.clone();
        status.phase = Some("Terminating".to_owned());
        let now = self.context.clock.time();
        let news = conditions::update(status.conditions.get_or_insert_default(), &cleared, &now);
        if news || *status != before {
            match found(namespaces.replace_status(key, &PostParams::default(), &namespace).await)? {
                Some(written) => namespace = written,
                None => return Ok(None),
            }
        }
        if let Some(error) = cleared.errors.into_iter().next() {
            return Err(error);
        }
        if !cleared.remaining.is_empty() {
            tracing::debug!(namespace = key, remaining = ?cleared.remaining, "not empty yet");
            return Ok(Some(AGAIN));
        }
        if let Some(spec) = &mut namespace.spec {
            spec.finalizers.get_or_insert_default().retain(|finalizer| finalizer != FINALIZER);
        }
        let params = PostParams::default();
        let finalized = namespaces.replace_subresource("finalize", key, &params, &namespace).await;
        found(finalized)?;
        Ok(None)
    }
}

/// What came of deleting all that is in a namespace.
#[derive(Default)]
pub(crate) struct Cleared {
    discovery: Option<String>,
    errors: Vec<Error>,
    /// By `plural.group`: how many objects are still there.
    remaining: BTreeMap<String, usize>,
    /// By finalizer: how many objects wait for it.
    finalizers: BTreeMap<String, usize>,
}

async fn clear(client: &Client, namespace: &str) -> Cleared {
    let mut cleared = Cleared::default();
    let kinds = match kinds::deletable(client).await {
        Ok(kinds) => kinds,
        Err(error) => {
            cleared.discovery = Some(error.text());
            cleared.errors.push(error);
            return cleared;
        }
    };
    let namespaced = kinds.into_iter().filter(|kind| kind.namespaced);
    let (pods, others): (Vec<_>, Vec<_>) =
        namespaced.partition(|kind| kind.resource.group.is_empty() && kind.resource.plural == "pods");
    // Pods first: what the rest gives them stays until they are gone.
    for kinds in [pods, others] {
        let results: Vec<(Kind, Result<_, Error>)> = futures::stream::iter(kinds)
            .map(|kind| async move {
                let cleared = clear_kind(client, namespace, &kind).await;
                (kind, cleared)
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        for (kind, result) in results {
            match result {
                Ok(objects) => cleared.count(&kind, &objects),
                Err(error) => cleared.errors.push(error),
            }
        }
        if !cleared.errors.is_empty() || !cleared.remaining.is_empty() {
            break;
        }
    }
    cleared
}

impl Cleared {
    fn count(&mut self, kind: &Kind, objects: &[PartialObjectMeta<DynamicObject>]) {
        if objects.is_empty() {
            return;
        }
        let name = format!("{}.{}", kind.resource.plural, kind.resource.group);
        self.remaining.insert(name, objects.len());
        for finalizer in objects.iter().flat_map(|object| object.finalizers()) {
            *self.finalizers.entry(finalizer.clone()).or_default() += 1;
        }
    }
}

/// Deletes all objects of a kind and says which are still there.
async fn clear_kind(
    client: &Client,
    namespace: &str,
    kind: &Kind,
) -> Result<Vec<PartialObjectMeta<DynamicObject>>, Error> {
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &kind.resource);
    let everything = ListParams::default();
    // Most kinds have nothing there.
    if api.list_metadata(&everything.clone().limit(1)).await?.items.is_empty() {
        return Ok(Vec::new());
    }
    match api.delete_collection(&DeleteParams::background(), &everything).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 405 => {
            for object in api.list_metadata(&everything).await? {
                found(api.delete(&object.name_any(), &DeleteParams::background()).await)?;
            }
        }
        Err(error) => return Err(error.into()),
    }
    Ok(api.list_metadata(&everything).await?.items)
}
