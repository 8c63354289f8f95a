//! What the table's maps and sets hold. Shown as `nft` shows it.

use std::fmt;
use std::net::Ipv4Addr;

use super::super::model::{Endpoint, Protocol};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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

    /// As `nft` is told, up to how much it may hold.
    pub(super) fn declaration(self) -> &'static str {
        match self {
            Self::Services => "map services { type ipv4_addr . inet_proto . inet_service : verdict;",
            Self::Endpoints => {
                "map endpoints { typeof ip daddr . meta l4proto . th dport . numgen random mod 65536 : ip daddr . th dport;"
            }
            Self::NodePorts => "map node-ports { type inet_proto . inet_service : verdict;",
            Self::NodeEndpoints => {
                "map node-endpoints { typeof meta l4proto . th dport . numgen random mod 65536 : ip daddr . th dport;"
            }
            Self::Refused => "set refused { type ipv4_addr . inet_proto . inet_service;",
            Self::Answered => "set answered { type ipv4_addr . inet_proto . inet_service;",
            Self::Hairpin => "set hairpin { type ipv4_addr . ipv4_addr;",
        }
    }
}

/// What is looked up: a map or set, and the parts that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Place {
    pub(super) map: Map,
    pub(super) address: Option<Ipv4Addr>,
    pub(super) port: Option<(Protocol, u16)>,
    /// The random number.
    pub(super) index: Option<u32>,
}

impl Place {
    /// An address and a port of it, in a map that has no more.
    pub(super) fn at(map: Map, address: Ipv4Addr, protocol: Protocol, port: u16) -> Self {
        Self { map, address: Some(address), port: Some((protocol, port)), index: None }
    }

    pub(super) fn node_port(protocol: Protocol, port: u16) -> Self {
        Self { map: Map::NodePorts, address: None, port: Some((protocol, port)), index: None }
    }

    /// Who goes to itself through a Service.
    pub(super) fn hairpin(address: Ipv4Addr) -> Self {
        Self { map: Map::Hairpin, address: Some(address), port: None, index: None }
    }

    /// Where the endpoint of this number is looked up for what is at `self`.
    pub(super) fn endpoint(self, index: u32) -> Self {
        let map = if self.map == Map::NodePorts { Map::NodeEndpoints } else { Map::Endpoints };
        Self { map, index: Some(index), ..self }
    }

    /// As a rule puts it together: every part fills whole words of 4 bytes.
    pub(super) fn write(self, bytes: &mut Vec<u8>) {
        if let Some(address) = self.address {
            bytes.extend(address.octets());
            if self.map == Map::Hairpin {
                bytes.extend(address.octets());
            }
        }
        if let Some((protocol, port)) = self.port {
            bytes.extend([protocol.number(), 0, 0, 0]);
            bytes.extend(port.to_be_bytes());
            bytes.extend([0; 2]);
        }
        if let Some(index) = self.index {
            bytes.extend(index.to_ne_bytes());
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut between = "";
        if let Some(address) = self.address {
            write!(f, "{address}")?;
            if self.map == Map::Hairpin {
                write!(f, " . {address}")?;
            }
            between = " . ";
        }
        if let Some((protocol, port)) = self.port {
            write!(f, "{between}{} . {port}", protocol.lower())?;
        }
        if let Some(index) = self.index {
            write!(f, " . {index}")?;
        }
        Ok(())
    }
}

/// What a place leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// It is in a set.
    Nothing,
    Goto(Chain),
    Endpoint(Endpoint),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => Ok(()),
            Self::Goto(chain) => write!(f, "goto {chain}"),
            Self::Endpoint(Endpoint { address, port }) => write!(f, "{address} . {port}"),
        }
    }
}

/// A chain that a map leads to. Those that pick are shared by all Services: there is one of a kind
/// for each count of endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Chain {
    /// By cluster or external address, keeping the client's.
    Pick(usize),
    PickMasqueraded(usize),
    /// By node port.
    Node(usize),
    NodeMasqueraded(usize),
    Sticky(StickyName),
    StickyMasqueraded(StickyName),
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pick(count) => write!(f, "pick-{count}"),
            Self::PickMasqueraded(count) => write!(f, "pick-masq-{count}"),
            Self::Node(count) => write!(f, "node-{count}"),
            Self::NodeMasqueraded(count) => write!(f, "node-masq-{count}"),
            Self::Sticky(name) => write!(f, "sticky-{name}"),
            Self::StickyMasqueraded(name) => write!(f, "sticky-masq-{name}"),
        }
    }
}

/// Names the port of a Service whose clients keep their endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct StickyName(pub(super) u64);

impl fmt::Display for StickyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
