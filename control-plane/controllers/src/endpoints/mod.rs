//! Which pods answer for a Service: EndpointSlices, the older Endpoints, and slices that mirror
//! Endpoints which users write themselves.

mod diff;
mod legacy;
mod mirror;
mod select;
mod slices;

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use kube::{Client, ResourceExt};
use sampan_client::{Change, Index, Informer};

use crate::context::Context;
use crate::error::{Error, found};
use crate::owner::Written;

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const CONCURRENCY: usize = 8;

/// Namespace and name.
type Key = (String, String);

pub(crate) async fn run(context: Context) {
    tokio::join!(slices::run(context.clone()), legacy::run(context.clone()), mirror::run(context),);
}

fn key(meta: &ObjectMeta) -> Key {
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

/// The Services that a change of a pod concerns.
fn services_of(change: &Change<Pod>, services: &Informer<Service>) -> BTreeSet<Key> {
    let pod = change.object();
    let old = match change {
        Change::Updated { old, new } if !select::differs(old, new) => return BTreeSet::new(),
        Change::Updated { old, .. } => Some(old),
        _ => None,
    };
    let selected = |service: &Service| {
        select::selector(service).is_some_and(|selector| {
            select::selects(selector, pod) || old.is_some_and(|old| select::selects(selector, old))
        })
    };
    services
        .list_in(pod.metadata.namespace.as_deref().unwrap_or_default())
        .iter()
        .filter(|service| selected(service))
        .map(|service| key(&service.metadata))
        .collect()
}

/// The slices of one Service that one controller manages.
fn index(slices: &Informer<EndpointSlice>) -> Index<EndpointSlice> {
    slices.index("service", |slice| {
        let label = |name| slice.labels().get(name).map(String::as_str);
        let (Some(service), Some(manager)) = (label(SERVICE_NAME), label(MANAGED_BY)) else {
            return Vec::new();
        };
        let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
        vec![bucket(namespace, service, manager)]
    })
}

fn bucket(namespace: &str, service: &str, manager: &str) -> String {
    format!("{namespace}/{service}/{manager}")
}

/// Does what a plan says. `new` is what all new slices have in common.
async fn carry_out(
    client: &Client,
    key: &Key,
    written: &Written<Key>,
    plan: diff::Plan,
    new: &EndpointSlice,
) -> Result<(), Error> {
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), &key.0);
    for (ports, endpoints) in plan.create {
        let slice = EndpointSlice { ports: Some(ports), endpoints: Some(endpoints), ..new.clone() };
        let created = slices.create(&PostParams::default(), &slice).await;
        match created {
            Ok(created) => written.note(key, created.metadata.resource_version.as_deref()),
            Err(error) if crate::error::namespace_terminating(&error) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    for slice in plan.update {
        let name = slice.name_any();
        let updated = slices.replace(&name, &PostParams::default(), &slice).await?;
        written.note(key, updated.metadata.resource_version.as_deref());
    }
    for slice in plan.delete {
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid: slice.metadata.uid.clone(), resource_version: None }),
            ..Default::default()
        };
        found(slices.delete(&slice.name_any(), &params).await)?;
    }
    Ok(())
}
