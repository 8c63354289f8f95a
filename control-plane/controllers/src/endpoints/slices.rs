//! EndpointSlices of Services with a selector.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use sampan_client::{EventKind, EventRecorder, Index, Informer};

use super::select::Family;
use super::{CONCURRENCY, Key, MANAGED_BY, SERVICE_NAME, bucket, diff, key, select};
use crate::context::Context;
use crate::error::Error;
use crate::owner::{self, Written};
use crate::queue::{self, Controller, Queue};

const MANAGER: &str = "endpointslice-controller.k8s.io";
/// A burst of pods becoming ready is a few writes, not one each.
const PACE: Duration = Duration::from_millis(50);

pub async fn run(context: Context) {
    let services = context.informers.all::<Service>();
    let pods = context.informers.all::<Pod>();
    let nodes = context.informers.all::<Node>();
    let slices = context.informers.all::<EndpointSlice>();
    let controller = Arc::new(Slices {
        events: context.recorder("endpoint-slice-controller"),
        by_service: super::index(&slices),
        services: services.clone(),
        pods: pods.clone(),
        nodes: nodes.clone(),
        slices: slices.clone(),
        written: Written::new(),
        context: context.clone(),
    });
    let queue = Queue::paced(PACE);
    services.synced().await;
    pods.synced().await;
    nodes.synced().await;
    slices.synced().await;
    let keys = queue.clone();
    queue::feed(&services, &context.shutdown, move |change| keys.add(key(&change.object().metadata)));
    let (keys, of) = (queue.clone(), services.clone());
    queue::feed(&pods, &context.shutdown, move |change| {
        super::services_of(&change, &of).into_iter().for_each(|key| keys.add(key));
    });
    let keys = queue.clone();
    queue::feed(&slices, &context.shutdown, move |change| {
        let meta = &change.object().metadata;
        let label = |name| meta.labels.as_ref().and_then(|labels| labels.get(name));
        if label(MANAGED_BY).is_some_and(|manager| manager == MANAGER)
            && let Some(service) = label(SERVICE_NAME)
        {
            keys.add((meta.namespace.clone().unwrap_or_default(), service.clone()));
        }
    });
    queue::work(controller, queue, CONCURRENCY, context.shutdown).await;
}

struct Slices {
    context: Context,
    events: EventRecorder,
    services: Informer<Service>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    slices: Informer<EndpointSlice>,
    by_service: Index<EndpointSlice>,
    written: Written<Key>,
}

impl Controller for Slices {
    const NAME: &'static str = "endpointslice";
    type Key = Key;

    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        self.written.seen(key, &self.slices).await;
        // Those of a Service that is gone go with it.
        let Some(service) = self.services.get(&key.0, &key.1) else { return Ok(None) };
        let Some(selector) = select::selector(&service) else { return Ok(None) };
        if service.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let mut pods = self.pods.list_in(&key.0);
        pods.retain(|pod| select::selects(selector, pod) && select::belongs(pod, true));
        let mut existing = self.by_service.get(&bucket(&key.0, &key.1, MANAGER));
        existing.retain(|slice| slice.metadata.deletion_timestamp.is_none());

        let families = select::families(&service);
        let types: HashSet<&str> = families.iter().map(|family| family.name()).collect();
        let mut failed = None;
        let foreign = existing.iter().filter(|slice| !types.contains(slice.address_type.as_str()));
        let mut plans =
            vec![(diff::Plan { delete: foreign.cloned().collect(), ..Default::default() }, EndpointSlice::default())];
        let labels = labels(&service);
        for family in families {
            let wanted = self.wanted(&service, &pods, family);
            let of_family: Vec<_> =
                existing.iter().filter(|slice| slice.address_type == family.name()).cloned().collect();
            let plan = diff::plan(&of_family, wanted, |slice| refresh(slice, &labels, &service));
            plans.push((plan, new_slice(&service, &labels, family)));
        }
        for (plan, new) in plans {
            let done = super::carry_out(&self.context.client, key, &self.written, plan, &new).await;
            failed = failed.or(done.err());
        }
        let Some(error) = failed else { return Ok(None) };
        if !error.is_passing() {
            let text = format!("Error updating Endpoint Slices for Service {}/{}: {}", key.0, key.1, error.text());
            self.events.record(&*service, EventKind::Warning, "FailedToUpdateEndpointSlices", text);
        }
        Err(error)
    }
}

impl Slices {
    /// The endpoints of a family, by the ports that they have.
    fn wanted(&self, service: &Service, pods: &[Arc<Pod>], family: Family) -> Vec<(Vec<EndpointPort>, Vec<Endpoint>)> {
        let mut groups: BTreeMap<Vec<String>, (Vec<EndpointPort>, Vec<Endpoint>)> = BTreeMap::new();
        for pod in pods {
            let name = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
            let node = name.and_then(|name| self.nodes.get("", name));
            let endpoint = select::endpoint(service, pod, node.as_deref(), family);
            if endpoint.addresses.is_empty() {
                continue;
            }
            let ports = select::ports(service, pod);
            let group = groups.entry(diff::port_key(&ports)).or_insert_with(|| (ports, Vec::new()));
            group.1.push(endpoint);
        }
        groups.into_values().collect()
    }
}

fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.labels().clone();
    labels.remove(select::HEADLESS);
    if select::is_headless(service) {
        labels.insert(select::HEADLESS.to_owned(), String::new());
    }
    labels.insert(SERVICE_NAME.to_owned(), service.name_any());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    labels
}

fn refresh(slice: &mut EndpointSlice, labels: &BTreeMap<String, String>, service: &Service) -> bool {
    let mut changed = false;
    if slice.labels() != labels {
        slice.metadata.labels = Some(labels.clone());
        changed = true;
    }
    let owned =
        owner::controller(&slice.metadata).is_some_and(|owner| Some(&owner.uid) == service.metadata.uid.as_ref());
    if !owned {
        slice.metadata.owner_references = Some(vec![owner::reference(service)]);
        changed = true;
    }
    changed
}

fn new_slice(service: &Service, labels: &BTreeMap<String, String>, family: Family) -> EndpointSlice {
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", service.name_any())),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels.clone()),
            owner_references: Some(vec![owner::reference(service)]),
            ..Default::default()
        },
        address_type: family.name().to_owned(),
        ..Default::default()
    }
}
