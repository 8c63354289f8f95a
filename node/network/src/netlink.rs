//! Links, addresses, routes, rules and neighbours of one network namespace.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::RawFd;

use futures::TryStreamExt;
use ipnet::Ipv4Net;
use nix::errno::Errno;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkFlags, LinkHeader, LinkMessage};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVxlan, RouteMessageBuilder};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use crate::error::{Error, Result};

/// Marks routes as ours (`ip route` shows `proto 83`), beside metrics that name the cluster.
const PROTOCOL: u8 = 83;
const TABLE_MAIN: u32 = 254;
const TABLE_LOCAL: u32 = 255;

pub(crate) type Mac = [u8; 6];

/// A route of the machine that is not bound to a link of ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Route {
    pub(crate) destination: Ipv4Net,
    pub(crate) way: Way,
    pub(crate) metric: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Way {
    /// Every address of the range is the machine's own.
    Local,
    /// An error at once instead of the default route.
    Unreachable,
    Gateway(Ipv4Addr),
}

/// A route that the kernel has.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) destination: Ipv4Net,
    pub(crate) metric: u32,
    pub(crate) ours: bool,
    pub(crate) local: bool,
}

pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) mac: Vec<u8>,
    pub(crate) mtu: u32,
    /// Whether neighbours are asked for there, as on Ethernet; not through a tunnel.
    segment: bool,
}

/// How packets for an address leave the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WayOut {
    /// Straight to a neighbour on a segment that this machine is on too.
    pub(crate) on_segment: bool,
    pub(crate) mtu: u32,
}

/// The far end of a tunnel: a link address behind a node's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tunnel {
    pub(crate) node: Ipv4Addr,
    pub(crate) mac: Mac,
    pub(crate) vni: u32,
}

/// A name for a link of ours: at most 15 characters, a letter for its kind and the cluster's first.
pub(crate) fn name(kind: char, cluster_id: &str, digest: &[u8]) -> String {
    let cluster: String = cluster_id.chars().filter(char::is_ascii_alphanumeric).take(8).collect();
    let hex: String = digest.iter().take(3).map(|byte| format!("{byte:02x}")).collect();
    format!("{kind}{cluster}{hex}")
}

/// A locally administered unicast address out of a digest.
pub(crate) fn mac(digest: &[u8], from: usize) -> Mac {
    let mut mac: Mac = [0; 6];
    for (place, byte) in mac.iter_mut().zip(digest.iter().skip(from)) {
        *place = *byte;
    }
    mac[0] = (mac[0] & 0xfc) | 0x02;
    mac
}

/// A connection to the kernel, in the network namespace of the thread that opened it.
pub(crate) struct Netlink {
    handle: Handle,
    connection: JoinHandle<()>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

fn errno(error: &rtnetlink::Error) -> Option<Errno> {
    match error {
        rtnetlink::Error::NetlinkError(message) => Some(Errno::from_raw(-message.code?.get())),
        _ => None,
    }
}

fn failed(doing: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Error {
    move |error| Error::Netlink { doing: doing.into(), error }
}

/// That it is there already is as good.
fn or_there(result: Result<(), rtnetlink::Error>) -> Result<(), rtnetlink::Error> {
    match result {
        Err(error) if errno(&error) == Some(Errno::EEXIST) => Ok(()),
        other => other,
    }
}

/// That it is gone already is as good: whether there was something.
fn or_gone(result: Result<(), rtnetlink::Error>) -> Result<bool, rtnetlink::Error> {
    match result {
        Ok(()) => Ok(true),
        Err(error)
            if matches!(
                errno(&error),
                Some(Errno::ESRCH | Errno::ENODEV | Errno::ENOENT | Errno::ENXIO | Errno::EADDRNOTAVAIL)
            ) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

impl Netlink {
    /// Must be called within a runtime.
    pub(crate) fn here() -> Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::system("open a netlink socket"))?;
        Ok(Self { handle, connection: tokio::spawn(connection) })
    }

    pub(crate) async fn link(&self, name: &str) -> Result<Option<Link>> {
        let mut links = self.handle.link().get().match_name(name).execute();
        match links.try_next().await {
            Ok(Some(message)) => Ok(Some(found_link(&message))),
            Ok(None) => Ok(None),
            Err(error) if errno(&error) == Some(Errno::ENODEV) => Ok(None),
            Err(error) => Err(failed(format!("look for the link {name}"))(error)),
        }
    }

    async fn index(&self, name: &str) -> Result<u32> {
        self.link(name)
            .await?
            .map(|link| link.index)
            .ok_or_else(|| Error::System { doing: format!("find the link {name}"), error: Errno::ENODEV.into() })
    }

    /// A pair of links; the peer is made in the namespace `peer_in`, or beside the first.
    pub(crate) async fn add_veth(
        &self,
        name: &str,
        mac: Mac,
        peer: &str,
        peer_mac: Mac,
        peer_in: Option<RawFd>,
    ) -> Result<()> {
        let mut other = LinkMessageBuilder::<LinkUnspec>::new().name(peer).address(peer_mac.to_vec());
        if let Some(fd) = peer_in {
            other = other.setns_by_fd(fd);
        }
        let message = LinkVeth::new(name, peer)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(other.build())))
            .address(mac.to_vec())
            .build();
        self.handle.link().add(message).execute().await.map_err(failed(format!("make the link {name}")))
    }

    /// A device that puts frames into UDP and sends each where [`Self::add_tunnel`] says.
    pub(crate) async fn add_vxlan(&self, name: &str, mac: Mac, vni: u32, port: u16, mtu: u32) -> Result<()> {
        let message = LinkVxlan::new(name, vni).port(port).learning(false).address(mac.to_vec()).mtu(mtu).build();
        self.handle.link().add(message).execute().await.map_err(failed(format!("make the VXLAN device {name}")))
    }

    pub(crate) async fn set_mtu(&self, index: u32, mtu: u32) -> Result<()> {
        let message = LinkUnspec::new_with_index(index).mtu(mtu).build();
        self.handle.link().set(message).execute().await.map_err(failed(format!("set a link's MTU to {mtu}")))
    }

    /// Frames for `tunnel.mac` go into packets to `tunnel.node`.
    pub(crate) async fn add_tunnel(&self, index: u32, tunnel: &Tunnel) -> Result<()> {
        let mut request = self
            .handle
            .neighbours()
            .add_bridge(index, &tunnel.mac)
            .flags(NeighbourFlags::Own)
            .destination(tunnel.node.into())
            .replace();
        request.message_mut().attributes.push(NeighbourAttribute::Vni(tunnel.vni));
        request.execute().await.map_err(failed(format!("set the tunnel to {}", tunnel.node)))
    }

    pub(crate) async fn delete_tunnel(&self, index: u32, tunnel: &Tunnel) -> Result<bool> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = index;
        message.header.state = NeighbourState::Permanent;
        message.header.flags = NeighbourFlags::Own;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(tunnel.mac.to_vec()));
        let request = self.handle.neighbours().del(message);
        or_gone(request.execute().await).map_err(failed(format!("remove the tunnel to {}", tunnel.node)))
    }

    pub(crate) async fn delete_link(&self, index: u32) -> Result<bool> {
        or_gone(self.handle.link().del(index).execute().await).map_err(failed("remove a link"))
    }

    /// Sets a link up and tells its index.
    pub(crate) async fn up(&self, name: &str) -> Result<u32> {
        let index = self.index(name).await?;
        let message =
            LinkUnspec::new_with_index(index).set_header(LinkHeader { index, ..Default::default() }).up().build();
        self.handle.link().set(message).execute().await.map_err(failed(format!("set the link {name} up")))?;
        Ok(index)
    }

    #[cfg(test)]
    pub(crate) async fn down(&self, name: &str) -> Result<()> {
        let index = self.index(name).await?;
        let message = LinkUnspec::new_with_index(index).down().build();
        self.handle.link().set(message).execute().await.map_err(failed(format!("set the link {name} down")))
    }

    pub(crate) async fn add_address(&self, index: u32, address: Ipv4Addr) -> Result<()> {
        let request = self.handle.address().add(index, IpAddr::V4(address), 32);
        or_there(request.execute().await).map_err(failed(format!("give a link the address {address}")))
    }

    /// An address with the network it is in.
    #[cfg(test)]
    pub(crate) async fn add_subnet(&self, index: u32, subnet: Ipv4Net) -> Result<()> {
        let request = self.handle.address().add(index, IpAddr::V4(subnet.addr()), subnet.prefix_len());
        request.execute().await.map_err(failed(format!("give a link the address {subnet}")))
    }

    /// A neighbour that is never asked for.
    pub(crate) async fn add_neighbour(&self, index: u32, address: Ipv4Addr, mac: Mac) -> Result<()> {
        self.handle
            .neighbours()
            .add(index, IpAddr::V4(address))
            .link_layer_address(&mac)
            .replace()
            .execute()
            .await
            .map_err(failed(format!("set the neighbour {address}")))
    }

    pub(crate) async fn delete_neighbour(&self, index: u32, address: Ipv4Addr) -> Result<bool> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = index;
        message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(address)));
        let request = self.handle.neighbours().del(message);
        or_gone(request.execute().await).map_err(failed(format!("remove the neighbour {address}")))
    }

    /// How packets for `address` leave the machine; `None` where nothing leads there.
    pub(crate) async fn way_out(&self, address: Ipv4Addr) -> Result<Option<WayOut>> {
        let doing = || format!("look up the way to {address}");
        let question = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(address, 32).build();
        let answer = self.handle.route().get(question).execute().try_next().await;
        let message = match answer {
            Ok(Some(message)) if message.header.kind == RouteType::Unicast => message,
            Ok(_) => return Ok(None),
            // No route, or one that says no.
            Err(error)
                if matches!(
                    errno(&error),
                    Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EACCES | Errno::EINVAL)
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(failed(doing())(error)),
        };
        let mut out = None;
        let mut neighbour = true;
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Oif(index) => out = Some(*index),
                RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => neighbour = false,
                _ => {}
            }
        }
        let Some(out) = out else { return Ok(None) };
        let mut links = self.handle.link().get().match_index(out).execute();
        match links.try_next().await {
            Ok(link) => Ok(link
                .map(|link| found_link(&link))
                .map(|link| WayOut { on_segment: neighbour && link.segment, mtu: link.mtu })),
            Err(error) if errno(&error) == Some(Errno::ENODEV) => Ok(None),
            Err(error) => Err(failed(doing())(error)),
        }
    }

    /// The machine's own addresses.
    pub(crate) async fn addresses(&self) -> Result<Vec<Ipv4Addr>> {
        let mut found = Vec::new();
        let mut messages = self.handle.address().get().execute();
        while let Some(message) = messages.try_next().await.map_err(failed("list addresses"))? {
            for attribute in message.attributes {
                if let AddressAttribute::Local(IpAddr::V4(address)) = attribute {
                    found.push(address);
                }
            }
        }
        Ok(found)
    }

    /// The IPv4 routes of the main and the local table, without default routes.
    pub(crate) async fn routes(&self) -> Result<Vec<Found>> {
        let mut found = Vec::new();
        let filter = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let mut messages = self.handle.route().get(filter).execute();
        while let Some(message) = messages.try_next().await.map_err(failed("list routes"))? {
            found.extend(found_route(&message));
        }
        Ok(found)
    }

    pub(crate) async fn add_route(&self, route: &Route) -> Result<()> {
        let request = self.handle.route().add(route_message(route)?);
        or_there(request.execute().await).map_err(failed(format!("route {}", route.destination)))
    }

    pub(crate) async fn delete_route(&self, route: &Route) -> Result<bool> {
        let request = self.handle.route().del(route_message(route)?);
        or_gone(request.execute().await).map_err(failed(format!("remove the route to {}", route.destination)))
    }

    /// A route over a link through a neighbour that [`Self::add_neighbour`] set.
    pub(crate) async fn add_route_over(
        &self,
        destination: Ipv4Net,
        link: u32,
        neighbour: Ipv4Addr,
        source: Option<Ipv4Addr>,
        table: u32,
    ) -> Result<()> {
        let mut message = over(destination, link, neighbour, table);
        if let Some(source) = source {
            message = message.pref_source(source);
        }
        self.handle
            .route()
            .add(message.build())
            .replace()
            .execute()
            .await
            .map_err(failed(format!("route {destination}")))
    }

    /// A route through a tunnel that [`Self::add_tunnel`] set, for what comes from `source` if it may choose.
    pub(crate) async fn add_route_through(
        &self,
        destination: Ipv4Net,
        link: u32,
        source: Ipv4Addr,
        metric: u32,
    ) -> Result<()> {
        let message = through(destination, link, metric).pref_source(source).build();
        let request = self.handle.route().add(message).replace();
        request.execute().await.map_err(failed(format!("route {destination}")))
    }

    pub(crate) async fn delete_route_through(&self, destination: Ipv4Net, link: u32, metric: u32) -> Result<bool> {
        let request = self.handle.route().del(through(destination, link, metric).build());
        or_gone(request.execute().await).map_err(failed(format!("remove the route to {destination}")))
    }

    pub(crate) async fn delete_route_over(&self, destination: Ipv4Net, link: u32, neighbour: Ipv4Addr) -> Result<bool> {
        let request = self.handle.route().del(over(destination, link, neighbour, TABLE_MAIN).build());
        or_gone(request.execute().await).map_err(failed(format!("remove the route to {destination}")))
    }

    /// A rule for packets that begin in this namespace and go to `destination`.
    pub(crate) async fn add_rule_to(&self, destination: Ipv4Net, table: u8, priority: u32) -> Result<()> {
        let mut request = self.handle.rule().add();
        *request.message_mut() = rule(priority, table);
        let message = request.message_mut();
        message.header.dst_len = destination.prefix_len();
        message.attributes.push(RuleAttribute::Destination(destination.network().into()));
        message.attributes.push(RuleAttribute::Iifname("lo".to_owned()));
        or_there(request.execute().await).map_err(failed(format!("add a rule for {destination}")))
    }

    /// Puts the lookup of local addresses behind other rules.
    pub(crate) async fn move_local_rule(&self, priority: u32) -> Result<()> {
        let mut request = self.handle.rule().add();
        *request.message_mut() = rule(priority, TABLE_LOCAL as u8);
        or_there(request.execute().await).map_err(failed("add a rule for local addresses"))?;
        let first = self.handle.rule().del(rule(0, TABLE_LOCAL as u8));
        or_gone(first.execute().await).map_err(failed("remove the first rule")).map(drop)
    }
}

fn rule(priority: u32, table: u8) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.action = RuleAction::ToTable;
    message.header.table = table;
    message.attributes.push(RuleAttribute::Priority(priority));
    message
}

fn over(destination: Ipv4Net, link: u32, neighbour: Ipv4Addr, table: u32) -> RouteMessageBuilder<Ipv4Addr> {
    RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(destination.network(), destination.prefix_len())
        .output_interface(link)
        .gateway(neighbour)
        .onlink()
        .protocol(RouteProtocol::Other(PROTOCOL))
        .table_id(table)
}

/// The neighbour at the far end goes by the first address of its range, which no pod has.
fn through(destination: Ipv4Net, link: u32, metric: u32) -> RouteMessageBuilder<Ipv4Addr> {
    over(destination, link, destination.network(), TABLE_MAIN).priority(metric)
}

fn found_link(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        mac: Vec::new(),
        mtu: 0,
        segment: flags.contains(LinkFlags::Broadcast) && !flags.contains(LinkFlags::Noarp),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Address(mac) => link.mac.clone_from(mac),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            _ => {}
        }
    }
    link
}

fn route_message(route: &Route) -> Result<RouteMessage> {
    let message = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(route.destination.network(), route.destination.prefix_len())
        .protocol(RouteProtocol::Other(PROTOCOL))
        .priority(route.metric);
    Ok(match route.way {
        Way::Local => {
            let lo =
                nix::net::if_::if_nametoindex("lo").map_err(|errno| Error::system("find the link lo")(errno.into()))?;
            message.kind(RouteType::Local).scope(RouteScope::Host).table_id(TABLE_LOCAL).output_interface(lo)
        }
        Way::Unreachable => message.kind(RouteType::Unreachable),
        Way::Gateway(address) => message.gateway(address),
    }
    .build())
}

/// The local route that lets a namespace's programs bind an address.
pub(crate) fn local(address: Ipv4Addr) -> Route {
    Route { destination: Ipv4Net::from(address), way: Way::Local, metric: 0 }
}

fn found_route(message: &RouteMessage) -> Option<Found> {
    let mut table = u32::from(message.header.table);
    let mut destination = None;
    let mut metric = 0;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = Some(*address),
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Table(id) => table = *id,
            _ => {}
        }
    }
    if (table != TABLE_MAIN && table != TABLE_LOCAL) || message.header.kind == RouteType::Broadcast {
        return None;
    }
    Some(Found {
        destination: Ipv4Net::new(destination?, message.header.destination_prefix_length).ok()?,
        metric,
        ours: message.header.protocol == RouteProtocol::Other(PROTOCOL),
        local: table == TABLE_LOCAL,
    })
}
