//! What one Service needs in the table: elements of its maps, and chains where a client is to keep
//! its endpoint. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use super::super::model::{Endpoint, Key, Port, Protocol};
use super::element::{Chain, Map, Place, StickyName, Value};
use super::{MASQUERADE, digest};

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
    /// By place, each once.
    pub(super) elements: Vec<(Place, Value)>,
    pub(super) sticky: BTreeMap<StickyName, Sticky>,
}

impl Chain {
    /// Those that all Services share, of a count of endpoints.
    pub(super) const SHARED: [fn(usize) -> Self; 4] =
        [Self::Pick, Self::PickMasqueraded, Self::Node, Self::NodeMasqueraded];

    /// For how many endpoints it is, if it is one of those that all Services share.
    fn count(self) -> Option<usize> {
        match self {
            Self::Pick(count) | Self::PickMasqueraded(count) | Self::Node(count) | Self::NodeMasqueraded(count) => {
                Some(count)
            }
            Self::Sticky(_) | Self::StickyMasqueraded(_) => None,
        }
    }

    /// The rule of one that all Services share.
    pub(super) fn rule(self) -> String {
        let mark = format!("meta mark set meta mark or {MASQUERADE:#x}");
        match self {
            Self::Pick(count) => {
                format!("dnat ip to ip daddr . meta l4proto . th dport . numgen random mod {count} map @endpoints")
            }
            Self::Node(count) => {
                format!("dnat ip to meta l4proto . th dport . numgen random mod {count} map @node-endpoints")
            }
            Self::PickMasqueraded(count) => format!("{mark} {}", Self::Pick(count).rule()),
            Self::NodeMasqueraded(count) => format!("{mark} {}", Self::Node(count).rule()),
            Self::Sticky(_) | Self::StickyMasqueraded(_) => String::new(),
        }
    }
}

/// `here` says which addresses are of this machine.
pub(super) fn rules(key: &Key, ports: &[Port], here: impl Fn(&Ipv4Addr) -> bool) -> Rules {
    let mut rules = Rules::default();
    for port in ports {
        if port.needs_proxy() {
            for address in &port.cluster_ips {
                rules.set(Place::at(Map::Answered, *address, port.protocol, port.port), Value::Nothing);
            }
            continue;
        }
        // Who reaches itself does so where it is.
        let own = port.inside.iter().chain(&port.outside).map(|endpoint| endpoint.address).filter(&here);
        for address in own {
            rules.set(Place::hairpin(address), Value::Nothing);
        }
        let inside = rules.sticky(key, port, &port.inside);
        let outside = rules.sticky(key, port, &port.outside);
        let (chain, by_node) = match (outside, port.keep_source) {
            (None, true) => (Chain::Pick(port.outside.len()), Chain::Node(port.outside.len())),
            (None, false) => (Chain::PickMasqueraded(port.outside.len()), Chain::NodeMasqueraded(port.outside.len())),
            (Some(name), true) => (Chain::Sticky(name), Chain::Sticky(name)),
            (Some(name), false) => (Chain::StickyMasqueraded(name), Chain::StickyMasqueraded(name)),
        };
        for address in &port.cluster_ips {
            let chain = inside.map_or(Chain::Pick(port.inside.len()), Chain::Sticky);
            rules.lead(Place::at(Map::Services, *address, port.protocol, port.port), chain, &port.inside);
        }
        for address in &port.external_ips {
            rules.lead(Place::at(Map::Services, *address, port.protocol, port.port), chain, &port.outside);
            if port.outside.is_empty() {
                rules.set(Place::at(Map::Refused, *address, port.protocol, port.port), Value::Nothing);
            }
        }
        if let Some(number) = port.node_port {
            rules.lead(Place::node_port(port.protocol, number), by_node, &port.outside);
        }
    }
    rules.elements.sort_by_key(|element| element.0);
    rules.elements.dedup_by_key(|element| element.0);
    rules
}

impl Rules {
    fn set(&mut self, place: Place, value: Value) {
        self.elements.push((place, value));
    }

    /// The largest count of endpoints that a chain is needed for.
    pub(super) fn most_endpoints(&self) -> usize {
        let count = |element: &(Place, Value)| if let Value::Goto(chain) = element.1 { chain.count() } else { None };
        self.elements.iter().filter_map(count).max().unwrap_or(0)
    }

    /// Names the chains of a port that sticks to a client's endpoint.
    fn sticky(&mut self, key: &Key, port: &Port, endpoints: &[Endpoint]) -> Option<StickyName> {
        let seconds = port.affinity.filter(|_| !endpoints.is_empty())?;
        let side = if port.inside == *endpoints { "in" } else { "out" };
        let name = StickyName(digest(&[&key.0, &key.1, &port.name, port.protocol.lower(), side]));
        let sticky = Sticky { protocol: port.protocol, seconds, endpoints: endpoints.to_vec() };
        self.sticky.insert(name, sticky);
        Some(name)
    }

    /// Leads a place to a chain, and the chain, where it looks them up, to the endpoints.
    fn lead(&mut self, place: Place, chain: Chain, endpoints: &[Endpoint]) {
        if endpoints.is_empty() {
            return;
        }
        if chain.count().is_some() {
            for (index, endpoint) in (0..).zip(endpoints) {
                self.set(place.endpoint(index), Value::Endpoint(*endpoint));
            }
        }
        self.set(place, Value::Goto(chain));
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
    fn endpoint(name: StickyName, endpoint: &Endpoint) -> String {
        format!("{name}-{}-{}", endpoint.address, endpoint.port).replace('.', "-")
    }

    pub(super) fn parts(&self, name: StickyName) -> BTreeSet<String> {
        self.endpoints.iter().map(|endpoint| Self::endpoint(name, endpoint)).collect()
    }

    /// (Re)writes the chains; the clients of an endpoint that stays stay with it.
    pub(super) fn write(&self, table: &str, name: StickyName, script: &mut String) {
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
        for chain in [Chain::Sticky(name), Chain::StickyMasqueraded(name)] {
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
