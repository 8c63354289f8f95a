//! `wasi:sockets`, bound to the pod's network. Only what differs from the runtime's own is here;
//! network, instance-network and the streams are its.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;

use wasmtime::component::{HasData, Linker, Resource, ResourceTable};
use wasmtime_wasi::p2::bindings::sockets::network::{self, ErrorCode, IpAddress, IpAddressFamily, Network};
use wasmtime_wasi::p2::{DynPollable, Pollable, SocketError, subscribe};
use wasmtime_wasi::runtime::AbortOnDropJoinHandle;

use super::{PodNet, resolver};

pub mod bindings {
    wasmtime::component::bindgen!({
        path: "wit",
        world: "sampan:host/sockets",
        imports: { default: trappable },
        trappable_error_type: {
            "wasi:sockets/network.error-code" => wasmtime_wasi::p2::SocketError,
        },
        with: {
            "wasi:io": wasmtime_wasi::p2::bindings::io,
            "wasi:clocks": wasmtime_wasi::p2::bindings::clocks,
            "wasi:sockets/network": wasmtime_wasi::p2::bindings::sockets::network,
            "wasi:sockets/tcp.tcp-socket": crate::net::tcp::Tcp,
            "wasi:sockets/udp.udp-socket": crate::net::udp::Udp,
            "wasi:sockets/udp.incoming-datagram-stream": crate::net::udp::Incoming,
            "wasi:sockets/udp.outgoing-datagram-stream": crate::net::udp::Outgoing,
            "wasi:sockets/ip-name-lookup.resolve-address-stream": crate::net::sockets::Lookup,
        },
        require_store_data_send: true,
    });
}

use bindings::wasi::sockets::{ip_name_lookup, tcp, tcp_create_socket, udp, udp_create_socket};

/// A store's sockets: its table and its pod's network.
pub struct View<'a> {
    pub table: &'a mut ResourceTable,
    pub net: &'a Arc<PodNet>,
}

pub trait SocketsView: Send {
    fn pod_sockets(&mut self) -> View<'_>;
}

struct Sockets;

impl HasData for Sockets {
    type Data<'a> = View<'a>;
}

/// Links these interfaces over the runtime's own; the linker has to allow shadowing.
pub fn add_to_linker<T: SocketsView + 'static>(linker: &mut Linker<T>) -> wasmtime::Result<()> {
    tcp::add_to_linker::<T, Sockets>(linker, T::pod_sockets)?;
    tcp_create_socket::add_to_linker::<T, Sockets>(linker, T::pod_sockets)?;
    udp::add_to_linker::<T, Sockets>(linker, T::pod_sockets)?;
    udp_create_socket::add_to_linker::<T, Sockets>(linker, T::pod_sockets)?;
    ip_name_lookup::add_to_linker::<T, Sockets>(linker, T::pod_sockets)
}

impl network::Host for View<'_> {
    fn convert_error_code(&mut self, error: SocketError) -> wasmtime::Result<ErrorCode> {
        error.downcast()
    }

    fn network_error_code(&mut self, error: Resource<wasmtime::Error>) -> wasmtime::Result<Option<ErrorCode>> {
        let error = self.table.get(&error)?;
        Ok(error.downcast_ref::<std::io::Error>().map(ErrorCode::from))
    }
}

impl network::HostNetwork for View<'_> {
    fn drop(&mut self, this: Resource<Network>) -> wasmtime::Result<()> {
        self.table.delete(this)?;
        Ok(())
    }
}

impl View<'_> {
    pub(super) fn family(&self, family: IpAddressFamily) -> Result<(), ErrorCode> {
        let there = match family {
            IpAddressFamily::Ipv4 => self.net.has_v4(),
            IpAddressFamily::Ipv6 => self.net.has_v6(),
        };
        there.then_some(()).ok_or(ErrorCode::NotSupported)
    }
}

/// A name's addresses, as they come.
pub enum Lookup {
    Pending(AbortOnDropJoinHandle<Result<Vec<IpAddr>, resolver::Error>>),
    Ready(Result<std::vec::IntoIter<IpAddr>, ErrorCode>),
}

impl Lookup {
    fn settle(&mut self, result: Result<Vec<IpAddr>, resolver::Error>) {
        *self = Lookup::Ready(match result {
            Ok(addresses) => Ok(addresses.into_iter()),
            Err(resolver::Error::Invalid) => Err(ErrorCode::InvalidArgument),
            Err(resolver::Error::NotFound) => Err(ErrorCode::NameUnresolvable),
            Err(resolver::Error::Unanswered | resolver::Error::Failed) => Err(ErrorCode::TemporaryResolverFailure),
        });
    }
}

#[async_trait::async_trait]
impl Pollable for Lookup {
    async fn ready(&mut self) {
        if let Lookup::Pending(task) = self {
            let result = task.await;
            self.settle(result);
        }
    }
}

impl ip_name_lookup::Host for View<'_> {
    fn resolve_addresses(&mut self, network: Resource<Network>, name: String) -> Result<Resource<Lookup>, SocketError> {
        self.table.get(&network)?;
        let net = self.net.clone();
        let task = wasmtime_wasi::runtime::spawn(async move { net.names.resolve(&name).await });
        Ok(self.table.push(Lookup::Pending(task))?)
    }
}

impl ip_name_lookup::HostResolveAddressStream for View<'_> {
    fn resolve_next_address(&mut self, this: Resource<Lookup>) -> Result<Option<IpAddress>, SocketError> {
        let lookup = self.table.get_mut(&this)?;
        if let Lookup::Pending(task) = lookup
            && let Some(result) = wasmtime_wasi::runtime::poll_noop(Pin::new(task))
        {
            lookup.settle(result);
        }
        match lookup {
            Lookup::Pending(_) => Err(ErrorCode::WouldBlock.into()),
            Lookup::Ready(Ok(addresses)) => Ok(addresses.next().map(IpAddress::from)),
            Lookup::Ready(Err(code)) => Err((*code).into()),
        }
    }

    fn subscribe(&mut self, this: Resource<Lookup>) -> wasmtime::Result<Resource<DynPollable>> {
        subscribe(self.table, this)
    }

    fn drop(&mut self, this: Resource<Lookup>) -> wasmtime::Result<()> {
        self.table.delete(this)?;
        Ok(())
    }
}
