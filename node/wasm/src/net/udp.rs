//! UDP of `wasi:sockets`. Sockets are never connected in the kernel: a stream's peer is a filter,
//! so that it can change without losing the binding.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use tokio::net::UdpSocket;
use wasmtime::component::Resource;
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddressFamily, IpSocketAddress, Network};
use wasmtime_wasi::p2::{DynPollable, Pollable, SocketError, SocketResult, subscribe};

use super::PodNet;
use super::sockets::View;
use super::sockets::bindings::wasi::sockets::{udp, udp_create_socket};
use super::tcp::{buffer_size, hop_limit, set_hop_limit, wanted_size};

/// Datagrams handed over at once.
const BATCH: u64 = 16;
const LARGEST: usize = 65_535;

enum State {
    New(std::net::UdpSocket),
    BindStarted(Arc<UdpSocket>),
    Bound(Arc<UdpSocket>),
}

pub struct Udp {
    state: State,
    family: IpAddressFamily,
    /// The peer of the streams in use, as the guest named it.
    peer: Option<SocketAddr>,
    net: Arc<PodNet>,
}

pub struct Incoming {
    socket: Arc<UdpSocket>,
    /// Where datagrams have to come from, as the kernel tells it.
    peer: Option<SocketAddr>,
    net: Arc<PodNet>,
}

pub struct Outgoing {
    socket: Arc<UdpSocket>,
    family: IpAddressFamily,
    peer: Option<SocketAddr>,
    permit: u64,
    net: Arc<PodNet>,
}

impl Udp {
    fn fd(&self) -> BorrowedFd<'_> {
        match &self.state {
            State::New(socket) => socket.as_fd(),
            State::BindStarted(socket) | State::Bound(socket) => socket.as_fd(),
        }
    }
}

fn fits(family: IpAddressFamily, address: SocketAddr) -> bool {
    match address {
        SocketAddr::V4(_) => family == IpAddressFamily::Ipv4,
        SocketAddr::V6(v6) => family == IpAddressFamily::Ipv6 && v6.ip().to_ipv4_mapped().is_none(),
    }
}

/// A peer's real address.
fn target(net: &PodNet, family: IpAddressFamily, peer: SocketAddr) -> Result<SocketAddr, ErrorCode> {
    if !fits(family, peer) || peer.ip().is_unspecified() || peer.port() == 0 {
        return Err(ErrorCode::InvalidArgument);
    }
    net.route(peer).map(|route| route.to)
}

impl udp_create_socket::Host for View<'_> {
    fn create_udp_socket(&mut self, family: IpAddressFamily) -> SocketResult<Resource<Udp>> {
        self.family(family)?;
        let domain = match family {
            IpAddressFamily::Ipv4 => AddressFamily::INET,
            IpAddressFamily::Ipv6 => AddressFamily::INET6,
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(domain, SocketType::DGRAM, flags, None)?;
        if family == IpAddressFamily::Ipv6 {
            sockopt::set_ipv6_v6only(&socket, true)?;
        }
        let udp = Udp { state: State::New(socket.into()), family, peer: None, net: self.net.clone() };
        Ok(self.table.push(udp)?)
    }
}

impl udp::Host for View<'_> {}

impl udp::HostUdpSocket for View<'_> {
    fn start_bind(
        &mut self,
        this: Resource<Udp>,
        network: Resource<Network>,
        address: IpSocketAddress,
    ) -> SocketResult<()> {
        self.table.get(&network)?;
        let udp = self.table.get_mut(&this)?;
        let wanted = SocketAddr::from(address);
        let State::New(socket) = &udp.state else {
            return Err(match udp.state {
                State::BindStarted(_) => ErrorCode::ConcurrencyConflict,
                _ => ErrorCode::InvalidState,
            }
            .into());
        };
        if !fits(udp.family, wanted) {
            return Err(ErrorCode::InvalidArgument.into());
        }
        let address = udp.net.bind(wanted)?;
        rustix::net::bind(socket, &address)?;
        let socket = UdpSocket::from_std(socket.try_clone()?)?;
        udp.state = State::BindStarted(Arc::new(socket));
        Ok(())
    }

    fn finish_bind(&mut self, this: Resource<Udp>) -> SocketResult<()> {
        let udp = self.table.get_mut(&this)?;
        let State::BindStarted(socket) = &udp.state else {
            return Err(ErrorCode::NotInProgress.into());
        };
        udp.state = State::Bound(socket.clone());
        Ok(())
    }

    fn stream(
        &mut self,
        this: Resource<Udp>,
        peer: Option<IpSocketAddress>,
    ) -> SocketResult<(Resource<Incoming>, Resource<Outgoing>)> {
        let in_use = self.table.iter_children(&this)?.any(|child| child.is::<Incoming>() || child.is::<Outgoing>());
        if in_use {
            return Err(SocketError::trap(wasmtime::format_err!("the former streams are not dropped")));
        }
        let udp = self.table.get_mut(&this)?;
        let State::Bound(socket) = &udp.state else {
            return Err(ErrorCode::InvalidState.into());
        };
        let socket = socket.clone();
        let peer = peer.map(SocketAddr::from);
        let from = match peer {
            Some(peer) => Some(target(&udp.net, udp.family, peer)?),
            None => None,
        };
        udp.peer = peer;
        let (net, family) = (udp.net.clone(), udp.family);
        let incoming = Incoming { socket: socket.clone(), peer: from, net: net.clone() };
        let outgoing = Outgoing { socket, family, peer, permit: 0, net };
        Ok((self.table.push_child(incoming, &this)?, self.table.push_child(outgoing, &this)?))
    }

    fn local_address(&mut self, this: Resource<Udp>) -> SocketResult<IpSocketAddress> {
        let udp = self.table.get(&this)?;
        match &udp.state {
            State::Bound(socket) => Ok(udp.net.shown(socket.local_addr()?).into()),
            State::BindStarted(_) => Err(ErrorCode::ConcurrencyConflict.into()),
            State::New(_) => Err(ErrorCode::InvalidState.into()),
        }
    }

    fn remote_address(&mut self, this: Resource<Udp>) -> SocketResult<IpSocketAddress> {
        Ok(self.table.get(&this)?.peer.ok_or(ErrorCode::InvalidState)?.into())
    }

    fn address_family(&mut self, this: Resource<Udp>) -> wasmtime::Result<IpAddressFamily> {
        Ok(self.table.get(&this)?.family)
    }

    fn unicast_hop_limit(&mut self, this: Resource<Udp>) -> SocketResult<u8> {
        let udp = self.table.get(&this)?;
        hop_limit(udp.fd(), udp.family)
    }

    fn set_unicast_hop_limit(&mut self, this: Resource<Udp>, value: u8) -> SocketResult<()> {
        let udp = self.table.get(&this)?;
        set_hop_limit(udp.fd(), udp.family, value)
    }

    fn receive_buffer_size(&mut self, this: Resource<Udp>) -> SocketResult<u64> {
        buffer_size(sockopt::socket_recv_buffer_size(self.table.get(&this)?.fd())?)
    }

    fn set_receive_buffer_size(&mut self, this: Resource<Udp>, value: u64) -> SocketResult<()> {
        let size = wanted_size(value)?;
        Ok(sockopt::set_socket_recv_buffer_size(self.table.get(&this)?.fd(), size)?)
    }

    fn send_buffer_size(&mut self, this: Resource<Udp>) -> SocketResult<u64> {
        buffer_size(sockopt::socket_send_buffer_size(self.table.get(&this)?.fd())?)
    }

    fn set_send_buffer_size(&mut self, this: Resource<Udp>, value: u64) -> SocketResult<()> {
        let size = wanted_size(value)?;
        Ok(sockopt::set_socket_send_buffer_size(self.table.get(&this)?.fd(), size)?)
    }

    fn subscribe(&mut self, this: Resource<Udp>) -> wasmtime::Result<Resource<DynPollable>> {
        subscribe(self.table, this)
    }

    fn drop(&mut self, this: Resource<Udp>) -> wasmtime::Result<()> {
        self.table.delete(this)?;
        Ok(())
    }
}

#[async_trait::async_trait]
impl Pollable for Udp {
    async fn ready(&mut self) {}
}

impl udp::HostIncomingDatagramStream for View<'_> {
    fn receive(&mut self, this: Resource<Incoming>, most: u64) -> SocketResult<Vec<udp::IncomingDatagram>> {
        let incoming = self.table.get_mut(&this)?;
        let mut datagrams = Vec::new();
        let mut buffer = vec![0; LARGEST];
        // Bounded in all: a flood from elsewhere must not hold the thread.
        for _ in 0..most.min(BATCH) {
            match incoming.socket.try_recv_from(&mut buffer) {
                Ok((length, from)) => {
                    if incoming.peer.is_some_and(|peer| peer != from) {
                        continue;
                    }
                    let data = buffer.get(..length).unwrap_or_default().to_vec();
                    let remote_address = incoming.net.shown(from).into();
                    datagrams.push(udp::IncomingDatagram { data, remote_address });
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) if !datagrams.is_empty() => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(datagrams)
    }

    fn subscribe(&mut self, this: Resource<Incoming>) -> wasmtime::Result<Resource<DynPollable>> {
        subscribe(self.table, this)
    }

    fn drop(&mut self, this: Resource<Incoming>) -> wasmtime::Result<()> {
        self.table.delete(this)?;
        Ok(())
    }
}

#[async_trait::async_trait]
impl Pollable for Incoming {
    async fn ready(&mut self) {
        let _ = self.socket.readable().await;
    }
}

impl Outgoing {
    fn send(&self, datagram: &udp::OutgoingDatagram) -> Result<(), ErrorCode> {
        if datagram.data.len() > LARGEST {
            return Err(ErrorCode::DatagramTooLarge);
        }
        let named = datagram.remote_address.map(SocketAddr::from);
        let peer = match (self.peer, named) {
            (Some(peer), Some(named)) if peer != named => return Err(ErrorCode::InvalidArgument),
            (peer, named) => named.or(peer).ok_or(ErrorCode::InvalidArgument)?,
        };
        let target = target(&self.net, self.family, peer)?;
        match self.socket.try_send_to(&datagram.data, target) {
            Ok(_) => Ok(()),
            // The runtime learns late that a new socket is writable; the kernel knows at once.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let flags = rustix::net::SendFlags::DONTWAIT;
                rustix::net::sendto(&self.socket, &datagram.data, flags, &target)?;
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl udp::HostOutgoingDatagramStream for View<'_> {
    fn check_send(&mut self, this: Resource<Outgoing>) -> SocketResult<u64> {
        let outgoing = self.table.get_mut(&this)?;
        outgoing.permit = BATCH;
        Ok(BATCH)
    }

    fn send(&mut self, this: Resource<Outgoing>, datagrams: Vec<udp::OutgoingDatagram>) -> SocketResult<u64> {
        let outgoing = self.table.get_mut(&this)?;
        if datagrams.len() as u64 > outgoing.permit {
            return Err(SocketError::trap(wasmtime::format_err!("more datagrams than permitted")));
        }
        outgoing.permit = 0;
        let mut sent = 0;
        for datagram in &datagrams {
            match outgoing.send(datagram) {
                Ok(()) => sent += 1,
                Err(ErrorCode::WouldBlock) => break,
                Err(_) if sent > 0 => break,
                Err(code) => return Err(code.into()),
            }
        }
        Ok(sent)
    }

    fn subscribe(&mut self, this: Resource<Outgoing>) -> wasmtime::Result<Resource<DynPollable>> {
        subscribe(self.table, this)
    }

    fn drop(&mut self, this: Resource<Outgoing>) -> wasmtime::Result<()> {
        self.table.delete(this)?;
        Ok(())
    }
}

#[async_trait::async_trait]
impl Pollable for Outgoing {
    async fn ready(&mut self) {
        let _ = self.socket.writable().await;
    }
}
