//! Endpoints of Services with a selector.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use sampan_client::{Change, EventKind, EventRecorder, Informer};

use super::select::Family;
use super::{CONCURRENCY, Key, key, select};
use crate::context::Context;
use crate::error::{Error, found, namespace_terminating};
use crate::pod;
use crate::queue::{self, Controller, Queue};

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// How many addresses one object holds at most.
const CAPACITY: usize = 1000;
/// One object holds all addresses: with many pods each write is large.
const PACE: Duration = Duration::from_millis(200);

pub async fn run(context: Context) {
    let services = context.informers.all::<Service>();
    let pods = context.informers.all::<Pod>();
    let endpoints = context.informers.all::<Endpoints>();
    let controller = Arc::new(Legacy {
        events: context.recorder("endpoint-controller"),
        services: services.clone(),
        pods: pods.clone(),
        endpoints: endpoints.clone(),
        context: context.clone(),
    });
    let queue = Queue::paced(PACE);
    services.synced().await;
    pods.synced().await;
    endpoints.synced().await;
    let keys = queue.clone();
    queue::feed(&services, &context.shutdown, move |change| keys.add(key(&change.object().metadata)));
    let (keys, of) = (queue.clone(), services.clone());
    queue::feed(&pods, &context.shutdown, move |change| {
        super::services_of(&change, &of).into_iter().for_each(|key| keys.add(key));
    });
    let keys = queue.clone();
    queue::feed(&endpoints, &context.shutdown, move |change| {
        let is_ours = change.object().labels().get(MANAGED_BY).is_some_and(|by| by == MANAGER);
        if is_ours || matches!(change, Change::Deleted(_)) {
            keys.add(key(&change.object().metadata));
        }
    });
    queue::work(controller, queue, CONCURRENCY, context.shutdown).await;
}

struct Legacy {
    context: Context,
    events: EventRecorder,
    services: Informer<Service>,
    pods: Informer<Pod>,
    endpoints: Informer<Endpoints>,
}

impl Controller for Legacy {
    const NAME: &'static str = "endpoints";
    type Key = Key;

    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let api: Api<Endpoints> = Api::namespaced(self.context.client.clone(), &key.0);
        let current = self.endpoints.get(&key.0, &key.1);
        let Some(service) = self.services.get(&key.0, &key.1) else {
            // They have no owner: they go with the Service of their name.
            if let Some(current) = current.filter(|it| it.labels().contains_key(MANAGED_BY)) {
                let params = DeleteParams {
                    preconditions: Some(Preconditions { uid: current.metadata.uid.clone(), resource_version: None }),
                    ..Default::default()
                };
                found(api.delete(&key.1, &params).await)?;
            }
            return Ok(None);
        };
        let Some(selector) = select::selector(&service) else { return Ok(None) };
        if service.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let with_terminating = select::publishes_not_ready(&service);
        let mut pods = self.pods.list_in(&key.0);
        pods.retain(|pod| select::selects(selector, pod) && select::belongs(pod, with_terminating));
        let (subsets, truncated) = subsets(&service, &pods);
        let wanted = endpoints(&service, current.as_deref(), subsets, truncated);
        let written = match current {
            Some(current) if *current == wanted => return Ok(None),
            Some(_) => api.replace(&key.1, &PostParams::default(), &wanted).await,
            None => api.create(&PostParams::default(), &wanted).await,
        };
        match written {
            Err(error) if namespace_terminating(&error) => Ok(None),
            Err(error) => {
                let error = Error::from(error);
                if !error.is_passing() {
                    let text = format!("Failed to update endpoint {}/{}: {}", key.0, key.1, error.text());
                    let reason = "FailedToUpdateEndpoint";
                    self.events.record(&wanted, EventKind::Warning, reason, text);
                }
                Err(error)
            }
            Ok(_) => Ok(None),
        }
    }
}

fn endpoints(
    service: &Service,
    current: Option<&Endpoints>,
    subsets: Vec<EndpointSubset>,
    truncated: bool,
) -> Endpoints {
    let mut labels = service.labels().clone();
    labels.remove(select::HEADLESS);
    if select::is_headless(service) {
        labels.insert(select::HEADLESS.to_owned(), String::new());
    }
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    let mut meta = current.map_or_else(
        || ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            ..Default::default()
        },
        |current| current.metadata.clone(),
    );
    meta.labels = Some(labels);
    let mut annotations = meta.annotations.take().unwrap_or_default();
    annotations.remove(OVER_CAPACITY);
    if truncated {
        annotations.insert(OVER_CAPACITY.to_owned(), "truncated".to_owned());
    }
    meta.annotations = (!annotations.is_empty()).then_some(annotations);
    Endpoints { metadata: meta, subsets: (!subsets.is_empty()).then_some(subsets) }
}

/// What orders ports: name, protocol, number.
type PortKey = (Option<String>, String, i32, Option<String>);
/// What orders addresses.
type AddressKey = (String, Option<String>);

#[derive(Default)]
struct Addresses {
    ready: BTreeMap<AddressKey, EndpointAddress>,
    not_ready: BTreeMap<AddressKey, EndpointAddress>,
}

/// The pods by ports: ports that the same pods have are together. Also whether some were left out.
fn subsets(service: &Service, pods: &[Arc<Pod>]) -> (Vec<EndpointSubset>, bool) {
    let family = select::families(service).first().copied().unwrap_or(Family::V4);
    let eager = select::publishes_not_ready(service);
    let portless = service.spec.as_ref().and_then(|it| it.ports.as_ref()).is_none_or(Vec::is_empty);
    let mut pods: Vec<(&Arc<Pod>, bool)> = pods.iter().map(|pod| (pod, eager || pod::is_ready(pod))).collect();
    // Who does not fit: those that are not ready first.
    pods.sort_by_key(|(_, ready)| !ready);
    let truncated = pods.len() > CAPACITY;
    pods.truncate(CAPACITY);

    let mut by_port: BTreeMap<Option<PortKey>, Addresses> = BTreeMap::new();
    for (pod, ready) in pods {
        let Some(ip) = select::addresses(pod, family).into_iter().next() else { continue };
        let address = EndpointAddress {
            hostname: select::hostname(pod, service),
            node_name: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
            target_ref: Some(select::target(pod)),
            ip: ip.clone(),
        };
        let key = (ip, pod.metadata.uid.clone());
        let mut add = |port: Option<PortKey>| {
            let addresses = by_port.entry(port).or_default();
            let of = if ready { &mut addresses.ready } else { &mut addresses.not_ready };
            of.insert(key.clone(), address.clone());
        };
        if portless && select::is_headless(service) {
            add(None);
        }
        for port in select::ports(service, pod) {
            let name = port.name.filter(|name| !name.is_empty());
            add(Some((name, port.protocol.unwrap_or_default(), port.port.unwrap_or_default(), port.app_protocol)));
        }
    }
    // Ports with the same addresses are one subset.
    type Same = (BTreeSet<AddressKey>, BTreeSet<AddressKey>);
    let mut subsets: BTreeMap<Same, (Vec<EndpointPort>, Addresses)> = BTreeMap::new();
    for (port, addresses) in by_port {
        let keys = |of: &BTreeMap<AddressKey, EndpointAddress>| of.keys().cloned().collect();
        let same: Same = (keys(&addresses.ready), keys(&addresses.not_ready));
        let (ports, _) = subsets.entry(same).or_insert_with(|| (Vec::new(), addresses));
        ports.extend(port.map(|(name, protocol, port, app_protocol)| EndpointPort {
            name,
            port,
            protocol: Some(protocol),
            app_protocol,
        }));
    }
    let list =
        |of: BTreeMap<AddressKey, EndpointAddress>| (!of.is_empty()).then(|| of.into_values().collect::<Vec<_>>());
    let subsets = subsets
        .into_values()
        .map(|(ports, addresses)| EndpointSubset {
            addresses: list(addresses.ready),
            not_ready_addresses: list(addresses.not_ready),
            ports: (!ports.is_empty()).then_some(ports),
        })
        .collect();
    (subsets, truncated)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::{Value, json};

    use super::*;

    fn service(extra: Value) -> Service {
        let mut service = json!({
            "metadata": { "name": "web", "namespace": "n", "labels": { "l": "v" } },
            "spec": { "selector": { "app": "web" }, "clusterIP": "10.1.0.1", "ports": [
                { "name": "a", "port": 80, "targetPort": "a" }, { "name": "b", "port": 81, "targetPort": "b" },
            ]},
        });
        json_patch::merge(&mut service, &extra);
        serde_json::from_value(service).unwrap()
    }

    fn pod(n: usize, ready: bool, ports: &[(&str, i32)]) -> Arc<Pod> {
        let ports: Vec<_> = ports.iter().map(|(name, port)| json!({ "name": name, "containerPort": port })).collect();
        let status = if ready { "True" } else { "False" };
        Arc::new(
            serde_json::from_value(json!({
                "metadata": { "name": format!("p{n}"), "namespace": "n", "uid": format!("u{n}") },
                "spec": { "containers": [{ "name": "c", "ports": ports }] },
                "status": { "podIP": format!("10.0.{}.{}", n / 256, n % 256), "phase": "Running",
                            "conditions": [{ "type": "Ready", "status": status }] },
            }))
            .unwrap(),
        )
    }

    fn summary(subsets: &[EndpointSubset]) -> Vec<(usize, usize, Vec<i32>)> {
        let count = |of: &Option<Vec<EndpointAddress>>| of.as_ref().map_or(0, Vec::len);
        subsets
            .iter()
            .map(|it| {
                (
                    count(&it.addresses),
                    count(&it.not_ready_addresses),
                    it.ports.iter().flatten().map(|port| port.port).collect(),
                )
            })
            .collect()
    }

    #[test]
    fn ports_of_the_same_pods_share_a_subset() {
        let both = [("a", 1), ("b", 2)];
        let (all, _) = subsets(&service(json!({})), &[pod(1, true, &both), pod(2, false, &both)]);
        assert_eq!(summary(&all), [(1, 1, vec![1, 2])]);
        let (all, _) = subsets(&service(json!({})), &[pod(1, true, &both), pod(2, true, &[("a", 1)])]);
        assert_eq!(summary(&all), [(1, 0, vec![2]), (2, 0, vec![1])]);
    }

    #[test]
    fn a_headless_service_needs_no_ports_and_an_eager_one_no_readiness() {
        let headless = service(json!({ "spec": { "clusterIP": "None", "ports": null } }));
        let (all, _) = subsets(&headless, &[pod(1, false, &[])]);
        assert_eq!(summary(&all), [(0, 1, vec![])]);
        let eager = service(json!({ "spec": { "publishNotReadyAddresses": true } }));
        let (all, _) = subsets(&eager, &[pod(1, false, &[("a", 1), ("b", 2)])]);
        assert_eq!(summary(&all), [(1, 0, vec![1, 2])]);
    }

    #[test]
    fn the_ready_ones_stay_when_there_are_too_many() {
        let pods: Vec<_> = (0..1500).map(|n| pod(n, n % 3 == 0, &[("a", 1), ("b", 2)])).collect();
        let (all, truncated) = subsets(&service(json!({})), &pods);
        assert_eq!((summary(&all), truncated), (vec![(500, 500, vec![1, 2])], true));
        let object = endpoints(&service(json!({})), None, all, truncated);
        assert_eq!(object.annotations().get(OVER_CAPACITY).map(String::as_str), Some("truncated"));
        assert_eq!(object.labels().len(), 2);
    }
}
