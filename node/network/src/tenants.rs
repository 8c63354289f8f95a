//! A network namespace per tenant, joined to the machine by one link.
//!
//! Inside, the pods' addresses are local to `lo`, every port is free to bind, and whatever goes to
//! an address of the cluster leaves by the link, also to a pod beside it: so policy sees it cross
//! the machine, and the answers of a Service find their way back through it. Nobody asks for link
//! addresses: both ends know each other's.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use ipnet::Ipv4Net;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::namespace;
use crate::netlink::{self, Mac, Netlink};
use crate::records::{self, Records, TenantRecord, namespace_file};

/// The machine's end of every link, which is the way out of a tenant.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The tenant's end, which is the way to its pods.
const INSIDE: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 2);
const LINK_INSIDE: &str = "eth0";
const TABLE_MAIN: u32 = 254;
/// Inside: the way of what goes to the cluster's range.
const TABLE_OUT: u8 = 100;
const PRIORITY_OUT: u32 = 10;
const PRIORITY_LOCAL: u32 = 100;

fn default_route() -> Ipv4Net {
    Ipv4Net::default()
}

/// A tenant's namespace, ready for pods.
pub(crate) struct Tenant {
    inside: Netlink,
    /// Index of the link on the machine and in the namespace.
    link: u32,
    link_inside: u32,
    addresses: BTreeSet<Ipv4Addr>,
    /// What a socket that was bound to no address sends from.
    source: Option<Ipv4Addr>,
}

/// The tenants of this node.
pub(crate) struct Tenants {
    dir: PathBuf,
    cluster_id: String,
    node_name: String,
    cluster_cidr: Ipv4Net,
    ready: BTreeMap<String, Tenant>,
}

pub(crate) fn valid_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || it == b'-')
}

/// A name for the machine's end of a link, and the addresses of both ends.
fn link_name(cluster_id: &str, node: &str, tenant: &str, attempt: u32) -> (String, Mac, Mac) {
    let digest = Sha256::digest(format!("{cluster_id}/{node}/{tenant}/{attempt}"));
    (netlink::name('s', cluster_id, &digest), netlink::mac(&digest, 8), netlink::mac(&digest, 16))
}

impl Tenants {
    pub(crate) fn new(dir: PathBuf, cluster_id: String, node_name: String, cluster_cidr: Ipv4Net) -> Self {
        Self { dir, cluster_id, node_name, cluster_cidr, ready: BTreeMap::new() }
    }

    pub(crate) fn namespace(&self, name: &str) -> PathBuf {
        namespace_file(&self.dir, name)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.ready.keys()
    }

    /// Makes what is missing of a tenant; an earlier process may have made all of it.
    pub(crate) async fn ensure(&mut self, root: &Netlink, records: &mut Records, name: &str) -> Result<&mut Tenant> {
        if !self.ready.contains_key(name) {
            let record = self.record(root, records, name).await?;
            let tenant = self.make(root, name, &record).await?;
            self.ready.insert(name.to_owned(), tenant);
        }
        self.ready.get_mut(name).ok_or_else(|| Error::TenantName(name.to_owned()))
    }

    /// What is on record, or a new name that no link has.
    async fn record(&self, root: &Netlink, records: &mut Records, name: &str) -> Result<TenantRecord> {
        if let Some(record) = records.tenants().get(name) {
            return Ok(record.clone());
        }
        let mut attempt = 0;
        let record = loop {
            let (link, mac, peer_mac) = link_name(&self.cluster_id, &self.node_name, name, attempt);
            match root.link(&link).await? {
                // Of an earlier life of this very tenant whose records are gone.
                Some(found) if found.mac == mac => {
                    root.delete_link(found.index).await?;
                    break TenantRecord { link, mac, peer_mac };
                }
                Some(_) => attempt += 1,
                None => {
                    break TenantRecord { link, mac, peer_mac };
                }
            }
        };
        records.add_tenant(name, record.clone())?;
        Ok(record)
    }

    async fn make(&self, root: &Netlink, name: &str, record: &TenantRecord) -> Result<Tenant> {
        let path = self.namespace(name);
        if !namespace::held(&path) {
            namespace::create(path.clone()).await?;
        }
        let runtime = tokio::runtime::Handle::current();
        let (inside, file) = namespace::inside(path.clone(), move || {
            let _guard = runtime.enter();
            for (setting, value) in [
                ("net/ipv4/ip_unprivileged_port_start", "0"),
                ("net/ipv4/conf/all/rp_filter", "0"),
                ("net/ipv4/conf/default/rp_filter", "0"),
                ("net/ipv4/conf/all/accept_redirects", "0"),
                ("net/ipv4/conf/default/accept_redirects", "0"),
            ] {
                namespace::set(setting, value)?;
            }
            Ok((Netlink::here()?, File::open(&path).map_err(Error::file("open", &path))?))
        })
        .await?;
        inside.up("lo").await?;

        // A pair is whole or gone: one end cannot be there alone.
        match root.link(&record.link).await? {
            Some(link) if link.mac == record.mac && inside.link(LINK_INSIDE).await?.is_some() => {}
            found => {
                if let Some(link) = found.filter(|link| link.mac == record.mac) {
                    root.delete_link(link.index).await?;
                }
                let fd = Some(file.as_raw_fd());
                root.add_veth(&record.link, record.mac, LINK_INSIDE, record.peer_mac, fd).await?;
            }
        }
        for (setting, value) in [
            // A tenant sends from its own addresses only.
            ("rp_filter", "1"),
            ("forwarding", "1"),
            ("accept_redirects", "0"),
            ("send_redirects", "0"),
        ] {
            namespace::set(&format!("net/ipv4/conf/{}/{setting}", record.link), value)?;
        }
        namespace::no_ipv6(&record.link);
        let link = root.up(&record.link).await?;
        root.add_address(link, GATEWAY).await?;
        root.add_neighbour(link, INSIDE, record.peer_mac).await?;

        namespace::inside(self.namespace(name), || {
            namespace::no_ipv6(LINK_INSIDE);
            namespace::set("net/ipv4/conf/eth0/rp_filter", "0")?;
            namespace::set("net/ipv4/conf/eth0/accept_redirects", "0")
        })
        .await?;
        let link_inside = inside.up(LINK_INSIDE).await?;
        inside.add_neighbour(link_inside, GATEWAY, record.mac).await?;
        inside.add_route_over(default_route(), link_inside, GATEWAY, None, TABLE_MAIN).await?;
        inside.add_route_over(default_route(), link_inside, GATEWAY, None, TABLE_OUT.into()).await?;
        inside.add_rule_to(self.cluster_cidr, TABLE_OUT, PRIORITY_OUT).await?;
        inside.move_local_rule(PRIORITY_LOCAL).await?;
        Ok(Tenant { inside, link, link_inside, addresses: BTreeSet::new(), source: None })
    }

    /// Gives a pod's address to its tenant.
    pub(crate) async fn add(
        &mut self,
        root: &Netlink,
        records: &mut Records,
        name: &str,
        address: Ipv4Addr,
    ) -> Result<()> {
        let tenant = self.ensure(root, records, name).await?;
        if tenant.addresses.contains(&address) {
            return Ok(());
        }
        tenant.inside.add_route(&netlink::local(address)).await?;
        root.add_route_over(Ipv4Net::from(address), tenant.link, INSIDE, None, TABLE_MAIN).await?;
        tenant.addresses.insert(address);
        tenant.choose_source().await
    }

    pub(crate) async fn remove(&mut self, root: &Netlink, name: &str, address: Ipv4Addr) -> Result<()> {
        let Some(tenant) = self.ready.get_mut(name) else {
            return Ok(());
        };
        root.delete_route_over(Ipv4Net::from(address), tenant.link, INSIDE).await?;
        tenant.addresses.remove(&address);
        tenant.choose_source().await?;
        tenant.inside.delete_route(&netlink::local(address)).await.map(drop)
    }

    /// Takes a tenant's link and namespace away; processes in it are cut off.
    pub(crate) async fn take_away(&mut self, root: &Netlink, records: &mut Records, name: &str) -> Result<()> {
        self.ready.remove(name);
        let Some(record) = records.tenants().get(name).cloned() else {
            return Ok(());
        };
        records::remove_link(root, &record.link, record.mac).await?;
        namespace::remove(&self.namespace(name))?;
        records.remove_tenant(name)
    }
}

impl Tenant {
    /// Sockets bound to no address send from one of the tenant's pods, as long as it has one.
    async fn choose_source(&mut self) -> Result<()> {
        if self.source.is_some_and(|source| self.addresses.contains(&source)) {
            return Ok(());
        }
        self.source = self.addresses.first().copied();
        for table in [TABLE_MAIN, TABLE_OUT.into()] {
            let (link, source) = (self.link_inside, self.source);
            self.inside.add_route_over(default_route(), link, GATEWAY, source, table).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_names_fit_and_differ() {
        let (name, mac, peer) = link_name("0a0b0c0d", "node-1", "default", 0);
        assert_eq!(name.len(), 15);
        assert!(name.starts_with("s0a0b0c0d"));
        assert_ne!(mac, peer);
        assert!(mac[0] & 3 == 2 && peer[0] & 3 == 2);
        assert_ne!(link_name("0a0b0c0d", "node-2", "default", 0).0, name);
        assert_ne!(link_name("0a0b0c0d", "node-1", "default", 1).0, name);
        assert!(link_name("a-much-too-long-cluster-id", "n", "t", 0).0.len() <= 15);
    }

    #[test]
    fn tenant_names_are_namespaces() {
        assert!(valid_name("kube-system"));
        for wrong in ["", "..", "a/b", "A", &"a".repeat(64)] {
            assert!(!valid_name(wrong), "{wrong}");
        }
    }
}
