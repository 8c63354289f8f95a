//! EndpointSlices of Endpoints that users write for Services without a selector.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{EndpointAddress, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use sampan_client::{Index, Informer};

use super::select::Family;
use super::{CONCURRENCY, Key, MANAGED_BY, SERVICE_NAME, bucket, diff, key, select};
use crate::context::Context;
use crate::error::Error;
use crate::owner::{self, Written};
use crate::queue::{self, Controller, Queue};

const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Annotations that are about the Endpoints object itself.
const OWN: [&str; 3] =
    ["kubectl.kubernetes.io/last-applied-configuration", "endpoints.kubernetes.io/last-change-trigger-time", LEADER];
/// How many addresses of a subset are mirrored.
const CAPACITY: usize = 1000;

pub async fn run(context: Context) {
    let services = context.informers.all::<Service>();
    let endpoints = context.informers.all::<Endpoints>();
    let slices = context.informers.all::<EndpointSlice>();
    let controller = Arc::new(Mirror {
        by_service: super::index(&slices),
        services: services.clone(),
        endpoints: endpoints.clone(),
        slices: slices.clone(),
        written: Written::new(),
        context: context.clone(),
    });
    let queue = Queue::new();
    services.synced().await;
    endpoints.synced().await;
    slices.synced().await;
    let keys = queue.clone();
    queue::feed(&endpoints, &context.shutdown, move |change| keys.add(key(&change.object().metadata)));
    let keys = queue.clone();
    queue::feed(&services, &context.shutdown, move |change| keys.add(key(&change.object().metadata)));
    let keys = queue.clone();
    queue::feed(&slices, &context.shutdown, move |change| {
        let slice = change.object();
        if slice.labels().get(MANAGED_BY).is_some_and(|manager| manager == MANAGER)
            && let Some(service) = slice.labels().get(SERVICE_NAME)
        {
            keys.add((slice.namespace().unwrap_or_default(), service.clone()));
        }
    });
    queue::work(controller, queue, CONCURRENCY, context.shutdown).await;
}

struct Mirror {
    context: Context,
    services: Informer<Service>,
    endpoints: Informer<Endpoints>,
    slices: Informer<EndpointSlice>,
    by_service: Index<EndpointSlice>,
    written: Written<Key>,
}

impl Controller for Mirror {
    const NAME: &'static str = "endpointslicemirroring";
    type Key = Key;

    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        self.written.seen(key, &self.slices).await;
        let existing = self.by_service.get(&bucket(&key.0, &key.1, MANAGER));
        let endpoints = self.endpoints.get(&key.0, &key.1);
        let service = self.services.get(&key.0, &key.1);
        let source = match (&endpoints, &service) {
            (Some(endpoints), Some(service)) if is_mirrored(endpoints, service) => endpoints,
            _ => {
                let plan = diff::Plan { delete: existing, ..Default::default() };
                let none = EndpointSlice::default();
                super::carry_out(&self.context.client, key, &self.written, plan, &none).await?;
                return Ok(None);
            }
        };
        let labels = labels(source);
        let annotations = annotations(source);
        for family in [Family::V4, Family::V6] {
            let of_family: Vec<_> =
                existing.iter().filter(|slice| slice.address_type == family.name()).cloned().collect();
            let wanted = wanted(source, family);
            let plan = if wanted.is_empty() {
                diff::Plan { delete: of_family, ..Default::default() }
            } else {
                diff::plan(&of_family, wanted, |slice| {
                    let stale = slice.labels() != &labels || slice.annotations() != &annotations;
                    slice.metadata.labels = Some(labels.clone());
                    slice.metadata.annotations = (!annotations.is_empty()).then(|| annotations.clone());
                    stale
                })
            };
            let new = EndpointSlice {
                metadata: ObjectMeta {
                    generate_name: Some(format!("{}-", key.1)),
                    namespace: Some(key.0.clone()),
                    labels: Some(labels.clone()),
                    annotations: (!annotations.is_empty()).then(|| annotations.clone()),
                    owner_references: Some(vec![owner::reference(&**source)]),
                    ..Default::default()
                },
                address_type: family.name().to_owned(),
                ..Default::default()
            };
            super::carry_out(&self.context.client, key, &self.written, plan, &new).await?;
        }
        Ok(None)
    }
}

fn is_mirrored(endpoints: &Endpoints, service: &Service) -> bool {
    let selects =
        service.spec.as_ref().and_then(|spec| spec.selector.as_ref()).is_some_and(|selector| !selector.is_empty());
    !selects
        && endpoints.metadata.deletion_timestamp.is_none()
        && endpoints.labels().get(SKIP).is_none_or(|skip| skip != "true")
        && !endpoints.annotations().contains_key(LEADER)
}

fn labels(endpoints: &Endpoints) -> BTreeMap<String, String> {
    let mut labels = endpoints.labels().clone();
    labels.remove(select::HEADLESS);
    labels.insert(SERVICE_NAME.to_owned(), endpoints.name_any());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    labels
}

fn annotations(endpoints: &Endpoints) -> BTreeMap<String, String> {
    let mut annotations = endpoints.annotations().clone();
    annotations.retain(|name, _| !OWN.contains(&name.as_str()));
    annotations
}

/// The endpoints of a family by their ports; subsets with the same ports are taken together.
fn wanted(endpoints: &Endpoints, family: Family) -> Vec<(Vec<EndpointPort>, Vec<Endpoint>)> {
    let mut groups: BTreeMap<Vec<String>, (Vec<EndpointPort>, Vec<Endpoint>)> = BTreeMap::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ports: Vec<EndpointPort> = subset
            .ports
            .iter()
            .flatten()
            .map(|port| EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(port.port),
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
                app_protocol: port.app_protocol.clone(),
            })
            .collect();
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let not_ready = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
        let mut of_family: Vec<Endpoint> = ready
            .chain(not_ready)
            .filter(|(address, _)| Family::of(&address.ip) == Some(family))
            .map(|(address, ready)| endpoint(address, ready))
            .take(CAPACITY)
            .collect();
        if !of_family.is_empty() {
            let group = groups.entry(diff::port_key(&ports)).or_insert_with(|| (ports, Vec::new()));
            group.1.append(&mut of_family);
        }
    }
    groups.into_values().collect()
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..Default::default() }),
        hostname: address.hostname.clone(),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    #[test]
    fn what_users_write_is_mirrored_by_family_and_ports() {
        let endpoints: Endpoints = serde_json::from_value(json!({
            "metadata": { "name": "db", "annotations": {
                "kubectl.kubernetes.io/last-applied-configuration": "{}", "note": "x" } },
            "subsets": [
                { "addresses": [{ "ip": "192.0.2.1" }, { "ip": "2001:db8::1" }], "ports": [{ "port": 5432 }] },
                { "notReadyAddresses": [{ "ip": "192.0.2.2" }], "ports": [{ "port": 5432 }] },
                { "addresses": [{ "ip": "192.0.2.3" }], "ports": [{ "port": 1 }] },
            ],
        }))
        .unwrap();
        let four = wanted(&endpoints, Family::V4);
        assert_eq!(four.len(), 2);
        assert_eq!(four.iter().map(|(_, of)| of.len()).sum::<usize>(), 3);
        assert_eq!(wanted(&endpoints, Family::V6).len(), 1);
        assert_eq!(annotations(&endpoints).len(), 1);
        let open: Service = serde_json::from_value(json!({ "spec": {} })).unwrap();
        let selecting: Service = serde_json::from_value(json!({ "spec": { "selector": { "a": "b" } } })).unwrap();
        assert!(is_mirrored(&endpoints, &open) && !is_mirrored(&endpoints, &selecting));
        let mut skipped = endpoints;
        skipped.metadata.labels = Some([(SKIP.to_owned(), "true".to_owned())].into());
        assert!(!is_mirrored(&skipped, &open));
    }
}
