//! Flows of datagrams that the kernel still leads to endpoints that are gone. A client that goes on
//! from the same port would never reach another one.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::Ipv4Addr;

use super::model::{Endpoint, Key, Port, Protocol};
use super::netfilter::{AF_INET, Connection, Header, Messages, REQUEST, find};
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
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;

fn end_here(places: &Places) -> io::Result<usize> {
    let kernel = Connection::open()?;
    let doomed = kernel.list(GET, |message| flow(message.attributes()).filter(|flow| flow.is_stale(places)))?;
    for flow in &doomed {
        let mut end = Messages::default();
        let header = Header { kind: DELETE, flags: REQUEST, family: AF_INET, resource: 0 };
        end.add(header, |it| it.nested(TUPLE_ORIGINAL, &flow.original));
        end.acknowledged();
        kernel.send(&end)?;
        // Gone meanwhile is as good: the answer does not matter.
        kernel.receive()?;
    }
    Ok(doomed.len())
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

/// A flow of datagrams.
fn flow(attributes: &[u8]) -> Option<Flow> {
    let original = find(attributes, TUPLE_ORIGINAL)?;
    let (_, to) = ends(original)?;
    let (answers_from, _) = ends(find(attributes, TUPLE_REPLY)?)?;
    Some(Flow { original: original.to_vec(), to, answers_from })
}

/// Where a tuple of datagrams comes from and goes to.
fn ends(tuple: &[u8]) -> Option<((Ipv4Addr, u16), (Ipv4Addr, u16))> {
    let (ip, protocol) = (find(tuple, 1)?, find(tuple, 2)?);
    if find(protocol, 1)? != [Protocol::Udp.number()] {
        return None;
    }
    let address = |kind| Some(Ipv4Addr::from(*find(ip, kind)?.first_chunk::<4>()?));
    let port = |kind| Some(u16::from_be_bytes(*find(protocol, kind)?.first_chunk()?));
    Some(((address(1)?, port(2)?), (address(2)?, port(3)?)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::services::netfilter::{Attributes, messages};

    type End = ([u8; 4], u16);

    fn tuple(protocol: u8, from: End, to: End) -> impl Fn(&mut Attributes) {
        move |it| {
            it.nest(1, |it| {
                it.put(1, &from.0);
                it.put(2, &to.0);
            });
            it.nest(2, |it| {
                it.put(1, &[protocol]);
                it.put(2, &from.1.to_be_bytes());
                it.put(3, &to.1.to_be_bytes());
            });
        }
    }

    fn entry(sent: &mut Messages, protocol: u8) {
        sent.add(Header { kind: SUBSYSTEM, flags: 0, family: AF_INET, resource: 0 }, |it| {
            it.nest(TUPLE_ORIGINAL, tuple(protocol, ([10, 244, 0, 1], 4000), ([10, 96, 0, 7], 53)));
            it.nest(TUPLE_REPLY, tuple(protocol, ([10, 244, 0, 9], 5353), ([10, 244, 0, 1], 4000)));
        });
    }

    #[test]
    fn finds_flows_that_lead_elsewhere() {
        let mut sent = Messages::default();
        entry(&mut sent, Protocol::Udp.number());
        entry(&mut sent, Protocol::Tcp.number());
        let mut flows = messages(&sent.bytes).map(|message| flow(message.attributes()));
        let (Some(Some(flow)), Some(None), None) = (flows.next(), flows.next(), flows.next()) else {
            panic!("one flow of datagrams and another one");
        };
        assert_eq!(flow.to, (Ipv4Addr::new(10, 96, 0, 7), 53));
        let valid = |address: [u8; 4]| Endpoint { address: address.into(), port: 5353 };
        let places = |endpoints: &[Endpoint]| Places::from([(flow.to, endpoints.iter().copied().collect())]);
        assert!(flow.is_stale(&places(&[])));
        assert!(flow.is_stale(&places(&[valid([10, 244, 0, 8])])));
        assert!(!flow.is_stale(&places(&[valid([10, 244, 0, 9])])));
        assert!(!flow.is_stale(&Places::new()));
    }
}
