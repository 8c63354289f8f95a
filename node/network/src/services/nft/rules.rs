//! What one Service needs in the table: elements of its maps, and chains where a client is to keep
//! its endpoint. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use super::super::model::{Endpoint, Key, Port, Protocol};
use super::{MASQUERADE, hash};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Map {
    Services,
    Endpoints,
    NodePorts,
    NodeEndpoints,
    /// Addresses outside of the Service range that have no endpoint now.
    Refused,
    /// What a program of the machine answers itself.
    Answered,
    Hairpin,
}

impl Map {
    pub(super) const ALL: [Self; 7] = [
        Self::Services,
        Self::Endpoints,
        Self::NodePorts,
        Self::NodeEndpoints,
        Self::Refused,
        Self::Answered,
        Self::Hairpin,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::Endpoints => "endpoints",
            Self::NodePorts => "node-ports",
            Self::NodeEndpoints => "node-endpoints",
            Self::Refused => "refused",
            Self::Answered => "answered",
            Self::Hairpin => "hairpin",
        }
    }

    pub(super) fn declaration(self) -> &'static str {
        match self {
            Self::Services => "map services { type ipv4_addr . inet_proto . inet_service : verdict; }",
            Self::Endpoints => {
                "map endpoints { typeof ip daddr . meta l4proto . th dport . numgen random mod 65536 : ip daddr . th dport; }"
            }
            Self::NodePorts => "map node-ports { type inet_proto . inet_service : verdict; }",
            Self::NodeEndpoints => {
                "map node-endpoints { typeof meta l4proto . th dport . numgen random mod 65536 : ip daddr . th dport; }"
            }
            Self::Refused => "set refused { type ipv4_addr . inet_proto . inet_service; }",
            Self::Answered => "set answered { type ipv4_addr . inet_proto . inet_service; }",
            Self::Hairpin => "set hairpin { type ipv4_addr . ipv4_addr; }",
        }
    }
}

/// An element's place; its value is empty in a set.
pub(super) type Place = (Map, String);

/// The chains of a port that sticks to a client's endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sticky {
    pub(super) protocol: Protocol,
    seconds: u32,
    endpoints: Vec<Endpoint>,
}

/// All that one Service needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rules {
    pub(super) elements: BTreeMap<Place, String>,
    pub(super) sticky: BTreeMap<String, Sticky>,
    pub(super) chains: BTreeSet<Chain>,
}

/// Chains that all Services share; there is one of a kind for each count of endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Chain {
    /// By cluster or external address, keeping the client's.
    Pick(usize),
    PickMasqueraded(usize),
    /// By node port.
    Node(usize),
    NodeMasqueraded(usize),
}

impl Chain {
    pub(super) const ALL: [fn(usize) -> Self; 4] =
        [Self::Pick, Self::PickMasqueraded, Self::Node, Self::NodeMasqueraded];

    pub(super) fn count(self) -> usize {
        let (Self::Pick(count) | Self::PickMasqueraded(count) | Self::Node(count) | Self::NodeMasqueraded(count)) =
            self;
        count
    }

    pub(super) fn name(self) -> String {
        match self {
            Self::Pick(count) => format!("pick-{count}"),
            Self::PickMasqueraded(count) => format!("pick-masq-{count}"),
            Self::Node(count) => format!("node-{count}"),
            Self::NodeMasqueraded(count) => format!("node-masq-{count}"),
        }
    }

    pub(super) fn rules(self) -> String {
        let mark = format!("meta mark set meta mark or {MASQUERADE:#x}");
        match self {
            Self::Pick(count) => {
                format!("dnat ip to ip daddr . meta l4proto . th dport . numgen random mod {count} map @endpoints")
            }
            Self::Node(count) => {
                format!("dnat ip to meta l4proto . th dport . numgen random mod {count} map @node-endpoints")
            }
            Self::PickMasqueraded(count) => format!("{mark} {}", Self::Pick(count).rules()),
            Self::NodeMasqueraded(count) => format!("{mark} {}", Self::Node(count).rules()),
        }
    }
}

/// `here` says which addresses are of this machine.
pub(super) fn rules(key: &Key, ports: &[Port], here: impl Fn(&Ipv4Addr) -> bool) -> Rules {
    let mut rules = Rules::default();
    for port in ports {
        let (protocol, number) = (port.protocol.lower(), port.port);
        if port.needs_proxy() {
            for address in &port.cluster_ips {
                rules.set(Map::Answered, format!("{address} . {protocol} . {number}"), String::new());
            }
            continue;
        }
        // Who reaches itself does so where it is.
        let own = port.inside.iter().chain(&port.outside).map(|endpoint| endpoint.address).filter(&here);
        for address in own {
            rules.set(Map::Hairpin, format!("{address} . {address}"), String::new());
        }
        let inside = rules.target(key, port, &port.inside, false);
        let outside = rules.target(key, port, &port.outside, !port.keep_source);
        for address in &port.cluster_ips {
            rules.address(port, *address, &port.inside, inside.as_deref(), Chain::Pick);
        }
        for address in &port.external_ips {
            let chain = if port.keep_source { Chain::Pick } else { Chain::PickMasqueraded };
            rules.address(port, *address, &port.outside, outside.as_deref(), chain);
            if port.outside.is_empty() {
                rules.set(Map::Refused, format!("{address} . {protocol} . {number}"), String::new());
            }
        }
        if let Some(node_port) = port.node_port.filter(|_| !port.outside.is_empty()) {
            let verdict = outside.unwrap_or_else(|| {
                for (index, endpoint) in port.outside.iter().enumerate() {
                    let place = format!("{protocol} . {node_port} . {index}");
                    rules.set(Map::NodeEndpoints, place, target(endpoint));
                }
                let count = port.outside.len();
                rules.chain(if port.keep_source { Chain::Node(count) } else { Chain::NodeMasqueraded(count) })
            });
            rules.set(Map::NodePorts, format!("{protocol} . {node_port}"), format!("goto {verdict}"));
        }
    }
    rules
}

pub(super) fn target(endpoint: &Endpoint) -> String {
    format!("{} . {}", endpoint.address, endpoint.port)
}

impl Rules {
    fn set(&mut self, map: Map, place: String, value: String) {
        self.elements.insert((map, place), value);
    }

    fn chain(&mut self, chain: Chain) -> String {
        self.chains.insert(chain);
        chain.name()
    }

    /// The chain of a port that sticks to a client's endpoint, or none.
    fn target(&mut self, key: &Key, port: &Port, endpoints: &[Endpoint], masquerade: bool) -> Option<String> {
        let seconds = port.affinity.filter(|_| !endpoints.is_empty())?;
        let side = if port.inside == *endpoints { "in" } else { "out" };
        let name = hash(&[&key.0, &key.1, &port.name, port.protocol.lower(), side], 8);
        let chain = format!("{}{name}", if masquerade { "sticky-masq-" } else { "sticky-" });
        let sticky = Sticky { protocol: port.protocol, seconds, endpoints: endpoints.to_vec() };
        self.sticky.insert(name, sticky);
        Some(chain)
    }

    fn address(
        &mut self,
        port: &Port,
        address: Ipv4Addr,
        endpoints: &[Endpoint],
        sticky: Option<&str>,
        chain: fn(usize) -> Chain,
    ) {
        if endpoints.is_empty() {
            return;
        }
        let place = format!("{address} . {} . {}", port.protocol.lower(), port.port);
        let verdict = match sticky {
            Some(chain) => chain.to_owned(),
            None => {
                for (index, endpoint) in endpoints.iter().enumerate() {
                    self.set(Map::Endpoints, format!("{place} . {index}"), target(endpoint));
                }
                self.chain(chain(endpoints.len()))
            }
        };
        self.set(Map::Services, place, format!("goto {verdict}"));
    }
}

impl Port {
    /// Whether packets cannot simply be led to its endpoints: loopback is out of reach for them.
    pub(crate) fn needs_proxy(&self) -> bool {
        self.inside.iter().chain(&self.outside).any(|endpoint| endpoint.address.is_loopback())
    }
}

impl Sticky {
    /// An endpoint's chain, and the set of the clients that are at it.
    fn endpoint(name: &str, endpoint: &Endpoint) -> String {
        format!("{name}-{}-{}", endpoint.address, endpoint.port).replace('.', "-")
    }

    pub(super) fn parts(&self, name: &str) -> BTreeSet<String> {
        self.endpoints.iter().map(|endpoint| Self::endpoint(name, endpoint)).collect()
    }

    /// (Re)writes the chains; the clients of an endpoint that stays stay with it.
    pub(super) fn write(&self, table: &str, name: &str, script: &mut String) {
        let seconds = self.seconds;
        for endpoint in &self.endpoints {
            let part = Self::endpoint(name, endpoint);
            let _ = writeln!(
                script,
                "add set ip {table} at-{part} {{ type ipv4_addr; flags dynamic, timeout; size 65536; }}"
            );
            let _ = writeln!(script, "add chain ip {table} to-{part}");
            let _ = writeln!(script, "flush chain ip {table} to-{part}");
            let _ = writeln!(
                script,
                "add rule ip {table} to-{part} update @at-{part} {{ ip saddr timeout {seconds}s }} meta l4proto {} dnat to {}:{}",
                self.protocol.lower(),
                endpoint.address,
                endpoint.port
            );
        }
        for chain in [format!("sticky-{name}"), format!("sticky-masq-{name}")] {
            let _ = writeln!(script, "add chain ip {table} {chain}\nflush chain ip {table} {chain}");
        }
        for part in self.parts(name) {
            let _ = writeln!(script, "add rule ip {table} sticky-{name} ip saddr @at-{part} goto to-{part}");
        }
        let choices: Vec<String> =
            self.parts(name).iter().enumerate().map(|(index, part)| format!("{index} : goto to-{part}")).collect();
        let _ = writeln!(
            script,
            "add rule ip {table} sticky-{name} numgen random mod {} vmap {{ {} }}",
            choices.len(),
            choices.join(", ")
        );
        let _ = writeln!(
            script,
            "add rule ip {table} sticky-masq-{name} meta mark set meta mark or {MASQUERADE:#x} goto sticky-{name}"
        );
    }
}

pub(super) fn element(place: &str, value: &str) -> String {
    if value.is_empty() { place.to_owned() } else { format!("{place} : {value}") }
}
