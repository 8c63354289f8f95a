//! Services by listening at their addresses: where there is no nftables, and for what packets
//! cannot simply be led to (loopback).

mod tcp;
mod udp;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use ipnet::Ipv4Net;
use rand::seq::{IndexedRandom, SliceRandom};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use sampan_client::EventKind;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::model::{Endpoint, Key, Port, Protocol};
use crate::PortShift;

/// Clients remembered for session affinity, a port.
const REMEMBERED: usize = 65_536;

/// Tells a user something about a Service.
pub(crate) type Tell = Arc<dyn Fn(&Key, EventKind, &str, String) + Send + Sync>;

/// Addresses of the cluster's other nodes; one that is ours too means a node on this machine.
pub(crate) type SharedAddresses = Arc<RwLock<HashSet<Ipv4Addr>>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Bind {
    pub(crate) protocol: Protocol,
    pub(crate) address: SocketAddrV4,
}

/// Where a connection may go.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    endpoints: Vec<SocketAddrV4>,
    affinity: Option<Duration>,
    /// Several nodes of the cluster may listen on one machine: at cluster addresses.
    shared: bool,
    /// The port that the user named, where it listens at another.
    instead_of: Option<u16>,
}

/// What is served by listening, and where.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Whether nftables does all that it can.
    pub(crate) nftables: bool,
    pub(crate) shift: PortShift,
    pub(crate) cluster_cidr: Ipv4Net,
    pub(crate) node_addresses: Vec<Ipv4Addr>,
}

impl Plan {
    fn binds(&self, ports: &[Port]) -> BTreeMap<Bind, Target> {
        let mut binds = BTreeMap::new();
        for port in ports {
            let proxied = !self.nftables || port.needs_proxy();
            let target = |endpoints: &[Endpoint], shared| Target {
                endpoints: endpoints.iter().map(|endpoint| self.reach(*endpoint)).collect(),
                affinity: port.affinity.map(|seconds| Duration::from_secs(seconds.into())),
                shared,
                instead_of: None,
            };
            let bind = |address, port_number| Bind {
                protocol: port.protocol,
                address: SocketAddrV4::new(address, port_number),
            };
            if proxied && !port.inside.is_empty() {
                let shifted = self.shift.apply(port.port);
                let mut target = target(&port.inside, true);
                target.instead_of = (shifted != port.port).then_some(port.port);
                for address in &port.cluster_ips {
                    binds.insert(bind(*address, shifted), target.clone());
                }
            }
            if let Some(node_port) = port.node_port.filter(|_| !port.outside.is_empty()) {
                for address in self.node_addresses.iter().filter(|it| proxied || it.is_loopback()) {
                    binds.insert(bind(*address, node_port), target(&port.outside, false));
                }
            }
        }
        binds
    }

    /// Pods listen where they can, as Services do.
    fn reach(&self, endpoint: Endpoint) -> SocketAddrV4 {
        let pod = self.cluster_cidr.contains(&endpoint.address);
        let port = if pod { self.shift.apply(endpoint.port) } else { endpoint.port };
        SocketAddrV4::new(endpoint.address, port)
    }
}

/// The endpoints of a listener and who is at which.
pub(crate) struct Choice {
    target: Target,
    clients: Mutex<HashMap<IpAddr, (SocketAddrV4, Instant)>>,
}

impl Choice {
    fn new(target: Target, before: Option<&Self>) -> Self {
        let clients = before.map(|it| it.lock().clone()).unwrap_or_default();
        Self { target, clients: Mutex::new(clients) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<IpAddr, (SocketAddrV4, Instant)>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Endpoints to try, the best first.
    fn order(&self, client: IpAddr) -> Vec<SocketAddrV4> {
        let mut order = self.target.endpoints.clone();
        order.shuffle(&mut rand::rng());
        if let Some(time) = self.target.affinity {
            let kept = self.lock().get(&client).filter(|(_, at)| at.elapsed() < time).map(|(it, _)| *it);
            if let Some(place) = kept.and_then(|kept| order.iter().position(|it| *it == kept)) {
                order.swap(0, place);
            }
        }
        order
    }

    /// The client is at this endpoint now.
    fn settled(&self, client: IpAddr, endpoint: SocketAddrV4) {
        let Some(time) = self.target.affinity else {
            return;
        };
        let mut clients = self.lock();
        if clients.len() >= REMEMBERED {
            clients.retain(|_, (_, at)| at.elapsed() < time);
        }
        if clients.len() < REMEMBERED || clients.contains_key(&client) {
            clients.insert(client, (endpoint, Instant::now()));
        }
    }

    fn one(&self, client: IpAddr) -> Option<SocketAddrV4> {
        let chosen = match self.target.affinity {
            Some(_) => self.order(client).first().copied(),
            None => self.target.endpoints.choose(&mut rand::rng()).copied(),
        };
        chosen.inspect(|endpoint| self.settled(client, *endpoint))
    }

    fn has(&self, endpoint: SocketAddrV4) -> bool {
        self.target.endpoints.contains(&endpoint)
    }
}

struct Running {
    choice: watch::Sender<Arc<Choice>>,
    stop: CancellationToken,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// All listeners of this node.
pub(crate) struct Proxy {
    plan: Plan,
    tell: Tell,
    shared: SharedAddresses,
    wanted: HashMap<Key, BTreeMap<Bind, Target>>,
    claims: BTreeMap<Bind, BTreeMap<Key, Target>>,
    running: HashMap<Bind, Running>,
    /// What could not be listened at, and what was said about it.
    failed: HashMap<Bind, String>,
}

impl Proxy {
    pub(crate) fn new(plan: Plan, tell: Tell, shared: SharedAddresses) -> Self {
        let (wanted, claims, running, failed) = Default::default();
        Self { plan, tell, shared, wanted, claims, running, failed }
    }

    /// Whether some listener is still to be tried again.
    pub(crate) fn incomplete(&self) -> bool {
        !self.failed.is_empty()
    }

    pub(crate) fn apply(&mut self, changes: &[(Key, Vec<Port>)]) {
        let mut touched: HashSet<Bind> = self.failed.keys().copied().collect();
        for (key, ports) in changes {
            let new = self.plan.binds(ports);
            let old = self.wanted.remove(key).unwrap_or_default();
            for bind in old.keys() {
                touched.insert(*bind);
                if let Some(claims) = self.claims.get_mut(bind) {
                    claims.remove(key);
                    if claims.is_empty() {
                        self.claims.remove(bind);
                    }
                }
            }
            for (bind, target) in &new {
                touched.insert(*bind);
                let claims = self.claims.entry(*bind).or_default();
                claims.insert(key.clone(), target.clone());
                if let Some(first) = claims.keys().next().filter(|first| *first != key) {
                    let message = format!(
                        "Service {}/{} has {} port {} already",
                        first.0,
                        first.1,
                        bind.protocol.upper(),
                        bind.address
                    );
                    (self.tell)(key, EventKind::Warning, "PortAlreadyTaken", message);
                }
            }
            if !new.is_empty() {
                self.wanted.insert(key.clone(), new);
            }
        }
        // Stop before starting: one may wait for another's place.
        touched.retain(|bind| {
            let stays = self.claims.contains_key(bind);
            if !stays {
                self.running.remove(bind);
                self.failed.remove(bind);
            }
            stays
        });
        for bind in touched {
            self.serve(bind);
        }
    }

    fn serve(&mut self, bind: Bind) {
        let Some((key, target)) = self.claims.get(&bind).and_then(BTreeMap::first_key_value) else {
            return;
        };
        if let Some(running) = self.running.get(&bind) {
            if running.choice.borrow().target != *target {
                running.choice.send_modify(|choice| *choice = Arc::new(Choice::new(target.clone(), Some(choice))));
            }
            return;
        }
        let (sender, receiver) = watch::channel(Arc::new(Choice::new(target.clone(), None)));
        let stop = CancellationToken::new();
        let listening = match bind.protocol {
            Protocol::Tcp => tcp::listen(bind.address, target.shared, receiver, stop.clone()),
            Protocol::Udp => udp::listen(bind.address, target.shared, receiver, stop.clone()),
        };
        match listening {
            Ok(()) => {
                self.failed.remove(&bind);
                self.running.insert(bind, Running { choice: sender, stop });
                if let Some(port) = target.instead_of {
                    let message = format!(
                        "{} port {port} of {} listens at port {}: programs without privilege cannot listen below {}",
                        bind.protocol.upper(),
                        bind.address.ip(),
                        bind.address.port(),
                        self.plan.shift.below
                    );
                    (self.tell)(key, EventKind::Normal, "PortShifted", message);
                }
            }
            Err(error) => {
                let message = failure(bind, &error);
                let elsewhere = error.kind() == io::ErrorKind::AddrInUse && self.has_neighbours();
                if elsewhere {
                    tracing::debug!(address = %bind.address, "another node of this machine listens there");
                } else if self.failed.get(&bind) != Some(&message) {
                    (self.tell)(key, EventKind::Warning, "PortAlreadyTaken", message.clone());
                }
                self.failed.insert(bind, message);
            }
        }
    }

    /// Whether another node of the cluster is on this machine.
    fn has_neighbours(&self) -> bool {
        let shared = self.shared.read().unwrap_or_else(PoisonError::into_inner);
        self.plan.node_addresses.iter().any(|address| shared.contains(address))
    }

    #[cfg(test)]
    pub(crate) fn listening(&self) -> Vec<Bind> {
        let mut all: Vec<Bind> = self.running.keys().copied().collect();
        all.sort();
        all
    }
}

fn failure(bind: Bind, error: &io::Error) -> String {
    let (protocol, address) = (bind.protocol.upper(), bind.address);
    if error.kind() == io::ErrorKind::AddrInUse {
        format!(
            "{protocol} port {} of {} is already taken by another program of this machine; trying again",
            address.port(),
            address.ip()
        )
    } else {
        format!("cannot listen at {protocol} {address}: {error}; trying again")
    }
}

/// A bound socket; `shared` lets other nodes on this machine bind the same.
pub(crate) fn socket(kind: SocketType, address: SocketAddrV4, shared: bool) -> io::Result<std::os::fd::OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::INET, kind, flags, None)?;
    if kind == SocketType::STREAM {
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    if shared {
        sockopt::set_socket_reuseport(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    Ok(socket)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
