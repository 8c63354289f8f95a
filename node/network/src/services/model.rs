//! What of a Service and its EndpointSlices the data plane needs. Pure.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint as SliceEndpoint, EndpointSlice};

/// Namespace and name of a Service.
pub(crate) type Key = (String, String);

const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;
/// A Service with this label is somebody else's to serve.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// None for what is not proxied (SCTP).
    fn parse(text: Option<&str>) -> Option<Self> {
        match text {
            None | Some("" | "TCP") => Some(Self::Tcp),
            Some("UDP") => Some(Self::Udp),
            Some(_) => None,
        }
    }

    pub(crate) fn lower(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    pub(crate) fn upper(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Endpoint {
    pub(crate) address: Ipv4Addr,
    pub(crate) port: u16,
}

/// One port of a Service that has an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Port {
    pub(crate) name: String,
    pub(crate) protocol: Protocol,
    pub(crate) cluster_ips: Vec<Ipv4Addr>,
    /// External and load balancer addresses.
    pub(crate) external_ips: Vec<Ipv4Addr>,
    pub(crate) port: u16,
    pub(crate) node_port: Option<u16>,
    /// For how many seconds a client keeps its endpoint.
    pub(crate) affinity: Option<u32>,
    /// Where traffic to the cluster addresses goes, in order; none: it is refused.
    pub(crate) inside: Vec<Endpoint>,
    /// The same for what comes by node port or external address.
    pub(crate) outside: Vec<Endpoint>,
    /// Whether the endpoint is to see the client's own address also from outside.
    pub(crate) keep_source: bool,
}

fn v4(addresses: impl IntoIterator<Item = impl AsRef<str>>) -> Vec<Ipv4Addr> {
    let mut found: Vec<Ipv4Addr> = addresses.into_iter().filter_map(|text| text.as_ref().parse().ok()).collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// A Service's cluster addresses; none where it is headless or only a name.
pub(crate) fn cluster_ips(service: &Service) -> Vec<Ipv4Addr> {
    let Some(spec) = &service.spec else {
        return Vec::new();
    };
    if spec.type_.as_deref() == Some("ExternalName") {
        return Vec::new();
    }
    v4(spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip))
}

/// The ports of a Service that are to be served on this node.
pub(crate) fn ports<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
    node: &str,
) -> Vec<Port> {
    let cluster_ips = cluster_ips(service);
    let Some(spec) = service.spec.as_ref().filter(|_| !cluster_ips.is_empty()) else {
        return Vec::new();
    };
    if service.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(PROXY_NAME)) {
        return Vec::new();
    }
    let balancer = service
        .status
        .iter()
        .flat_map(|status| status.load_balancer.iter())
        .flat_map(|it| it.ingress.iter().flatten())
        .filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|ingress| ingress.ip.as_ref());
    let external_ips = v4(spec.external_ips.iter().flatten().chain(balancer));
    let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let config = spec.session_affinity_config.as_ref().and_then(|it| it.client_ip.as_ref());
        config
            .and_then(|it| it.timeout_seconds)
            .and_then(|it| u32::try_from(it).ok())
            .unwrap_or(DEFAULT_AFFINITY_SECONDS)
    });
    let inside_local = spec.internal_traffic_policy.as_deref() == Some("Local");
    let outside_local = spec.external_traffic_policy.as_deref() == Some("Local");
    let number = |port: i32| u16::try_from(port).ok().filter(|port| *port != 0);
    spec.ports
        .iter()
        .flatten()
        .filter_map(|port| {
            let protocol = Protocol::parse(port.protocol.as_deref())?;
            let name = port.name.clone().unwrap_or_default();
            let endpoints = |local: bool| endpoints(slices.clone(), &name, protocol, local.then_some(node));
            let inside = endpoints(inside_local);
            Some(Port {
                outside: if outside_local == inside_local { inside.clone() } else { endpoints(outside_local) },
                inside,
                protocol,
                cluster_ips: cluster_ips.clone(),
                external_ips: external_ips.clone(),
                port: number(port.port)?,
                node_port: port.node_port.and_then(number),
                affinity,
                keep_source: outside_local,
                name,
            })
        })
        .collect()
}

/// Ready endpoints; where there is none, those that still serve while they end. `only_on` leaves
/// those of one node.
fn endpoints<'a>(
    slices: impl Iterator<Item = &'a EndpointSlice>,
    port_name: &str,
    protocol: Protocol,
    only_on: Option<&str>,
) -> Vec<Endpoint> {
    let mut ready = BTreeSet::new();
    let mut ending = BTreeSet::new();
    for slice in slices.filter(|slice| slice.address_type == "IPv4") {
        let number = slice.ports.iter().flatten().find_map(|port| {
            let same = port.name.as_deref().unwrap_or_default() == port_name
                && Protocol::parse(port.protocol.as_deref()) == Some(protocol);
            port.port.filter(|_| same).and_then(|port| u16::try_from(port).ok())
        });
        let Some(port) = number else { continue };
        for endpoint in slice.endpoints.iter().flatten() {
            if only_on.is_some_and(|node| endpoint.node_name.as_deref() != Some(node)) {
                continue;
            }
            let into = if is_ready(endpoint) {
                &mut ready
            } else if is_ending(endpoint) {
                &mut ending
            } else {
                continue;
            };
            // All addresses of an endpoint are one and the same; the first is the one to use.
            let address = endpoint.addresses.first().and_then(|text| text.parse().ok());
            into.extend(address.map(|address| Endpoint { address, port }));
        }
    }
    if ready.is_empty() { ending } else { ready }.into_iter().collect()
}

/// Not said to be unready.
pub(crate) fn is_ready(endpoint: &SliceEndpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|it| it.ready).unwrap_or(true)
}

fn is_ending(endpoint: &SliceEndpoint) -> bool {
    let conditions = endpoint.conditions.as_ref();
    conditions.and_then(|it| it.terminating).unwrap_or(false) && conditions.and_then(|it| it.serving).unwrap_or(false)
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    pub(crate) fn service(spec: Value) -> Service {
        serde_json::from_value(json!({
            "metadata": { "name": "web", "namespace": "shop" },
            "spec": spec,
        }))
        .unwrap()
    }

    pub(crate) fn slice(ports: Value, endpoints: Value) -> EndpointSlice {
        serde_json::from_value(json!({
            "metadata": { "name": "web-1", "namespace": "shop",
                "labels": { "kubernetes.io/service-name": "web" } },
            "addressType": "IPv4", "ports": ports, "endpoints": endpoints,
        }))
        .unwrap()
    }

    fn at(list: &[Endpoint]) -> Vec<String> {
        list.iter().map(|it| format!("{}:{}", it.address, it.port)).collect()
    }

    fn http() -> Value {
        json!([{ "name": "http", "port": 80, "protocol": "TCP", "targetPort": "web" }])
    }

    fn two_nodes() -> EndpointSlice {
        slice(
            json!([{ "name": "http", "port": 8080, "protocol": "TCP" }]),
            json!([
                { "addresses": ["10.0.0.2"], "nodeName": "a", "conditions": { "ready": true } },
                { "addresses": ["10.0.0.1"], "nodeName": "b" },
                { "addresses": ["10.0.0.3"], "nodeName": "a", "conditions": { "ready": false } },
            ]),
        )
    }

    #[test]
    fn ready_endpoints_by_port_name() {
        let service = service(json!({ "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"], "ports": http() }));
        let slices =
            [two_nodes(), slice(json!([{ "name": "other", "port": 1 }]), json!([{ "addresses": ["10.0.0.9"] }]))];
        let ports = ports(&service, slices.iter(), "a");
        let [port] = ports.as_slice() else { panic!("{ports:?}") };
        assert_eq!(at(&port.inside), ["10.0.0.1:8080", "10.0.0.2:8080"]);
        assert_eq!(port.inside, port.outside);
        assert_eq!((port.port, port.node_port, port.affinity), (80, None, None));
        assert_eq!(port.cluster_ips, [Ipv4Addr::new(10, 96, 0, 7)]);
    }

    #[test]
    fn headless_external_name_and_foreign_are_not_served() {
        for spec in [
            json!({ "clusterIP": "None", "clusterIPs": ["None"], "ports": http() }),
            json!({ "type": "ExternalName", "externalName": "example.com", "ports": http() }),
            json!({ "ports": http() }),
            json!({ "clusterIP": "10.96.0.7", "ports": [{ "port": 80, "protocol": "SCTP" }] }),
        ] {
            assert_eq!(ports(&service(spec), [two_nodes()].iter(), "a"), []);
        }
        let mut foreign = service(json!({ "clusterIP": "10.96.0.7", "ports": http() }));
        foreign.metadata.labels = Some([(PROXY_NAME.to_owned(), "other".to_owned())].into());
        assert_eq!(ports(&foreign, [two_nodes()].iter(), "a"), []);
    }

    #[test]
    fn ending_endpoints_serve_only_when_nothing_else_does() {
        let spec = json!({ "clusterIP": "10.96.0.7", "ports": http() });
        let port = json!([{ "name": "http", "port": 8080 }]);
        let ending = json!({ "addresses": ["10.0.0.5"],
            "conditions": { "ready": false, "serving": true, "terminating": true } });
        let ended = json!({ "addresses": ["10.0.0.6"],
            "conditions": { "ready": false, "serving": false, "terminating": true } });
        let ready = json!({ "addresses": ["10.0.0.4"], "conditions": { "ready": true } });
        let only = |list: Value| at(&ports(&service(spec.clone()), [slice(port.clone(), list)].iter(), "a")[0].inside);
        assert_eq!(only(json!([ending, ended])), ["10.0.0.5:8080"]);
        assert_eq!(only(json!([ending, ended, ready])), ["10.0.0.4:8080"]);
        assert_eq!(only(json!([ended])), Vec::<String>::new());
    }

    #[test]
    fn local_traffic_policies() {
        let service = service(json!({ "clusterIP": "10.96.0.7", "type": "NodePort",
            "ports": [{ "name": "http", "port": 80, "nodePort": 30080 }],
            "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Cluster",
            "externalIPs": ["192.0.2.1"], "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": 7 } } }));
        let ports = ports(&service, [two_nodes()].iter(), "a");
        let [port] = ports.as_slice() else { panic!("{ports:?}") };
        assert_eq!(at(&port.inside), ["10.0.0.1:8080", "10.0.0.2:8080"]);
        assert_eq!(at(&port.outside), ["10.0.0.2:8080"]);
        assert!(port.keep_source);
        assert_eq!((port.node_port, port.affinity), (Some(30080), Some(7)));
        assert_eq!(port.external_ips, [Ipv4Addr::new(192, 0, 2, 1)]);
    }

    proptest! {
        /// However endpoints are spread over slices, the same are served, each once and in order.
        #[test]
        fn slices_add_up(
            endpoints in prop::collection::vec((1..30u8, any::<Option<bool>>(), any::<bool>(), any::<bool>()), 0..20),
            cut in 0..20usize,
        ) {
            let list: Vec<Value> = endpoints.iter().map(|(last, ready, serving, terminating)| json!({
                "addresses": [format!("10.0.0.{last}")],
                "conditions": { "ready": ready, "serving": serving, "terminating": terminating },
            })).collect();
            let service = service(json!({ "clusterIP": "10.96.0.7", "ports": http() }));
            let port = json!([{ "name": "http", "port": 8080 }]);
            let whole = [slice(port.clone(), json!(list))];
            let (first, second) = list.split_at(cut.min(list.len()));
            let parts = [slice(port.clone(), json!(second)), slice(port, json!(first))];
            let one = ports(&service, whole.iter(), "a");
            prop_assert_eq!(&one, &ports(&service, parts.iter(), "a"));
            let served = &one[0].inside;
            prop_assert!(served.windows(2).all(|pair| pair[0] < pair[1]));
            let any_ready = endpoints.iter().any(|(_, ready, ..)| ready.unwrap_or(true));
            for (last, ready, serving, terminating) in &endpoints {
                let address = Ipv4Addr::new(10, 0, 0, *last);
                if ready.unwrap_or(true) || (!any_ready && *serving && *terminating) {
                    prop_assert!(served.iter().any(|it| it.address == address));
                }
            }
        }
    }
}
