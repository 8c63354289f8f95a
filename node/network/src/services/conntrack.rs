//! Flows of datagrams that the kernel still leads to endpoints that are gone. A client that goes on
//! from the same port would never reach another one.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::Ipv4Addr;

use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use super::model::{Endpoint, Key, Port, Protocol};
use crate::error::{Error, Result};
use crate::namespace;

/// An address and port that clients use, and where it may lead now.
pub(crate) type Places = HashMap<(Ipv4Addr, u16), HashSet<Endpoint>>;

/// Remembers where datagrams may have been led.
#[derive(Default)]
pub(crate) struct Flows {
    ports: HashMap<Key, Vec<Port>>,
}

impl Flows {
    /// The places of changed Services that led to an endpoint they do not lead to any more, or
    /// lead to one at last.
    pub(crate) fn stale(&mut self, changes: &[(Key, Vec<Port>)], node_addresses: &[Ipv4Addr]) -> Places {
        let mut places = Places::new();
        for (key, ports) in changes {
            let udp: Vec<Port> = ports.iter().filter(|it| it.protocol == Protocol::Udp).cloned().collect();
            let old = if udp.is_empty() { self.ports.remove(key) } else { self.ports.insert(key.clone(), udp.clone()) };
            let before = fronts(&old.unwrap_or_default(), node_addresses);
            let now = fronts(&udp, node_addresses);
            for (place, old) in &before {
                let left = now.get(place).cloned().unwrap_or_default();
                if !old.is_subset(&left) {
                    places.insert(*place, left);
                }
            }
            // A flow from before there was an endpoint leads to none, however long it goes on.
            let first = |place: &(Ipv4Addr, u16)| before.get(place).is_none_or(HashSet::is_empty);
            places.extend(now.into_iter().filter(|(place, left)| first(place) && !left.is_empty()));
        }
        places
    }
}

fn fronts(ports: &[Port], node_addresses: &[Ipv4Addr]) -> Places {
    let mut places = Places::new();
    for port in ports {
        let mut add = |address: Ipv4Addr, number: u16, endpoints: &[Endpoint]| {
            places.entry((address, number)).or_default().extend(endpoints);
        };
        for address in &port.cluster_ips {
            add(*address, port.port, &port.inside);
        }
        for address in &port.external_ips {
            add(*address, port.port, &port.outside);
        }
        for address in node_addresses {
            if let Some(node_port) = port.node_port {
                add(*address, node_port, &port.outside);
            }
        }
    }
    places
}

/// Ends the flows to these places that lead where they should not any more; tells how many.
pub(crate) async fn end(places: Places) -> Result<usize> {
    namespace::on_thread(move || end_here(&places).map_err(Error::system("end flows of datagrams"))).await
}

const SUBSYSTEM: u16 = 1 << 8;
const NEW: u16 = SUBSYSTEM;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const AF_INET: u8 = 2;
const UDP: u8 = 17;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const NESTED: u16 = 0x8000;
/// Kind of a netlink attribute without its flags.
const KIND: u16 = 0x3fff;

fn end_here(places: &Places) -> io::Result<usize> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&message(GET, REQUEST | DUMP, &[]), 0)?;
    let mut doomed = Vec::new();
    let mut done = false;
    while !done {
        let (bytes, _) = socket.recv_from_full()?;
        for (kind, body) in messages(&bytes) {
            match kind {
                NEW => doomed.extend(flow(body).filter(|flow| flow.is_stale(places))),
                DONE => done = true,
                ERROR => return Err(failure(body)),
                _ => {}
            }
        }
    }
    for flow in &doomed {
        socket.send(&message(DELETE, REQUEST | ACK, &attribute(TUPLE_ORIGINAL | NESTED, &flow.original)), 0)?;
        // Gone meanwhile is as good: the answer does not matter.
        socket.recv_from_full()?;
    }
    Ok(doomed.len())
}

fn failure(body: &[u8]) -> io::Error {
    let code = body.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
    io::Error::from_raw_os_error(-code)
}

struct Flow {
    /// The tuple as the kernel wrote it, to name the flow by.
    original: Vec<u8>,
    to: (Ipv4Addr, u16),
    answers_from: (Ipv4Addr, u16),
}

impl Flow {
    fn is_stale(&self, places: &Places) -> bool {
        let (address, port) = self.answers_from;
        places.get(&self.to).is_some_and(|left| !left.contains(&Endpoint { address, port }))
    }
}

/// Header, then what netfilter wants in front of attributes.
fn message(kind: u16, flags: u16, attributes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(20 + attributes.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(20 + attributes.len());
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([AF_INET, 0, 0, 0]);
    bytes.extend(attributes);
    bytes
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The messages in what was received: kind and what follows the header.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
        let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
        let body = bytes.get(16..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?);
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & KIND, value))
    })
}

fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|it| it.0 == kind).map(|it| it.1)
}

/// A flow of datagrams.
fn flow(body: &[u8]) -> Option<Flow> {
    let body = body.get(4..)?;
    let original = find(body, TUPLE_ORIGINAL)?;
    let (_, to) = ends(original)?;
    let (answers_from, _) = ends(find(body, TUPLE_REPLY)?)?;
    Some(Flow { original: original.to_vec(), to, answers_from })
}

/// Where a tuple of datagrams comes from and goes to.
fn ends(tuple: &[u8]) -> Option<((Ipv4Addr, u16), (Ipv4Addr, u16))> {
    let (ip, protocol) = (find(tuple, 1)?, find(tuple, 2)?);
    if find(protocol, 1)? != [UDP] {
        return None;
    }
    let address = |kind| Some(Ipv4Addr::from(*find(ip, kind)?.first_chunk::<4>()?));
    let port = |kind| Some(u16::from_be_bytes(*find(protocol, kind)?.first_chunk()?));
    Some(((address(1)?, port(2)?), (address(2)?, port(3)?)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn tuple(protocol: u8, from: ([u8; 4], u16), to: ([u8; 4], u16)) -> Vec<u8> {
        let ip = [attribute(1, &from.0), attribute(2, &to.0)].concat();
        let ports = [attribute(1, &[protocol]), attribute(2, &from.1.to_be_bytes()), attribute(3, &to.1.to_be_bytes())]
            .concat();
        [attribute(1 | NESTED, &ip), attribute(2 | NESTED, &ports)].concat()
    }

    fn entry(protocol: u8) -> Vec<u8> {
        let original = tuple(protocol, ([10, 244, 0, 1], 4000), ([10, 96, 0, 7], 53));
        let reply = tuple(protocol, ([10, 244, 0, 9], 5353), ([10, 244, 0, 1], 4000));
        let both = [attribute(TUPLE_ORIGINAL | NESTED, &original), attribute(TUPLE_REPLY | NESTED, &reply)].concat();
        message(NEW, 0, &both)
    }

    #[test]
    fn finds_flows_that_lead_elsewhere() {
        let bytes = [entry(UDP), entry(6), message(DONE, 0, &[])].concat();
        let all: Vec<_> = messages(&bytes).collect();
        assert_eq!(all.iter().map(|it| it.0).collect::<Vec<_>>(), [NEW, NEW, DONE]);
        assert!(flow(all[1].1).is_none());
        let flow = flow(all[0].1).unwrap();
        assert_eq!(flow.to, (Ipv4Addr::new(10, 96, 0, 7), 53));
        let valid = |address: [u8; 4]| Endpoint { address: address.into(), port: 5353 };
        let places = |endpoints: &[Endpoint]| Places::from([(flow.to, endpoints.iter().copied().collect())]);
        assert!(flow.is_stale(&places(&[])));
        assert!(flow.is_stale(&places(&[valid([10, 244, 0, 8])])));
        assert!(!flow.is_stale(&places(&[valid([10, 244, 0, 9])])));
        assert!(!flow.is_stale(&Places::new()));
    }

    proptest! {
        #[test]
        fn reads_anything(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for (_, body) in messages(&bytes) {
                let _ = flow(body);
            }
        }
    }
}
