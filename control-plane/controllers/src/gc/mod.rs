//! Garbage collection by owner: what nobody owns any more goes; deletion in the foreground waits for
//! dependents, deletion that orphans lets them go free.

mod graph;
mod metadata;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::core::metadata::PartialObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::error::{Error, found};
use crate::kinds::{self, Kind};
use crate::queue::{self, Controller, Queue};
use graph::{FOREGROUND, Graph, Node, ORPHAN, Owner, Uid, Work};
use metadata::Lean;

const CONCURRENCY: usize = 32;
/// How often the server is asked for kinds that are new.
const REDISCOVER: Duration = Duration::from_secs(30);
/// So many owners that were found to be gone are remembered.
const REMEMBERED: usize = 2000;

type Metadata = PartialObjectMeta<DynamicObject>;

pub(crate) async fn run(context: Context) {
    let queue = Queue::new();
    let collector = Arc::new(Collector {
        context: context.clone(),
        graph: Mutex::default(),
        kinds: Mutex::default(),
        absent: Mutex::default(),
        queue: queue.clone(),
    });
    // Nothing is judged before all is known: each absence would have to be asked for.
    let first = collector.discover().await;
    for mut synced in first {
        tokio::select! {
            () = context.shutdown.cancelled() => return,
            _ = synced.wait_for(|synced| *synced) => {}
        }
    }
    let rediscovery = async {
        loop {
            tokio::select! {
                () = context.shutdown.cancelled() => return,
                () = tokio::time::sleep(REDISCOVER) => {}
            }
            collector.discover_once().await;
        }
    };
    tokio::join!(queue::work(collector.clone(), queue, CONCURRENCY, context.shutdown.clone()), rediscovery);
}

/// Group and kind.
type KindKey = (String, String);

struct Watched {
    kind: Arc<Kind>,
    stop: CancellationToken,
}

struct Collector {
    context: Context,
    graph: Mutex<Graph>,
    kinds: Mutex<HashMap<KindKey, Watched>>,
    absent: Mutex<Absent>,
    queue: Queue<Work>,
}

/// Owners known to be gone; a uid never comes back.
#[derive(Default)]
struct Absent {
    uids: HashSet<Uid>,
    order: VecDeque<Uid>,
}

impl Absent {
    fn insert(&mut self, uid: Uid) {
        if self.uids.insert(uid.clone()) {
            self.order.push_back(uid);
        }
        while self.order.len() > REMEMBERED {
            if let Some(oldest) = self.order.pop_front() {
                self.uids.remove(&oldest);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What an owner turned out to be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    Solid,
    Gone,
    /// Goes once its dependents are gone.
    Waiting,
}

impl Controller for Collector {
    const NAME: &'static str = "garbage-collector";
    type Key = Work;

    async fn reconcile(&self, work: &Work) -> Result<Option<Duration>, Error> {
        match work {
            Work::Delete(uid) => self.judge(uid).await,
            Work::Orphan(uid) => self.orphan(uid).await,
        }
    }
}

impl Collector {
    /// Discovers until it succeeds once.
    async fn discover(self: &Arc<Self>) -> Vec<tokio::sync::watch::Receiver<bool>> {
        let mut wait = Duration::from_millis(50);
        loop {
            if let Some(synced) = self.discover_once().await {
                return synced;
            }
            tokio::select! {
                () = self.context.shutdown.cancelled() => return Vec::new(),
                () = tokio::time::sleep(wait) => {}
            }
            wait = (wait * 2).min(REDISCOVER);
        }
    }

    /// Watches kinds that are new and no longer those that are gone.
    async fn discover_once(self: &Arc<Self>) -> Option<Vec<tokio::sync::watch::Receiver<bool>>> {
        let found = match kinds::deletable(&self.context.client).await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "kinds not discovered; trying again");
                return None;
            }
        };
        let mut synced = Vec::new();
        let mut kinds = lock(&self.kinds);
        let mut current = HashSet::new();
        for kind in found {
            // Nobody owns them and there are many.
            if kind.resource.kind == "Event" && matches!(kind.resource.group.as_str(), "" | "events.k8s.io") {
                continue;
            }
            let key = (kind.resource.group.clone(), kind.resource.kind.clone());
            current.insert(key.clone());
            if kinds.contains_key(&key) {
                continue;
            }
            let (kind, stop) = (Arc::new(kind), self.context.shutdown.child_token());
            let (sender, receiver) = tokio::sync::watch::channel(false);
            tokio::spawn(self.clone().follow(kind.clone(), stop.clone(), sender));
            synced.push(receiver);
            kinds.insert(key, Watched { kind, stop });
        }
        kinds.retain(|key, watched| {
            let keep = current.contains(key);
            if !keep {
                watched.stop.cancel();
            }
            keep
        });
        Some(synced)
    }

    /// Keeps the graph up to date with one kind.
    async fn follow(
        self: Arc<Self>,
        kind: Arc<Kind>,
        stop: CancellationToken,
        synced: tokio::sync::watch::Sender<bool>,
    ) {
        let api: Api<Lean> = Api::all_with(self.context.client.clone(), &kind.resource);
        let mut events = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
        let (mut known, mut listed) = (HashSet::new(), HashSet::new());
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => break,
                event = events.next() => event,
            };
            match event {
                None => break,
                Some(Ok(watcher::Event::Init)) => listed.clear(),
                Some(Ok(watcher::Event::InitApply(object))) => {
                    listed.extend(object.metadata.uid.clone());
                    self.put(&kind, &object);
                }
                Some(Ok(watcher::Event::InitDone)) => {
                    for uid in known.difference(&listed) {
                        self.remove(uid);
                    }
                    known = std::mem::take(&mut listed);
                    synced.send_replace(true);
                }
                Some(Ok(watcher::Event::Apply(object))) => {
                    known.extend(object.metadata.uid.clone());
                    self.put(&kind, &object);
                }
                Some(Ok(watcher::Event::Delete(object))) => {
                    if let Some(uid) = &object.metadata.uid {
                        known.remove(uid);
                        self.remove(uid);
                    }
                }
                Some(Err(error)) => {
                    tracing::warn!(kind = kind.resource.kind, %error, "watch failed; trying again");
                }
            }
        }
        known.iter().for_each(|uid| self.remove(uid));
        synced.send_replace(true);
    }

    fn put(&self, kind: &Arc<Kind>, object: &Lean) {
        let work = lock(&self.graph).put(kind, &object.metadata);
        work.into_iter().for_each(|work| self.queue.add(work));
    }

    fn remove(&self, uid: &str) {
        let work = lock(&self.graph).remove(uid);
        work.into_iter().for_each(|work| self.queue.add(work));
    }

    fn api(&self, kind: &Kind, namespace: Option<&str>) -> Api<DynamicObject> {
        let client = self.context.client.clone();
        match namespace.filter(|_| kind.namespaced) {
            Some(namespace) => Api::namespaced_with(client, namespace, &kind.resource),
            None => Api::all_with(client, &kind.resource),
        }
    }

    /// The object as the server has it; `None` when it is gone or another.
    async fn live(&self, node: &Node, uid: &str) -> Result<Option<Metadata>, Error> {
        let api = self.api(&node.kind, node.namespace.as_deref());
        let live = found(api.get_metadata(&node.name).await)?;
        Ok(live.filter(|live| live.metadata.uid.as_deref() == Some(uid)))
    }

    /// Decides whether an object has to go, and has it go.
    async fn judge(&self, uid: &Uid) -> Result<Option<Duration>, Error> {
        let (node, blocking) = {
            let graph = lock(&self.graph);
            let Some(node) = graph.node(uid) else { return Ok(None) };
            let settled = node.owners.iter().all(|owner| graph.is_solid(node, owner));
            if settled && !node.foreground {
                return Ok(None);
            }
            (node.clone(), node.foreground.then(|| graph.blocking(uid)))
        };
        match blocking {
            Some(blocking) if blocking.is_empty() => {
                self.remove_finalizer(&node, uid, FOREGROUND).await?;
                return Ok(None);
            }
            Some(blocking) => {
                blocking.into_iter().for_each(|uid| self.queue.add(Work::Delete(uid)));
                return Ok(None);
            }
            None if node.deleting => return Ok(None),
            None => {}
        }
        let Some(live) = self.live(&node, uid).await? else {
            self.remove(uid);
            return Ok(None);
        };
        if live.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let owners = live.metadata.owner_references.clone().unwrap_or_default();
        let mut standings = Vec::with_capacity(owners.len());
        for owner in &owners {
            standings.push(self.standing(&node, owner).await?);
        }
        let any = |standing| standings.contains(&standing);
        if owners.is_empty() || !(any(Standing::Gone) || any(Standing::Waiting)) {
            return Ok(None);
        }
        let api = self.api(&node.kind, node.namespace.as_deref());
        if any(Standing::Solid) {
            // Somebody still owns it: only the references to those that go are dropped.
            let kept: Vec<&OwnerReference> = owners
                .iter()
                .zip(&standings)
                .filter(|(_, standing)| **standing == Standing::Solid)
                .map(|(owner, _)| owner)
                .collect();
            self.patch(&api, &live, json!({ "ownerReferences": kept })).await?;
            return Ok(None);
        }
        let finalizers = live.finalizers();
        let has = |finalizer: &str| finalizers.iter().any(|it| it == finalizer);
        let dependents: Vec<Node> = {
            let graph = lock(&self.graph);
            graph.dependents(uid).iter().filter_map(|uid| graph.node(uid).cloned()).collect()
        };
        let policy = if any(Standing::Waiting) && !dependents.is_empty() {
            if dependents.iter().any(|dependent| dependent.foreground) {
                // A circle: somebody has to be let go first.
                let mut freed = owners.clone();
                freed.iter_mut().for_each(|owner| owner.block_owner_deletion = Some(false));
                self.patch(&api, &live, json!({ "ownerReferences": freed })).await?;
                return Ok(Some(Duration::from_millis(100)));
            }
            PropagationPolicy::Foreground
        } else if has(ORPHAN) {
            PropagationPolicy::Orphan
        } else if has(FOREGROUND) {
            PropagationPolicy::Foreground
        } else {
            PropagationPolicy::Background
        };
        tracing::debug!(
            kind = node.kind.resource.kind,
            namespace = node.namespace,
            name = node.name,
            ?policy,
            "its owners are gone"
        );
        let params = DeleteParams {
            propagation_policy: Some(policy),
            // Exactly what was judged: owners may have changed since.
            preconditions: Some(Preconditions {
                uid: Some(uid.clone()),
                resource_version: live.metadata.resource_version.clone(),
            }),
            ..Default::default()
        };
        found(api.delete(&node.name, &params).await)?;
        Ok(None)
    }

    async fn standing(&self, node: &Node, reference: &OwnerReference) -> Result<Standing, Error> {
        let owner = Owner::from(reference);
        if lock(&self.graph).is_solid(node, &owner) {
            return Ok(Standing::Solid);
        }
        if lock(&self.absent).uids.contains(&owner.uid) {
            return Ok(Standing::Gone);
        }
        let key = (owner.group.clone(), owner.kind.clone());
        let Some(kind) = lock(&self.kinds).get(&key).map(|watched| watched.kind.clone()) else {
            // Nobody can say; who made the reference has to.
            tracing::debug!(kind = owner.kind, group = owner.group, "an owner of an unknown kind");
            return Ok(Standing::Solid);
        };
        if kind.namespaced && node.namespace.is_none() {
            tracing::debug!(name = node.name, "a cluster-scoped object with an owner in a namespace");
            return Ok(Standing::Solid);
        }
        let api = self.api(&kind, node.namespace.as_deref());
        let live = found(api.get_metadata(&owner.name).await)?;
        Ok(match live.filter(|live| live.metadata.uid.as_deref() == Some(&owner.uid)) {
            None => {
                lock(&self.absent).insert(owner.uid);
                Standing::Gone
            }
            Some(live)
                if live.metadata.deletion_timestamp.is_some()
                    && live.finalizers().iter().any(|it| it == FOREGROUND) =>
            {
                Standing::Waiting
            }
            Some(_) => Standing::Solid,
        })
    }

    /// Lets all dependents go free, then the object itself.
    async fn orphan(&self, uid: &Uid) -> Result<Option<Duration>, Error> {
        let (node, dependents) = {
            let graph = lock(&self.graph);
            let Some(node) = graph.node(uid).filter(|node| node.orphaning) else { return Ok(None) };
            let dependents: Vec<(Uid, Node)> = graph
                .dependents(uid)
                .into_iter()
                .filter_map(|uid| graph.node(&uid).cloned().map(|node| (uid, node)))
                .collect();
            (node.clone(), dependents)
        };
        let freed: Vec<Result<(), Error>> = futures::stream::iter(dependents)
            .map(|(dependent, of)| async move {
                let Some(live) = self.live(&of, &dependent).await? else { return Ok(()) };
                let mut owners = live.metadata.owner_references.clone().unwrap_or_default();
                let before = owners.len();
                owners.retain(|owner| owner.uid != *uid);
                if owners.len() == before {
                    return Ok(());
                }
                let api = self.api(&of.kind, of.namespace.as_deref());
                self.patch(&api, &live, json!({ "ownerReferences": owners })).await
            })
            .buffer_unordered(CONCURRENCY)
            .collect()
            .await;
        freed.into_iter().collect::<Result<(), Error>>()?;
        self.remove_finalizer(&node, uid, ORPHAN).await?;
        Ok(None)
    }

    async fn remove_finalizer(&self, node: &Node, uid: &str, finalizer: &str) -> Result<(), Error> {
        let Some(live) = self.live(node, uid).await? else { return Ok(()) };
        if live.metadata.deletion_timestamp.is_none() {
            return Ok(());
        }
        let mut finalizers = live.finalizers().to_vec();
        finalizers.retain(|it| it != finalizer);
        if finalizers.len() == live.finalizers().len() {
            return Ok(());
        }
        let api = self.api(&node.kind, node.namespace.as_deref());
        self.patch(&api, &live, json!({ "finalizers": finalizers })).await
    }

    /// Changes the metadata of exactly this state of an object.
    async fn patch(&self, api: &Api<DynamicObject>, live: &Metadata, change: serde_json::Value) -> Result<(), Error> {
        let mut metadata = change;
        metadata["uid"] = json!(live.metadata.uid);
        metadata["resourceVersion"] = json!(live.metadata.resource_version);
        let patch = Patch::Merge(json!({ "metadata": metadata }));
        found(api.patch_metadata(&live.name_any(), &PatchParams::default(), &patch).await)?;
        Ok(())
    }
}
