//! A pod's view of the network, given to guests whose sockets all live in one namespace: 0.0.0.0
//! is the pod's address, 127.0.0.1 its own loopback, names are resolved by its own servers.

pub mod http;
pub mod resolver;
pub mod sockets;
mod tcp;
mod udp;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tokio::net::{TcpSocket, TcpStream};
use wasmtime_wasi::p2::bindings::sockets::network::ErrorCode;

use crate::launch::PortShift;
use crate::proto::ContainerSpec;

/// Rules that hold for every pod of a host.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    pub cluster: Vec<IpNet>,
    pub denied: Vec<IpNet>,
    pub shift: Option<PortShift>,
    pub nameserver: Option<SocketAddr>,
    /// The network is the pod's own: nothing in it stands for something else.
    pub own_loopback: bool,
}

/// One pod's network.
#[derive(Debug)]
pub struct PodNet {
    v4: Option<Ipv4Addr>,
    v6: Option<std::net::Ipv6Addr>,
    /// What 127.0.0.1 stands for.
    local: Option<Ipv4Addr>,
    rules: Arc<Rules>,
    pub names: resolver::Names,
}

/// Where a guest's connection really goes, and from which address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    pub to: SocketAddr,
    pub from: IpAddr,
    /// A listener on 0.0.0.0 has only the pod's address: tried when nobody listens on loopback.
    pub or: Option<SocketAddr>,
}

impl PodNet {
    pub fn new(spec: &ContainerSpec, rules: Arc<Rules>) -> Result<PodNet, String> {
        let (mut v4, mut v6) = (None, None);
        for text in &spec.addresses {
            match text.parse().map_err(|_| format!("addresses: {text:?} is no IP address"))? {
                IpAddr::V4(ip) => v4 = v4.or(Some(ip)),
                IpAddr::V6(ip) => v6 = v6.or(Some(ip)),
            }
        }
        let names = resolver::Names::new(spec, rules.nameserver, v4, v6, rules.own_loopback)?;
        let local = v4.filter(|_| !rules.own_loopback).map(local);
        Ok(PodNet { v4, v6, local, rules, names })
    }

    pub fn has_v6(&self) -> bool {
        self.v6.is_some()
    }

    pub fn has_v4(&self) -> bool {
        self.v4.is_some()
    }

    fn own(&self, ip: IpAddr) -> Option<IpAddr> {
        match ip {
            IpAddr::V4(_) => self.v4.map(IpAddr::V4),
            IpAddr::V6(_) => self.v6.map(IpAddr::V6),
        }
    }

    fn in_cluster(&self, ip: IpAddr) -> bool {
        self.own(ip) == Some(ip) || self.rules.cluster.iter().any(|range| range.contains(&ip))
    }

    /// Whether the guest means its own loopback.
    fn is_local(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(v4) => v4.is_loopback() && !self.in_cluster(ip),
            IpAddr::V6(v6) => v6.is_loopback(),
        }
    }

    fn shifted(&self, port: u16) -> u16 {
        match self.rules.shift {
            Some(shift) if port != 0 && port < shift.below => port.saturating_add(shift.by),
            _ => port,
        }
    }

    /// Where a guest's bind really happens.
    pub fn bind(&self, wanted: SocketAddr) -> Result<SocketAddr, ErrorCode> {
        let own = self.own(wanted.ip()).ok_or(ErrorCode::AddressNotBindable)?;
        if self.rules.own_loopback {
            return Ok(wanted);
        }
        let ip = match wanted.ip() {
            ip if ip.is_unspecified() || ip == own => own,
            IpAddr::V4(_) if self.is_local(wanted.ip()) => {
                self.local.map(IpAddr::V4).ok_or(ErrorCode::AddressNotBindable)?
            }
            // One address stands for both: an IPv6 pod has no loopback of its own.
            ip if self.is_local(ip) => own,
            _ => return Err(ErrorCode::AddressNotBindable),
        };
        Ok(SocketAddr::new(ip, self.shifted(wanted.port())))
    }

    /// Where a guest's connection really goes.
    pub fn route(&self, wanted: SocketAddr) -> Result<Route, ErrorCode> {
        let ip = wanted.ip();
        let own = self.own(ip).ok_or(ErrorCode::RemoteUnreachable)?;
        let port = self.shifted(wanted.port());
        if self.rules.own_loopback {
            return match self.rules.denied.iter().any(|range| range.contains(&ip)) {
                true => Err(ErrorCode::AccessDenied),
                false => Ok(Route { to: wanted, from: unspecified(own), or: None }),
            };
        }
        if self.is_local(ip) {
            let local = self.local.map(IpAddr::V4).filter(|_| ip.is_ipv4()).unwrap_or(own);
            let or = (local != own).then(|| SocketAddr::new(own, port));
            return Ok(Route { to: SocketAddr::new(local, port), from: local, or });
        }
        if self.in_cluster(ip) {
            return Ok(Route { to: SocketAddr::new(ip, port), from: own, or: None });
        }
        let multicast = ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST);
        if multicast || self.rules.denied.iter().any(|range| range.contains(&ip)) {
            return Err(ErrorCode::AccessDenied);
        }
        Ok(Route { to: wanted, from: own, or: None })
    }

    /// An address as the guest is to see it.
    pub fn shown(&self, address: SocketAddr) -> SocketAddr {
        let mut shown = address;
        let local = self.local.map(IpAddr::V4) == Some(address.ip());
        if local {
            shown.set_ip(Ipv4Addr::LOCALHOST.into());
        }
        if let Some(shift) = self.rules.shift
            && (local || self.in_cluster(address.ip()))
            && let Some(port) = address.port().checked_sub(shift.by)
            && port > 0
            && port < shift.below
        {
            shown.set_port(port);
        }
        shown
    }

    /// Where a proxy listens.
    pub fn listen(&self, port: u16) -> Result<SocketAddr, String> {
        let ip = self.v4.map(IpAddr::V4).or(self.v6.map(IpAddr::V6));
        let mut ip = ip.ok_or("the pod has no address")?;
        if self.rules.own_loopback {
            // An IPv6 socket takes IPv4 too.
            ip = unspecified(self.v6.map_or(ip, IpAddr::V6));
        }
        Ok(SocketAddr::new(ip, self.shifted(port)))
    }

    /// Opens a connection for the host's own use on the guest's behalf (outgoing HTTP).
    pub async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, ConnectError> {
        let addresses = self.names.resolve(host).await.map_err(ConnectError::Name)?;
        let mut last = ConnectError::Io(io::ErrorKind::AddrNotAvailable.into());
        for ip in addresses {
            let route = match self.route(SocketAddr::new(ip, port)) {
                Ok(route) => route,
                Err(code) => {
                    last = ConnectError::Denied(code);
                    continue;
                }
            };
            match open(route).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = ConnectError::Io(error),
            }
        }
        Err(last)
    }
}

#[derive(Debug)]
pub enum ConnectError {
    Name(resolver::Error),
    Denied(ErrorCode),
    Io(io::Error),
}

async fn open(route: Route) -> io::Result<TcpStream> {
    match dial(route.from, route.to).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => match route.or {
            Some(or) => dial(or.ip(), or).await,
            None => Err(error),
        },
        result => result,
    }
}

async fn dial(from: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = tcp_socket(to.is_ipv4())?;
    bind_ephemeral(&socket, from)?;
    socket.connect(to).await
}

fn tcp_socket(v4: bool) -> io::Result<TcpSocket> {
    if v4 { TcpSocket::new_v4() } else { TcpSocket::new_v6() }
}

/// Binds the address and leaves the port to the time of connecting: it can then be shared between
/// connections to different peers.
fn bind_ephemeral(socket: &TcpSocket, from: IpAddr) -> io::Result<()> {
    use std::os::fd::AsRawFd as _;
    if from.is_ipv4() {
        let on: nix::libc::c_int = 1;
        // SAFETY: the option takes an int, and the descriptor is open.
        unsafe {
            nix::libc::setsockopt(
                socket.as_raw_fd(),
                nix::libc::IPPROTO_IP,
                nix::libc::IP_BIND_ADDRESS_NO_PORT,
                (&raw const on).cast(),
                size_of_val(&on) as nix::libc::socklen_t,
            );
        }
    }
    socket.bind(SocketAddr::new(from, 0))
}

fn unspecified(family: IpAddr) -> IpAddr {
    match family {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// The pod's own loopback in a namespace that pods share: 127 and the rest of the pod's address.
/// Where pods themselves have addresses in 127.0.0.0/8, the half that they are not in.
fn local(pod: Ipv4Addr) -> Ipv4Addr {
    let [a, b, c, d] = pod.octets();
    match a {
        127 => Ipv4Addr::new(127, b ^ 0x80, c, d),
        _ => Ipv4Addr::new(127, b, c, d),
    }
}

/// Longest a name's server is waited for, each time it is asked.
pub const RESOLVE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn pod(address: &str, rules: Rules) -> PodNet {
        let spec = ContainerSpec { addresses: vec![address.into()], ..Default::default() };
        PodNet::new(&spec, Arc::new(rules)).unwrap()
    }

    fn rules() -> Rules {
        Rules {
            cluster: vec!["10.42.0.0/16".parse().unwrap(), "10.43.0.0/16".parse().unwrap()],
            denied: crate::launch::link_local(),
            ..Rules::default()
        }
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn binds_are_the_pods_own() {
        let pod = pod("10.42.1.7", rules());
        assert_eq!(pod.bind(at("0.0.0.0:80")).unwrap(), at("10.42.1.7:80"));
        assert_eq!(pod.bind(at("10.42.1.7:80")).unwrap(), at("10.42.1.7:80"));
        assert_eq!(pod.bind(at("127.0.0.1:80")).unwrap(), at("127.42.1.7:80"));
        assert_eq!(pod.bind(at("10.42.1.8:80")), Err(ErrorCode::AddressNotBindable));
        assert_eq!(pod.bind(at("[::]:80")), Err(ErrorCode::AddressNotBindable));
        assert_eq!(pod.shown(at("127.42.1.7:80")), at("127.0.0.1:80"));
    }

    #[test]
    fn connections_go_where_a_pod_may_go() {
        let pod = pod("10.42.1.7", rules());
        let route = pod.route(at("127.0.0.1:80")).unwrap();
        assert_eq!((route.to, route.from), (at("127.42.1.7:80"), "127.42.1.7".parse().unwrap()));
        assert_eq!(route.or, Some(at("10.42.1.7:80")));
        // Another pod's loopback is our own: it cannot be named.
        assert_eq!(pod.route(at("127.42.1.8:80")).unwrap().to, at("127.42.1.7:80"));
        assert_eq!(pod.route(at("10.43.0.1:443")).unwrap().from, IpAddr::from([10, 42, 1, 7]));
        assert_eq!(pod.route(at("169.254.169.254:80")), Err(ErrorCode::AccessDenied));
        assert_eq!(pod.route(at("224.0.0.1:80")), Err(ErrorCode::AccessDenied));
        assert_eq!(pod.route(at("[2001:db8::1]:80")), Err(ErrorCode::RemoteUnreachable));
    }

    #[test]
    fn a_network_of_ones_own_is_taken_as_it_is() {
        let pod = pod("10.42.1.7", Rules { own_loopback: true, ..rules() });
        for address in ["0.0.0.0:80", "127.0.0.1:80", "10.42.1.7:80"] {
            assert_eq!(pod.bind(at(address)).unwrap(), at(address));
            assert_eq!(pod.shown(at(address)), at(address));
        }
        let route = pod.route(at("127.0.0.1:80")).unwrap();
        assert_eq!((route.to, route.from, route.or), (at("127.0.0.1:80"), Ipv4Addr::UNSPECIFIED.into(), None));
        assert_eq!(pod.route(at("169.254.169.254:80")), Err(ErrorCode::AccessDenied));
        assert_eq!(pod.listen(8080).unwrap(), at("0.0.0.0:8080"));
    }

    #[test]
    fn ordinary_users_ports_are_shifted_in_the_cluster_only() {
        let pod = pod(
            "127.64.1.7",
            Rules {
                cluster: vec!["127.64.0.0/16".parse().unwrap(), "127.96.0.0/16".parse().unwrap()],
                shift: Some(PortShift { below: 1024, by: 10000 }),
                ..Rules::default()
            },
        );
        assert_eq!(pod.bind(at("0.0.0.0:80")).unwrap(), at("127.64.1.7:10080"));
        assert_eq!(pod.bind(at("0.0.0.0:0")).unwrap(), at("127.64.1.7:0"));
        assert_eq!(pod.bind(at("0.0.0.0:8080")).unwrap(), at("127.64.1.7:8080"));
        assert_eq!(pod.shown(at("127.64.1.7:10080")), at("127.64.1.7:80"));
        assert_eq!(pod.route(at("127.96.0.10:53")).unwrap().to, at("127.96.0.10:10053"));
        assert_eq!(pod.route(at("127.0.0.1:80")).unwrap().to, at("127.192.1.7:10080"));
        assert_eq!(pod.route(at("192.0.2.1:80")).unwrap().to, at("192.0.2.1:80"));
    }
}
