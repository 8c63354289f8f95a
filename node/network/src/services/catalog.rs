//! The Services of the cluster and their EndpointSlices as they are now: what the data plane and
//! the cluster's DNS read.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, PoisonError, RwLock};

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use sampan_client::{Change, Informers};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::model::{self, Key};

/// Says which Service a slice belongs to.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

#[derive(Default)]
pub(crate) struct State {
    services: HashMap<Key, Arc<Service>>,
    slices: HashMap<Key, BTreeMap<String, Arc<EndpointSlice>>>,
    by_cluster_ip: HashMap<Ipv4Addr, Key>,
    /// Which Services have an endpoint at an address.
    by_endpoint: HashMap<Ipv4Addr, BTreeSet<Key>>,
    namespaces: HashMap<String, usize>,
    changed: HashSet<Key>,
}

fn key(object: &impl ResourceExt) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

fn addresses(slice: &EndpointSlice) -> impl Iterator<Item = Ipv4Addr> {
    slice.endpoints.iter().flatten().flat_map(|it| it.addresses.iter()).filter_map(|text| text.parse().ok())
}

impl State {
    pub(crate) fn service(&self, namespace: &str, name: &str) -> Option<&Arc<Service>> {
        self.services.get(&(namespace.to_owned(), name.to_owned()))
    }

    pub(crate) fn has_namespace(&self, namespace: &str) -> bool {
        self.namespaces.contains_key(namespace)
    }

    pub(crate) fn slices(&self, key: &Key) -> impl Iterator<Item = &EndpointSlice> + Clone {
        self.slices.get(key).into_iter().flat_map(|slices| slices.values()).map(AsRef::as_ref)
    }

    pub(crate) fn by_cluster_ip(&self, address: Ipv4Addr) -> Option<&Key> {
        self.by_cluster_ip.get(&address)
    }

    pub(crate) fn by_endpoint(&self, address: Ipv4Addr) -> impl Iterator<Item = &Key> {
        self.by_endpoint.get(&address).into_iter().flatten()
    }

    pub(crate) fn apply_service(&mut self, change: &Change<Service>) {
        let key = key(&**change.object());
        let new = match change {
            Change::Added(new) | Change::Updated { new, .. } => Some(new.clone()),
            Change::Deleted(_) => None,
        };
        let old = match new.clone() {
            Some(new) => self.services.insert(key.clone(), new),
            None => self.services.remove(&key),
        };
        for address in old.iter().flat_map(|it| model::cluster_ips(it)) {
            // The address may have gone to another Service meanwhile.
            if self.by_cluster_ip.get(&address) == Some(&key) {
                self.by_cluster_ip.remove(&address);
            }
        }
        for address in new.iter().flat_map(|it| model::cluster_ips(it)) {
            self.by_cluster_ip.insert(address, key.clone());
        }
        match (old.is_some(), new.is_some()) {
            (false, true) => *self.namespaces.entry(key.0.clone()).or_default() += 1,
            (true, false) => {
                if let Some(count) = self.namespaces.get_mut(&key.0) {
                    *count -= 1;
                    if *count == 0 {
                        self.namespaces.remove(&key.0);
                    }
                }
            }
            _ => {}
        }
        self.changed.insert(key);
    }

    pub(crate) fn apply_slice(&mut self, change: &Change<EndpointSlice>) {
        let slice = change.object();
        let namespace = slice.namespace().unwrap_or_default();
        let owner = |it: &EndpointSlice| it.labels().get(SERVICE_NAME).map(|name| (namespace.clone(), name.clone()));
        let old = match change {
            Change::Updated { old, .. } => Some(old),
            Change::Deleted(old) => Some(old),
            Change::Added(_) => None,
        };
        if let Some((old, key)) = old.and_then(|old| Some((old, owner(old)?))) {
            if let Some(slices) = self.slices.get_mut(&key) {
                slices.remove(&old.name_any());
                if slices.is_empty() {
                    self.slices.remove(&key);
                }
            }
            let left: HashSet<Ipv4Addr> = self.slices(&key).flat_map(addresses).collect();
            for address in addresses(old).filter(|address| !left.contains(address)) {
                if let Some(keys) = self.by_endpoint.get_mut(&address) {
                    keys.remove(&key);
                    if keys.is_empty() {
                        self.by_endpoint.remove(&address);
                    }
                }
            }
            self.changed.insert(key);
        }
        if let Change::Added(new) | Change::Updated { new, .. } = change
            && let Some(key) = owner(new)
        {
            self.slices.entry(key.clone()).or_default().insert(new.name_any(), new.clone());
            for address in addresses(new) {
                self.by_endpoint.entry(address).or_default().insert(key.clone());
            }
            self.changed.insert(key);
        }
    }
}

/// Shared by those who read it; kept by [`Catalog::follow`].
#[derive(Clone, Default)]
pub(crate) struct Catalog {
    state: Arc<RwLock<State>>,
    notify: Arc<Notify>,
}

impl Catalog {
    pub(crate) fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write(&self, write: impl FnOnce(&mut State)) {
        write(&mut self.state.write().unwrap_or_else(PoisonError::into_inner));
        self.notify.notify_one();
    }

    /// Waits until something changed since [`Self::take_changed`].
    pub(crate) async fn changed(&self) {
        self.notify.notified().await;
    }

    /// The Services that are to be looked at again.
    pub(crate) fn take_changed(&self) -> HashSet<Key> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut state.changed)
    }

    pub(crate) fn apply_service(&self, change: &Change<Service>) {
        self.write(|state| state.apply_service(change));
    }

    pub(crate) fn apply_slice(&self, change: &Change<EndpointSlice>) {
        self.write(|state| state.apply_slice(change));
    }

    /// Keeps up with the cluster; returns when the first lists are in, or with false when it ended before.
    pub(crate) async fn follow(&self, informers: &Informers, shutdown: CancellationToken) -> bool {
        let services = informers.all::<Service>();
        let slices = informers.all::<EndpointSlice>();
        let both = async { tokio::join!(services.synced(), slices.synced()) };
        tokio::select! {
            _ = both => {}
            () = shutdown.cancelled() => return false,
        }
        let mut services = services.subscribe();
        let mut slices = slices.subscribe();
        // What is there is there before anybody reads.
        while let Ok(change) = services.try_recv() {
            self.apply_service(&change);
        }
        while let Ok(change) = slices.try_recv() {
            self.apply_slice(&change);
        }
        let catalog = self.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    Some(change) = services.recv() => catalog.apply_service(&change),
                    Some(change) = slices.recv() => catalog.apply_slice(&change),
                    else => return,
                }
            }
        });
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::super::model::tests::{service, slice};
    use super::*;

    fn web() -> Key {
        ("shop".to_owned(), "web".to_owned())
    }

    #[test]
    fn forgets_what_is_gone() {
        let mut state = State::default();
        let one = Arc::new(service(json!({ "clusterIP": "10.96.0.7" })));
        let at = |address: &str| Arc::new(slice(json!([]), json!([{ "addresses": [address] }])));
        let (first, second) = (at("10.0.0.1"), at("10.0.0.2"));
        state.apply_service(&Change::Added(one.clone()));
        state.apply_slice(&Change::Added(first.clone()));
        assert_eq!(state.by_cluster_ip("10.96.0.7".parse().unwrap()), Some(&web()));
        assert_eq!(state.by_endpoint("10.0.0.1".parse().unwrap()).count(), 1);
        state.apply_slice(&Change::Updated { old: first, new: second.clone() });
        assert_eq!(state.by_endpoint("10.0.0.1".parse().unwrap()).count(), 0);
        assert_eq!(state.by_endpoint("10.0.0.2".parse().unwrap()).count(), 1);
        assert!(state.has_namespace("shop"));
        state.apply_service(&Change::Deleted(one));
        state.apply_slice(&Change::Deleted(second));
        assert!(state.by_cluster_ip.is_empty() && state.by_endpoint.is_empty() && state.slices.is_empty());
        assert!(!state.has_namespace("shop"));
        assert_eq!(state.changed, [web()].into());
    }

    #[test]
    fn an_address_that_moved_stays_with_its_new_service() {
        let mut state = State::default();
        let old = Arc::new(service(json!({ "clusterIP": "10.96.0.7" })));
        let mut new = service(json!({ "clusterIP": "10.96.0.7" }));
        new.metadata.name = Some("other".to_owned());
        state.apply_service(&Change::Added(old.clone()));
        state.apply_service(&Change::Added(Arc::new(new)));
        state.apply_service(&Change::Deleted(old));
        assert_eq!(state.by_cluster_ip("10.96.0.7".parse().unwrap()).unwrap().1, "other");
    }
}
