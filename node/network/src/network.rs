use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use ipnet::{IpNet, Ipv4Net};
use sampan_client::{EventRecorder, Informers};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::addresses::Addresses;
use crate::dns::{self, forward};
use crate::error::{Error, Result};
use crate::mode::Mode;
use crate::namespace;
use crate::netlink::Netlink;
use crate::nodes::Nodes;
use crate::overlay::{self, Overlay};
use crate::records::{Owner, Records, addresses_file};
use crate::routes::{self, Metric, Ranges};
use crate::services::Services;
use crate::services::catalog::Catalog;
use crate::services::conntrack;
use crate::services::nft::{self, Settings, Table};
use crate::services::proxy::{Plan, Proxy, SharedAddresses, Tell};
use crate::tenants::{self, Tenants};
use crate::ways::{Peer, Ways};

/// What a node's network is made of.
#[derive(Clone, Debug)]
pub struct Config {
    /// Eight hex digits; names interfaces and tables, so that clusters on one machine coexist.
    pub cluster_id: String,
    pub node_name: String,
    pub mode: Mode,
    /// This node's addresses: the lower half is for Wasm pods, the upper half for CNI.
    pub pod_cidr: IpNet,
    pub cluster_cidr: IpNet,
    pub service_cidr: IpNet,
    pub cluster_dns: IpAddr,
    pub cluster_domain: String,
    /// Where addresses and the records of what was made are kept.
    pub dir: PathBuf,
    /// Where NodePorts listen.
    pub node_addresses: Vec<IpAddr>,
}

/// What a tenant's Wasm host process needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// The network namespace to enter; none where unprivileged.
    pub netns: Option<PathBuf>,
    /// Cluster DNS as seen from inside.
    pub nameserver: SocketAddr,
    /// Which ports of pod and Service addresses are listened at elsewhere.
    pub port_shift: PortShift,
}

/// Unprivileged, a port below `below` is listened at that port plus `by`; else `below` is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortShift {
    pub below: u16,
    pub by: u16,
}

impl PortShift {
    /// How far the ports are that need no privilege.
    const BY: u16 = 10_000;

    /// Where `port` of a pod or Service address is in fact listened at.
    pub fn apply(self, port: u16) -> u16 {
        if port != 0 && port < self.below { port.saturating_add(self.by) } else { port }
    }

    fn of(mode: Mode) -> Self {
        match mode {
            Mode::Privileged => Self::default(),
            Mode::Unprivileged => Self { below: unprivileged_from(), by: Self::BY },
        }
    }
}

/// The first port that everybody may listen at.
fn unprivileged_from() -> u16 {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(1024)
}

/// An address that a pod holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    pub namespace: String,
    pub pod_uid: String,
    pub address: IpAddr,
}

/// A running network. Cheap to clone.
#[derive(Clone)]
pub struct Network {
    inner: Arc<Inner>,
}

struct Inner {
    mode: Mode,
    port_shift: PortShift,
    nameserver: SocketAddr,
    nftables: bool,
    state: Mutex<State>,
}

/// How long Services wait for the list of nodes.
const NODES_KNOWN: Duration = Duration::from_secs(2);

/// What the machine has, beside what it lets us do.
pub(crate) struct Machine {
    pub(crate) upstream: forward::Source,
    pub(crate) nftables: bool,
}

struct State {
    addresses: Addresses,
    records: Records,
    /// Privileged only.
    tenants: Option<(Netlink, Tenants)>,
}

struct V4 {
    pod: Ipv4Net,
    cluster: Ipv4Net,
    service: Ipv4Net,
    dns: Ipv4Addr,
    node_addresses: Vec<Ipv4Addr>,
}

/// The configuration as IPv4, and whether it makes sense.
fn check(config: &Config) -> Result<V4> {
    let net = |what, range: IpNet| match range {
        IpNet::V4(range) => Ok(range.trunc()),
        IpNet::V6(_) => Err(Error::NotIpv4 { what, range: range.to_string() }),
    };
    let pod = net("the node's range", config.pod_cidr)?;
    let cluster = net("the cluster range", config.cluster_cidr)?;
    let service = net("the Service range", config.service_cidr)?;
    let IpAddr::V4(dns) = config.cluster_dns else {
        let range = config.cluster_dns.to_string();
        return Err(Error::NotIpv4 { what: "the cluster DNS address", range });
    };
    let outside =
        |what, range: Ipv4Net, within: String, why| Err(Error::RangeOutside { what, range: range.into(), within, why });
    if !cluster.contains(&pod) {
        return outside("the node's range", pod, cluster.to_string(), "every pod is in the cluster range");
    }
    if !service.contains(&dns) {
        let why = "cluster DNS is a Service's address";
        return outside("the cluster DNS address", dns.into(), service.to_string(), why);
    }
    let loopback = Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);
    if config.mode == Mode::Unprivileged {
        for (what, range) in [("the cluster range", cluster), ("the Service range", service)] {
            if !loopback.contains(&range) {
                let why = "without privilege pods and Services are loopback addresses";
                return outside(what, range, loopback.to_string(), why);
            }
        }
    }
    let node_addresses = config
        .node_addresses
        .iter()
        .filter_map(|address| match address {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        })
        .collect();
    Ok(V4 { pod, cluster, service, dns, node_addresses })
}

impl Network {
    /// Guards first, then what an earlier process left, then Services and DNS. `shutdown` ends what runs in `tasks`
    /// and leaves what pods need; [`clean`](crate::clean) takes that away, once the tasks have ended.
    pub fn start(
        config: Config,
        informers: Informers,
        tasks: TaskTracker,
        shutdown: CancellationToken,
    ) -> BoxFuture<'static, Result<Self>> {
        let machine =
            Machine { upstream: forward::Source::File("/etc/resolv.conf".into()), nftables: nft::program().is_some() };
        // Boxed: compiled with this crate, not again with each program that calls it.
        Box::pin(Self::start_on(machine, config, informers, tasks, shutdown))
    }

    pub(crate) async fn start_on(
        machine: Machine,
        config: Config,
        informers: Informers,
        tasks: TaskTracker,
        shutdown: CancellationToken,
    ) -> Result<Self> {
        let v4 = check(&config)?;
        let owner = Owner {
            cluster_id: config.cluster_id.clone(),
            node_name: config.node_name.clone(),
            mode: config.mode,
            pod_cidr: v4.pod.to_string(),
            cluster_cidr: v4.cluster.to_string(),
            service_cidr: v4.service.to_string(),
        };
        let mut records = Records::open(&config.dir, owner).await?;
        let privileged = config.mode == Mode::Privileged;
        let metric = Metric::new(&config.cluster_id, &config.node_name);
        let addresses = Addresses::open(addresses_file(&config.dir), v4.pod)?;
        let mut tenants = None;
        let mut table = None;
        if privileged {
            let netlink = Netlink::here()?;
            let ranges = Ranges { cluster: v4.cluster, service: v4.service };
            routes::guard(&netlink, &mut records, &ranges, metric).await?;
            namespace::set("net/ipv4/ip_forward", "1")?;
            table = prepare_table(&machine, &config, &v4, &mut records).await?;
            let made =
                Tenants::new(config.dir.clone(), config.cluster_id.clone(), config.node_name.clone(), v4.cluster);
            tenants = Some((netlink, made));
        }
        let mut state = State { addresses, records, tenants };
        state.adopt().await?;

        let catalog = Catalog::default();
        let port_shift = PortShift::of(config.mode);
        let ready = CancellationToken::new();
        let zone = dns::Zone::new(&config.cluster_domain, v4.dns, [v4.service, v4.cluster]).map_err(|error| {
            let why = Error::system("use the cluster domain");
            why(std::io::Error::other(format!("{}: {error}", config.cluster_domain)))
        })?;
        let handler = dns::Handler {
            zone,
            catalog: catalog.clone(),
            upstream: forward::Upstream::new(machine.upstream, [v4.service, v4.cluster]),
            ready: ready.clone(),
        };
        let dns_address = SocketAddrV4::new(v4.dns, port_shift.apply(53));
        let nameserver = dns::serve(handler, dns_address, !privileged, shutdown.clone()).await?;

        let nftables = table.is_some();
        let shared = SharedAddresses::default();
        let plan =
            Plan { nftables, shift: port_shift, cluster_cidr: v4.cluster, node_addresses: v4.node_addresses.clone() };
        let tell = tell(&informers, &config.node_name, catalog.clone());
        let services = Services {
            catalog: catalog.clone(),
            node_name: config.node_name.clone(),
            table,
            proxy: Proxy::new(plan, tell, shared.clone()),
            flows: conntrack::Flows::default(),
            node_addresses: v4.node_addresses.clone(),
        };
        let network = Self {
            inner: Arc::new(Inner { mode: config.mode, port_shift, nameserver, nftables, state: Mutex::new(state) }),
        };
        tracing::info!(mode = ?config.mode, nftables, %nameserver, pods = %v4.pod, "network is up");
        // The cluster's API may be away while pods go on: nothing of this is waited for.
        let follow = (catalog, informers.clone(), shutdown.clone());
        let nodes_known = CancellationToken::new();
        let known = nodes_known.clone();
        tasks.spawn(async move {
            let (catalog, informers, shutdown) = follow;
            if !catalog.follow(&informers, shutdown.clone()).await {
                return;
            }
            ready.cancel();
            // Who is on this machine too decides what is said, not what is done.
            shutdown.run_until_cancelled(tokio::time::timeout(NODES_KNOWN, known.cancelled())).await;
            services.run(shutdown).await;
        });
        let overlay = Overlay::new(&config.cluster_id, &config.node_name, v4.pod, metric.value());
        let nodes = Nodes {
            network: network.clone(),
            name: config.node_name,
            ways: Ways { cluster_id: config.cluster_id, cluster: v4.cluster, metric, overlay },
            shared,
            known: nodes_known,
        };
        tasks.spawn(nodes.follow(informers, shutdown));
        Ok(network)
    }

    pub fn mode(&self) -> Mode {
        self.inner.mode
    }

    /// Whether Services are served by nftables; by the userspace proxy otherwise.
    pub fn uses_nftables(&self) -> bool {
        self.inner.nftables
    }

    pub fn port_shift(&self) -> PortShift {
        self.inner.port_shift
    }

    /// Where cluster DNS answers, for tenants and for the machine.
    pub fn nameserver(&self) -> SocketAddr {
        self.inner.nameserver
    }

    /// The tenant's network namespace, made with the first use.
    pub async fn tenant(&self, namespace: &str) -> Result<Tenant> {
        if !tenants::valid_name(namespace) {
            return Err(Error::TenantName(namespace.to_owned()));
        }
        let mut state = self.inner.state.lock().await;
        let State { records, tenants, .. } = &mut *state;
        let mut netns = None;
        if let Some((root, tenants)) = tenants {
            tenants.ensure(root, records, namespace).await?;
            netns = Some(tenants.namespace(namespace));
        }
        Ok(Tenant { netns, nameserver: self.inner.nameserver, port_shift: self.inner.port_shift })
    }

    /// The pod's address: the same for the same pod, also after a restart.
    pub async fn assign(&self, namespace: &str, pod_uid: &str) -> Result<IpAddr> {
        if !tenants::valid_name(namespace) {
            return Err(Error::TenantName(namespace.to_owned()));
        }
        let mut state = self.inner.state.lock().await;
        let State { addresses, records, tenants } = &mut *state;
        let address = addresses.assign(namespace, pod_uid)?;
        if let Some((root, tenants)) = tenants {
            let tenant = addresses.get(pod_uid).map_or(namespace, |held| &held.namespace).to_owned();
            tenants.add(root, records, &tenant, address).await?;
        }
        Ok(address.into())
    }

    /// Gives a pod's address back. Nothing to do for a pod that holds none.
    pub async fn release(&self, pod_uid: &str) -> Result<()> {
        self.inner.state.lock().await.release(pod_uid).await
    }

    /// Takes a tenant's network namespace away, and the addresses of its pods.
    pub async fn remove_tenant(&self, namespace: &str) -> Result<()> {
        let mut state = self.inner.state.lock().await;
        let pods: Vec<String> = state
            .addresses
            .held()
            .filter(|(_, held)| held.namespace == namespace)
            .map(|(pod, _)| pod.clone())
            .collect();
        for pod in pods {
            state.release(&pod).await?;
        }
        let State { records, tenants, .. } = &mut *state;
        match tenants {
            Some((root, tenants)) => tenants.take_away(root, records, namespace).await,
            None => Ok(()),
        }
    }

    /// Whether a pod has an address.
    pub async fn is_assigned(&self, pod_uid: &str) -> bool {
        self.inner.state.lock().await.addresses.holds(pod_uid)
    }

    /// The addresses that are out: what an agent compares with its pods after a restart.
    pub async fn assigned(&self) -> Vec<Assignment> {
        let state = self.inner.state.lock().await;
        state
            .addresses
            .held()
            .map(|(pod, held)| Assignment {
                namespace: held.namespace.clone(),
                pod_uid: pod.clone(),
                address: held.address.into(),
            })
            .collect()
    }

    /// Makes the ways to other nodes what they should be. Tells the ranges that have none, and why.
    pub(crate) async fn sync_ways(&self, ways: &Ways, peers: &[Peer]) -> Result<BTreeMap<Ipv4Net, String>> {
        let mut state = self.inner.state.lock().await;
        let State { records, tenants: Some((root, _)), .. } = &mut *state else {
            return Ok(BTreeMap::new());
        };
        ways.sync(root, records, peers).await
    }

    /// The tenants whose network namespace is there.
    pub async fn tenants(&self) -> Vec<String> {
        let state = self.inner.state.lock().await;
        state.tenants.iter().flat_map(|(_, tenants)| tenants.names()).cloned().collect()
    }
}

impl State {
    /// Takes over the tenants of an earlier process, whole again where something is missing.
    async fn adopt(&mut self) -> Result<()> {
        let Some((root, tenants)) = &mut self.tenants else {
            return Ok(());
        };
        let names: Vec<String> = self.records.tenants().keys().cloned().collect();
        for name in names {
            tenants.ensure(root, &mut self.records, &name).await?;
        }
        let held: Vec<_> = self.addresses.held().map(|(_, held)| held.clone()).collect();
        for held in held {
            tenants.add(root, &mut self.records, &held.namespace, held.address).await?;
        }
        Ok(())
    }

    async fn release(&mut self, pod: &str) -> Result<()> {
        let Some(held) = self.addresses.get(pod).cloned() else {
            return Ok(());
        };
        if let Some((root, tenants)) = &mut self.tenants {
            tenants.remove(root, &held.namespace, held.address).await?;
        }
        self.addresses.release(pod)
    }
}

/// The table of this node, where there is `nft`. One of an earlier process stays in force until
/// the Services are known; without `nft` none can be left.
async fn prepare_table(machine: &Machine, config: &Config, v4: &V4, records: &mut Records) -> Result<Option<Table>> {
    let tables = nft::table_names(&config.cluster_id, &config.node_name);
    let stale: Vec<String> = records.tables().iter().filter(|it| !tables.contains(it)).cloned().collect();
    for table in stale {
        nft::delete_table(&table).await?;
        records.remove_table(&table)?;
    }
    if !machine.nftables {
        tracing::info!("no nft program: Services go through the userspace proxy");
        return Ok(None);
    }
    for name in &tables {
        records.add_table(name)?;
    }
    Ok(Some(Table::new(Settings {
        tables,
        node_name: config.node_name.clone(),
        pod_cidr: v4.pod,
        cluster_cidr: v4.cluster,
        service_cidr: v4.service,
        cluster_dns: v4.dns,
        tunnels: overlay::device(&config.cluster_id, &config.node_name),
        node_addresses: v4.node_addresses.iter().filter(|it| !it.is_loopback()).copied().collect(),
    })))
}

/// Events on Services, as the proxy tells them.
fn tell(informers: &Informers, node: &str, catalog: Catalog) -> Tell {
    let recorder = EventRecorder::new(informers.client().clone(), "kube-proxy", Some(node));
    Arc::new(move |key, kind, reason, message| {
        tracing::info!(service = %format_args!("{}/{}", key.0, key.1), reason, message, "told about a Service");
        if let Some(service) = catalog.read(|state| state.service(&key.0, &key.1).cloned()) {
            recorder.record(&*service, kind, reason, message);
        }
    })
}

#[cfg(test)]
#[path = "tests/mod.rs"]
mod tests;
