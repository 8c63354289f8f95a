//! What the cluster's zone says, by the Kubernetes DNS specification 1.1.0. Pure.

use std::net::Ipv4Addr;

use hickory_proto::ProtoError;
use hickory_proto::rr::rdata::{A, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use rand::seq::SliceRandom;

use crate::services::catalog::State;
use crate::services::model::{self, Key, Protocol};

const TTL: u32 = 5;
/// A longer answer says nothing more: clients use one.
const MOST: usize = 64;

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Records {
    pub(crate) answers: Vec<Record>,
    pub(crate) additionals: Vec<Record>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// None of the cluster's names.
    Elsewhere,
    /// The name is there; without answers: not with records of this type.
    Records(Records),
    /// Another name has what is asked for.
    Alias(Name),
    NotFound,
}

impl Answer {
    fn nothing() -> Self {
        Self::Records(Records::default())
    }
}

pub(crate) struct Zone {
    origin: Name,
    labels: Vec<String>,
    address: Ipv4Addr,
    /// Ranges whose addresses the zone knows by name.
    ranges: [Ipv4Net; 2],
}

/// What a Service is in the zone.
struct Host {
    name: String,
    address: Ipv4Addr,
    ports: Vec<(String, Protocol, u16)>,
}

fn labels(name: &Name) -> Vec<String> {
    name.iter().map(|label| String::from_utf8_lossy(label).to_ascii_lowercase()).collect()
}

fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None")
}

fn external_name(service: &Service) -> Option<&str> {
    let spec = service.spec.as_ref().filter(|spec| spec.type_.as_deref() == Some("ExternalName"))?;
    spec.external_name.as_deref()
}

/// `10-0-0-7` for an endpoint without a name of its own.
fn dashed(address: Ipv4Addr) -> String {
    address.to_string().replace('.', "-")
}

fn parse_protocol(label: &str) -> Option<Protocol> {
    match label {
        "_tcp" => Some(Protocol::Tcp),
        "_udp" => Some(Protocol::Udp),
        _ => None,
    }
}

/// The ready endpoints of a Service, each with the ports it has.
fn hosts<'a>(slices: impl Iterator<Item = &'a EndpointSlice>) -> Vec<Host> {
    let mut hosts: Vec<Host> = Vec::new();
    for slice in slices.filter(|slice| slice.address_type == "IPv4") {
        let ports: Vec<(String, Protocol, u16)> = slice
            .ports
            .iter()
            .flatten()
            .filter_map(|port| {
                let protocol = match port.protocol.as_deref() {
                    None | Some("TCP") => Protocol::Tcp,
                    Some("UDP") => Protocol::Udp,
                    Some(_) => return None,
                };
                Some((port.name.clone().unwrap_or_default(), protocol, u16::try_from(port.port?).ok()?))
            })
            .collect();
        for endpoint in slice.endpoints.iter().flatten().filter(|it| model::is_ready(it)) {
            for address in endpoint.addresses.iter().filter_map(|text| text.parse().ok()) {
                let name = endpoint.hostname.clone().unwrap_or_else(|| dashed(address));
                match hosts.iter_mut().find(|host| host.name == name && host.address == address) {
                    Some(host) => {
                        host.ports.extend(
                            ports.iter().filter(|port| !host.ports.contains(port)).cloned().collect::<Vec<_>>(),
                        );
                    }
                    None => hosts.push(Host { name, address, ports: ports.clone() }),
                }
            }
        }
    }
    hosts
}

impl Zone {
    pub(crate) fn new(domain: &str, address: Ipv4Addr, ranges: [Ipv4Net; 2]) -> Result<Self, ProtoError> {
        let mut origin = Name::from_ascii(domain)?;
        origin.set_fqdn(true);
        Ok(Self { labels: labels(&origin), origin, address, ranges })
    }

    /// For answers that say there is nothing, so that this is not believed for long.
    pub(crate) fn soa(&self) -> Option<Record> {
        let name = |text| Name::from_ascii(text).and_then(|name: Name| name.append_domain(&self.origin)).ok();
        let soa = SOA::new(name("ns.dns")?, name("hostmaster")?, 1, 7200, 1800, 86400, TTL);
        Some(Record::from_rdata(self.origin.clone(), TTL, RData::SOA(soa)))
    }

    /// A name of the zone from its first labels.
    fn name(&self, parts: &[&str]) -> Option<Name> {
        let name = Name::from_labels(parts.iter().map(|part| part.as_bytes())).ok()?;
        name.append_domain(&self.origin).ok()
    }

    /// Whether the zone answers for this name.
    pub(crate) fn holds(&self, name: &Name) -> bool {
        self.relative(name).is_some() || self.reverse(name).is_some()
    }

    fn relative(&self, name: &Name) -> Option<Vec<String>> {
        let mut all = labels(name);
        let rest = all.len().checked_sub(self.labels.len())?;
        (all.split_off(rest) == self.labels).then_some(all)
    }

    fn reverse(&self, name: &Name) -> Option<Ipv4Addr> {
        let all = labels(name);
        let [d, c, b, a, arpa @ ..] = all.as_slice() else {
            return None;
        };
        if arpa != ["in-addr", "arpa"] {
            return None;
        }
        let address: Ipv4Addr = format!("{a}.{b}.{c}.{d}").parse().ok()?;
        self.ranges.iter().any(|range| range.contains(&address)).then_some(address)
    }

    pub(crate) fn answer(&self, state: &State, name: &Name, kind: RecordType) -> Answer {
        if let Some(address) = self.reverse(name) {
            return self.pointer(state, name, address, kind);
        }
        let Some(path) = self.relative(name) else {
            return Answer::Elsewhere;
        };
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        match path.as_slice() {
            [] => self.apex(name, kind),
            ["dns"] => Answer::nothing(),
            ["ns", "dns"] => addresses(name, kind, vec![self.address]),
            ["dns-version"] => only(kind, RecordType::TXT, name, || RData::TXT(TXT::new(vec!["1.1.0".to_owned()]))),
            ["svc" | "pod"] => Answer::nothing(),
            [namespace, "svc" | "pod"] if state.has_namespace(namespace) => Answer::nothing(),
            [dashed, _, "pod"] => match dashed.replace('-', ".").parse() {
                Ok(address) => addresses(name, kind, vec![address]),
                Err(_) => Answer::NotFound,
            },
            [rest @ .., service, namespace, "svc"] => match state.service(namespace, service) {
                Some(found) => self.service(state, name, kind, found, rest, (service, namespace)),
                None => Answer::NotFound,
            },
            _ => Answer::NotFound,
        }
    }

    fn apex(&self, name: &Name, kind: RecordType) -> Answer {
        match kind {
            RecordType::SOA => {
                Answer::Records(Records { answers: self.soa().into_iter().collect(), additionals: Vec::new() })
            }
            RecordType::NS => {
                only(kind, RecordType::NS, name, || RData::NS(NS(self.name(&["ns", "dns"]).unwrap_or_default())))
            }
            _ => Answer::nothing(),
        }
    }

    fn service(
        &self,
        state: &State,
        name: &Name,
        kind: RecordType,
        service: &Service,
        rest: &[&str],
        (label, namespace): (&str, &str),
    ) -> Answer {
        if let Some(target) = external_name(service) {
            return match (rest, Name::from_ascii(target)) {
                ([], Ok(mut target)) => {
                    target.set_fqdn(true);
                    Answer::Alias(target)
                }
                _ => Answer::NotFound,
            };
        }
        let key: Key = (namespace.to_owned(), label.to_owned());
        let hosts = || hosts(state.slices(&key));
        let headless = is_headless(service);
        match rest {
            [] if kind == RecordType::SRV => self.srv(name, service, &hosts(), headless, None, &key),
            [] if headless => addresses(name, kind, hosts().iter().map(|host| host.address).collect()),
            [] => addresses(name, kind, model::cluster_ips(service)),
            [protocol] if parse_protocol(protocol).is_some() => Answer::nothing(),
            [host] => {
                let found: Vec<Ipv4Addr> =
                    hosts().iter().filter(|it| it.name.eq_ignore_ascii_case(host)).map(|it| it.address).collect();
                if found.is_empty() { Answer::NotFound } else { addresses(name, kind, found) }
            }
            [port, protocol] => match (port.strip_prefix('_'), parse_protocol(protocol)) {
                (Some(port), Some(protocol)) => {
                    let found = self.srv(name, service, &hosts(), headless, Some((port, protocol)), &key);
                    match found {
                        Answer::Records(records) if records.answers.is_empty() => Answer::NotFound,
                        found if kind == RecordType::SRV => found,
                        _ => Answer::nothing(),
                    }
                }
                _ => Answer::NotFound,
            },
            _ => Answer::NotFound,
        }
    }

    /// One record a port, or one a port and endpoint where there is no cluster address.
    fn srv(
        &self,
        name: &Name,
        service: &Service,
        hosts: &[Host],
        headless: bool,
        asked: Option<(&str, Protocol)>,
        (namespace, label): &Key,
    ) -> Answer {
        let matches = |port: &str, protocol| asked.is_none_or(|it| it.0.eq_ignore_ascii_case(port) && it.1 == protocol);
        let mut found: Vec<(u16, Name, Vec<Ipv4Addr>)> = Vec::new();
        if headless {
            for host in hosts {
                let Some(target) = self.name(&[&host.name, label, namespace, "svc"]) else {
                    continue;
                };
                for (port, protocol, number) in &host.ports {
                    if matches(port, *protocol) {
                        found.push((*number, target.clone(), vec![host.address]));
                    }
                }
            }
        } else if let Some(target) = self.name(&[label, namespace, "svc"]) {
            let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
            for port in ports {
                let protocol = match port.protocol.as_deref() {
                    None | Some("TCP") => Protocol::Tcp,
                    Some("UDP") => Protocol::Udp,
                    Some(_) => continue,
                };
                if let Ok(number) = u16::try_from(port.port)
                    && matches(port.name.as_deref().unwrap_or_default(), protocol)
                {
                    found.push((number, target.clone(), model::cluster_ips(service)));
                }
            }
        }
        found.truncate(MOST);
        let weight = u16::try_from(100 / found.len().max(1)).unwrap_or(1).max(1);
        let mut records = Records::default();
        for (port, target, addresses) in found {
            for address in addresses {
                let record = Record::from_rdata(target.clone(), TTL, RData::A(A(address)));
                if !records.additionals.contains(&record) {
                    records.additionals.push(record);
                }
            }
            let srv = SRV::new(0, weight, port, target);
            records.answers.push(Record::from_rdata(name.clone(), TTL, RData::SRV(srv)));
        }
        Answer::Records(records)
    }

    fn pointer(&self, state: &State, name: &Name, address: Ipv4Addr, kind: RecordType) -> Answer {
        let mut targets: Vec<Name> = Vec::new();
        if let Some((namespace, service)) = state.by_cluster_ip(address) {
            targets.extend(self.name(&[service, namespace, "svc"]));
        } else {
            for key in state.by_endpoint(address) {
                let host = hosts(state.slices(key)).into_iter().find(|host| host.address == address);
                targets.extend(host.and_then(|host| self.name(&[&host.name, &key.1, &key.0, "svc"])));
            }
        }
        if targets.is_empty() {
            return Answer::NotFound;
        }
        if kind != RecordType::PTR {
            return Answer::nothing();
        }
        let answers =
            targets.into_iter().map(|target| Record::from_rdata(name.clone(), TTL, RData::PTR(PTR(target)))).collect();
        Answer::Records(Records { answers, additionals: Vec::new() })
    }

    pub(crate) fn alias(&self, name: &Name, target: Name) -> Record {
        Record::from_rdata(name.clone(), TTL, RData::CNAME(CNAME(target)))
    }
}

fn addresses(name: &Name, kind: RecordType, mut found: Vec<Ipv4Addr>) -> Answer {
    if !matches!(kind, RecordType::A | RecordType::ANY) {
        return Answer::nothing();
    }
    // Clients take the first.
    found.shuffle(&mut rand::rng());
    found.truncate(MOST);
    let answers = found.into_iter().map(|it| Record::from_rdata(name.clone(), TTL, RData::A(A(it)))).collect();
    Answer::Records(Records { answers, additionals: Vec::new() })
}

fn only(kind: RecordType, has: RecordType, name: &Name, data: impl FnOnce() -> RData) -> Answer {
    if kind != has {
        return Answer::nothing();
    }
    let answers = vec![Record::from_rdata(name.clone(), TTL, data())];
    Answer::Records(Records { answers, additionals: Vec::new() })
}

#[cfg(test)]
#[path = "zone_tests.rs"]
mod tests;
