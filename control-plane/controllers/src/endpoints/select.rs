//! From a Service and its pods to endpoints: which pods, which of their ports, in which state.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Node, ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use crate::pod;

const ZONE: &str = "topology.kubernetes.io/zone";
pub const HEADLESS: &str = "service.kubernetes.io/headless";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    pub fn of(address: &str) -> Option<Self> {
        match address.parse().ok()? {
            std::net::IpAddr::V4(_) => Some(Self::V4),
            std::net::IpAddr::V6(_) => Some(Self::V6),
        }
    }
}

/// The address families a Service has endpoints in.
pub fn families(service: &Service) -> Vec<Family> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let named: Vec<Family> = spec
        .ip_families
        .iter()
        .flatten()
        .filter_map(|family| match family.as_str() {
            "IPv4" => Some(Family::V4),
            "IPv6" => Some(Family::V6),
            _ => None,
        })
        .collect();
    if !named.is_empty() {
        return named;
    }
    let address = spec.cluster_ip.as_deref().unwrap_or_default();
    vec![Family::of(address).unwrap_or(Family::V4)]
}

pub fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None")
}

pub fn publishes_not_ready(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses).unwrap_or_default()
}

/// The selector, unless there is none: then somebody else sets the endpoints.
pub fn selector(service: &Service) -> Option<&BTreeMap<String, String>> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    spec.selector.as_ref().filter(|selector| !selector.is_empty())
}

pub fn selects(selector: &BTreeMap<String, String>, pod: &Pod) -> bool {
    let labels = pod.metadata.labels.as_ref();
    selector.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

/// Whether a pod may be an endpoint: it has an address and has not ended.
pub fn belongs(pod: &Pod, with_terminating: bool) -> bool {
    let has_address =
        pod.status.as_ref().and_then(|status| status.pod_ip.as_deref()).is_some_and(|address| !address.is_empty());
    has_address && !pod::is_finished(pod) && (with_terminating || !pod::is_terminating(pod))
}

pub fn addresses(pod: &Pod, family: Family) -> Vec<String> {
    let Some(status) = &pod.status else { return Vec::new() };
    let mut all: Vec<&str> = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).collect();
    if all.is_empty() {
        all.extend(status.pod_ip.as_deref());
    }
    all.into_iter().filter(|ip| Family::of(ip) == Some(family)).map(str::to_owned).collect()
}

/// The hostname under which DNS knows a pod within a Service.
pub fn hostname(pod: &Pod, service: &Service) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let is_in = spec.subdomain.as_deref() == service.metadata.name.as_deref()
        && pod.metadata.namespace == service.metadata.namespace;
    spec.hostname.clone().filter(|name| !name.is_empty() && is_in)
}

pub fn target(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_owned()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..Default::default()
    }
}

/// The ports of a Service on one of its pods. A port that the pod does not have is left out.
pub fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let Some(spec) = &service.spec else { return Vec::new() };
    spec.ports
        .iter()
        .flatten()
        .filter_map(|port| {
            Some(EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(number(port, pod)?),
                protocol: Some(protocol(port.protocol.as_deref()).to_owned()),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect()
}

fn protocol(protocol: Option<&str>) -> &str {
    protocol.filter(|protocol| !protocol.is_empty()).unwrap_or("TCP")
}

/// The number of a Service's port on a pod: as it is, or looked up by name.
fn number(port: &ServicePort, pod: &Pod) -> Option<i32> {
    let name = match &port.target_port {
        Some(IntOrString::Int(0)) | None => return Some(port.port),
        Some(IntOrString::Int(number)) => return Some(*number),
        Some(IntOrString::String(name)) if name.is_empty() => return Some(port.port),
        Some(IntOrString::String(name)) => name,
    };
    let spec = pod.spec.as_ref()?;
    let sidecars =
        spec.init_containers.iter().flatten().filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let named = |container: &Container| {
        container.ports.iter().flatten().find_map(|it| {
            let fits = it.name.as_deref() == Some(name)
                && protocol(it.protocol.as_deref()) == protocol(port.protocol.as_deref());
            fits.then_some(it.container_port)
        })
    };
    spec.containers.iter().chain(sidecars).find_map(named)
}

/// A pod as an endpoint of a slice.
pub fn endpoint(service: &Service, pod: &Pod, node: Option<&Node>, family: Family) -> Endpoint {
    let serving = pod::is_ready(pod);
    let terminating = pod::is_terminating(pod);
    let ready = publishes_not_ready(service) || (serving && !terminating);
    Endpoint {
        addresses: addresses(pod, family),
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: hostname(pod, service),
        node_name: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        target_ref: Some(target(pod)),
        zone: node.and_then(|node| node.labels().get(ZONE).cloned()),
        ..Default::default()
    }
}

/// What of a pod an endpoint depends on: whether a change of it concerns its Services.
pub fn differs(old: &Pod, new: &Pod) -> bool {
    let ips = |pod: &Pod| pod.status.as_ref().map(|status| (status.pod_ip.clone(), status.pod_ips.clone()));
    let place = |pod: &Pod| {
        pod.spec.as_ref().map(|spec| (spec.node_name.clone(), spec.hostname.clone(), spec.subdomain.clone()))
    };
    old.metadata.labels != new.metadata.labels
        || old.metadata.deletion_timestamp.is_some() != new.metadata.deletion_timestamp.is_some()
        || pod::is_ready(old) != pod::is_ready(new)
        || pod::is_finished(old) != pod::is_finished(new)
        || ips(old) != ips(new)
        || place(old) != place(new)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::{Value, json};

    use super::*;

    fn service(spec: Value) -> Service {
        serde_json::from_value(json!({ "metadata": { "name": "web", "namespace": "n" }, "spec": spec })).unwrap()
    }

    fn pod(extra: Value) -> Pod {
        let mut pod = json!({
            "metadata": { "name": "p", "namespace": "n", "uid": "u", "labels": { "app": "web", "a": "b" } },
            "spec": { "nodeName": "node", "containers": [
                { "name": "c", "ports": [
                    { "name": "http", "containerPort": 8080 },
                    { "name": "http", "containerPort": 9090, "protocol": "UDP" },
                ]},
            ]},
            "status": { "phase": "Running", "podIP": "10.0.0.1",
                        "podIPs": [{ "ip": "10.0.0.1" }, { "ip": "fd00::1" }],
                        "conditions": [{ "type": "Ready", "status": "True" }] },
        });
        json_patch::merge(&mut pod, &extra);
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn named_ports_are_looked_up_with_their_protocol() {
        let service = service(json!({ "ports": [
            { "name": "web", "port": 80, "targetPort": "http" },
            { "name": "dns", "port": 53, "targetPort": "http", "protocol": "UDP" },
            { "name": "same", "port": 7 },
            { "name": "other", "port": 8, "targetPort": 88 },
            { "name": "none", "port": 9, "targetPort": "absent" },
        ]}));
        let ports: Vec<_> = ports(&service, &pod(json!({})))
            .into_iter()
            .map(|it| (it.name.unwrap(), it.port.unwrap(), it.protocol.unwrap()))
            .collect();
        let expected = [("web", 8080, "TCP"), ("dns", 9090, "UDP"), ("same", 7, "TCP"), ("other", 88, "TCP")];
        assert_eq!(ports, expected.map(|(name, port, protocol)| (name.to_owned(), port, protocol.to_owned())));
    }

    #[test]
    fn conditions_follow_the_pod() {
        let usual = service(json!({ "selector": { "app": "web" } }));
        let eager = service(json!({ "publishNotReadyAddresses": true }));
        let ready = pod(json!({}));
        let unready = pod(json!({ "status": { "conditions": null } }));
        let going = pod(json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" } }));
        let state = |service: &Service, pod: &Pod| {
            let it = endpoint(service, pod, None, Family::V4).conditions.unwrap();
            (it.ready.unwrap(), it.serving.unwrap(), it.terminating.unwrap())
        };
        assert_eq!(state(&usual, &ready), (true, true, false));
        assert_eq!(state(&usual, &unready), (false, false, false));
        assert_eq!(state(&usual, &going), (false, true, true));
        assert_eq!(state(&eager, &unready), (true, false, false));
        assert!(belongs(&going, true) && !belongs(&going, false));
        assert!(!belongs(&pod(json!({ "status": { "phase": "Failed" } })), true));
        assert!(!belongs(&pod(json!({ "status": { "podIP": null } })), true));
    }

    #[test]
    fn addresses_and_names_are_those_of_the_family_and_the_service() {
        let web = service(json!({ "clusterIP": "None" }));
        let named = pod(json!({ "spec": { "hostname": "zero", "subdomain": "web" } }));
        let it = endpoint(&web, &named, None, Family::V6);
        assert_eq!(it.addresses, ["fd00::1"]);
        assert_eq!(it.hostname.as_deref(), Some("zero"));
        let elsewhere = pod(json!({ "spec": { "hostname": "zero", "subdomain": "other" } }));
        assert_eq!(hostname(&elsewhere, &web), None);
        assert_eq!(families(&web), [Family::V4]);
        assert_eq!(families(&service(json!({ "clusterIP": "fd00::5" }))), [Family::V6]);
        assert_eq!(families(&service(json!({ "ipFamilies": ["IPv6", "IPv4"] }))), [Family::V6, Family::V4]);
        assert!(selector(&service(json!({ "selector": {} }))).is_none());
        assert!(selector(&service(json!({ "selector": {"a": "b"}, "type": "ExternalName" }))).is_none());
        assert!(selects(selector(&service(json!({ "selector": {"a": "b"} }))).unwrap(), &named));
    }
}
