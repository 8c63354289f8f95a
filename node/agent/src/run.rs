//! The agent's life: registered, networked, adopting what runs, serving, leaving.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use futures::future::BoxFuture;
use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::Client;
use kube::api::Api;
use sampan_client::{EventRecorder, Informers};
use sampan_network::{Mode, Network};
use sampan_oci::cni;
use sampan_wasm::Cache;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api;
use crate::image::{Images, Puller, collect};
use crate::join::Certificate;
use crate::leftovers;
use crate::node::{self, Facts, Pressure, Registration};
use crate::oci::{self, Oci, Which};
use crate::pod::objects::Objects;
use crate::pod::paths::Paths;
use crate::pod::prober::PortShift;
use crate::pod::shared::Shared;
use crate::pod::work;
use crate::pod::worker::{Manager, Sources};
use crate::runtime::Runtimes;
use crate::wasm::{Settings, Wasm, WasmCompiler, WasmRuntime};

/// What an agent is told.
#[derive(Clone, Debug)]
pub struct Config {
    pub node_name: String,
    /// `DATA/node`.
    pub dir: PathBuf,
    pub max_pods: u32,
    pub mode: Mode,
    /// The node's addresses, the one that others reach it at first.
    pub addresses: Vec<IpAddr>,
    /// Where the node's HTTPS API listens; at another port where another node of this machine has that one.
    pub listen: SocketAddr,
    /// The cluster's CA: who may call that API is certified by it.
    pub ca_pem: String,
    /// What that API shows.
    pub certificate: Certificate,
    /// The socket of a containerd to use; `None`: one of our own, if containerd is installed.
    pub containerd: Option<PathBuf>,
    /// When images that nobody uses are removed.
    pub image_gc: collect::Thresholds,
    /// Whether pods end with the agent, as those of `sampan up` do.
    pub end_pods: bool,
    /// As in `v1.36.0+sampan`.
    pub version: String,
}

/// The ConfigMap that says how the cluster is laid out.
const CLUSTER: (&str, &str) = ("kube-system", "sampan-cluster");
/// How many pods are set up or started at the same time.
const BUSY: usize = 64;
/// What pods are given when everything ends.
const END_GRACE: u32 = 5;
const END_LIMIT: Duration = Duration::from_secs(8);

struct Cluster {
    id: String,
    cluster_cidr: IpNet,
    service_cidr: IpNet,
    dns: IpAddr,
    domain: String,
}

/// Runs the agent until shutdown. Returns early only when the node cannot be.
pub fn run(config: Config, client: Client, shutdown: CancellationToken) -> BoxFuture<'static, anyhow::Result<()>> {
    // Boxed: compiled with this crate, not again with each program that calls it.
    Box::pin(async move {
        let background = TaskTracker::new();
        let outcome = live(config, client, shutdown, &background).await;
        // Somebody may be about to take away what these still make.
        background.close();
        background.wait().await;
        outcome
    })
}

/// What is to end before others go on runs in `background`.
async fn live(
    config: Config,
    client: Client,
    shutdown: CancellationToken,
    background: &TaskTracker,
) -> anyhow::Result<()> {
    api::make_dirs(&config.dir)?;
    let paths = Paths::new(&config.dir);
    let cache = Cache::open(paths.modules(), sampan_wasm::compile::Options::default())
        .map_err(|error| anyhow::anyhow!("the store of compiled modules: {error}"))?;
    let images = Arc::new(Images::open(&paths.images(), Arc::new(WasmCompiler(cache.clone())))?);
    let listener = match TcpListener::bind(config.listen).await {
        Err(error) if error.kind() == ErrorKind::AddrInUse => TcpListener::bind((config.listen.ip(), 0)).await,
        bound => bound,
    };
    let listener = listener.with_context(|| format!("the node's API cannot listen on {}", config.listen))?;
    let tls = api::tls(&config.ca_pem, &config.certificate.cert_pem, &config.certificate.key_pem)?;
    let privileged = config.mode == Mode::Privileged && rustix::process::geteuid().is_root();
    let facts =
        Facts::read(&config.dir, config.max_pods, &config.version, &format!("sampan-wasm://{}", config.version));
    let allocatable = facts.allocatable.clone();
    let containerd = Which::find(config.containerd.as_deref(), &config.dir.join(oci::DIR), privileged);
    let disk = Arc::new(Pressure::of(&config.dir));
    let registration = Arc::new(Registration {
        client: client.clone(),
        name: config.node_name.clone(),
        addresses: config.addresses.clone(),
        port: listener.local_addr()?.port(),
        facts,
        disk: disk.clone(),
        images: images.clone(),
        containerd: containerd.clone(),
        limits: confinement(privileged),
        mode: if privileged { "privileged" } else { "unprivileged" },
    });
    let node = node::register(&registration, &shutdown).await?;

    // Tasks end when this function does, whatever the way out.
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let mut tasks = JoinSet::new();
    tasks.spawn(node::renew(client.clone(), node, stop.clone()));

    let pod_cidr = node::wait_for_range(&registration, &shutdown).await?;
    let cluster = cluster(&client, &shutdown).await?;
    let informers = Informers::new(client.clone(), stop.clone());
    let network = Network::start(
        sampan_network::Config {
            cluster_id: cluster.id.clone(),
            node_name: config.node_name.clone(),
            mode: config.mode,
            pod_cidr,
            cluster_cidr: cluster.cluster_cidr,
            service_cidr: cluster.service_cidr,
            cluster_dns: cluster.dns,
            cluster_domain: cluster.domain.clone(),
            dir: config.dir.join("network"),
            node_addresses: config.addresses.clone(),
        },
        informers.clone(),
        background.clone(),
        stop.clone(),
    )
    .await
    .context("the node's network")?;
    let shift = network.port_shift();

    let settings = Settings {
        paths: paths.clone(),
        cache,
        cluster_id: cluster.id.clone(),
        node_name: config.node_name.clone(),
        cluster_ranges: vec![cluster.cluster_cidr, cluster.service_cidr],
        privileged,
        version: config.version.clone(),
    };
    let (events, runtime_events) = mpsc::unbounded_channel();
    let wasm = Wasm(WasmRuntime::new(settings, network.clone(), events.clone()));
    let settings = oci::Settings {
        paths: paths.clone(),
        cluster_id: cluster.id.clone(),
        node_name: config.node_name.clone(),
        network: pods_of_containerd(&cluster.id, pod_cidr),
    };
    if privileged {
        leftovers::note(&config.dir, &cluster.id, &config.node_name)?;
    }
    let oci = Oci::new(containerd, settings, events, stop.child_token());
    tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        () = oci.resume() => {}
    }
    let runtimes = Runtimes { wasm, oci: oci.clone() };
    let known = runtimes.list().await.context("containers from before")?;

    let (objects, object_changes) = Objects::new(client.clone());
    let services = informers.all::<core::Service>();
    let runtime_classes = informers.all::<RuntimeClass>();
    let pods = informers.selected::<core::Pod>(&format!("spec.nodeName={}", config.node_name));
    tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        () = async { tokio::join!(services.synced(), runtime_classes.synced(), pods.synced()); } => {}
    }
    let (collecting, demands) = collect::collecting();
    let shared = Arc::new(Shared {
        node_name: config.node_name.clone(),
        client: client.clone(),
        runtimes,
        addresses: Arc::new(network),
        images: images.clone(),
        puller: Puller::new(images.clone(), oci),
        objects,
        services,
        runtime_classes,
        recorder: EventRecorder::new(client.clone(), "kubelet", Some(&config.node_name)),
        paths,
        disk,
        collecting,
        host: config.addresses.clone(),
        allocatable,
        cluster_domain: cluster.domain,
        nameserver: cluster.dns,
        shift: PortShift { below: shift.below, by: shift.by },
        max_pods: usize::try_from(config.max_pods).unwrap_or(usize::MAX),
        busy: Semaphore::new(BUSY),
        owner: {
            let (cluster_id, node_name) = (cluster.id, config.node_name.clone());
            Box::new(move |tenant| privileged.then(|| WasmRuntime::user(&cluster_id, &node_name, tenant)))
        },
        runs: Mutex::default(),
    });
    let sources =
        Sources { pods: pods.subscribe(), runtime: runtime_events, objects: object_changes, images: images.changes() };
    let serving = CancellationToken::new();
    let mut managing = JoinSet::new();
    managing.spawn(Manager::new(shared.clone(), known).run(sources, serving.clone()));
    tasks.spawn(collect::run(shared.clone(), pods.clone(), config.image_gc, demands, stop.clone()));
    tasks.spawn(api::serve(listener, tls, api::router(shared.clone(), pods), stop.clone()));
    let keeping = registration.clone();
    let kept = stop.clone();
    tasks.spawn(async move { keeping.keep(kept).await });
    tracing::info!(node = config.node_name, %pod_cidr, "node is up");

    tokio::select! {
        () = shutdown.cancelled() => {}
        _ = managing.join_next() => anyhow::bail!("the pods' manager ended"),
    }
    // First nobody starts anything any more.
    serving.cancel();
    managing.join_all().await;
    if config.end_pods {
        registration.not_ready("the node is stopping").await;
        if tokio::time::timeout(END_LIMIT, work::end_all(&shared, END_GRACE)).await.is_err() {
            tracing::warn!("some pods did not end in time");
        }
        let dir = config.dir.clone();
        let left = tokio::task::spawn_blocking(move || leftovers::mounts(&dir).and(leftovers::groups(&dir)));
        if let Ok(Err(error)) = left.await {
            tracing::warn!(error = format!("{error:#}"), "control groups or mounts stay");
        }
    }
    stop.cancel();
    tasks.abort_all();
    Ok(())
}

/// The network of pods in sandboxes: the other half of the node's range.
fn pods_of_containerd(cluster_id: &str, pods: IpNet) -> cni::Network {
    let halves = pods.subnets(pods.prefix_len() + 1).ok();
    let upper = halves.and_then(|halves| halves.last()).unwrap_or(pods);
    let mut network = cni::Network::new(format!("sampan-{cluster_id}"), [upper]);
    network.port_mappings = sampan_oci::Installed::find().is_ok_and(|installed| installed.iptables);
    network
}

/// What keeps guests in their place here, or what is missing.
fn confinement(privileged: bool) -> Result<String, String> {
    if privileged {
        Ok("hosts of guests have users, control groups and networks of their own".to_owned())
    } else {
        Err("the node runs without privileges: hosts of guests share its user, have no control group and no network of their own; limits are kept by the Wasm host alone, ports below 1024 are shifted".to_owned())
    }
}

async fn cluster(client: &Client, shutdown: &CancellationToken) -> anyhow::Result<Cluster> {
    let maps: Api<core::ConfigMap> = Api::namespaced(client.clone(), CLUSTER.0);
    let map = loop {
        match maps.get(CLUSTER.1).await {
            Ok(map) => break map,
            Err(error) => tracing::warn!(%error, "the cluster's layout cannot be read; trying again"),
        }
        tokio::select! {
            () = shutdown.cancelled() => anyhow::bail!("stopped before the cluster's layout was known"),
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    };
    let data = map.data.unwrap_or_default();
    let field = |name: &str| -> anyhow::Result<&String> {
        data.get(name).with_context(|| format!("ConfigMap {}/{} has no {name}", CLUSTER.0, CLUSTER.1))
    };
    Ok(Cluster {
        id: field("clusterID")?.clone(),
        cluster_cidr: field("clusterCIDR")?.parse().context("clusterCIDR")?,
        service_cidr: field("serviceCIDR")?.parse().context("serviceCIDR")?,
        dns: field("clusterDNS")?.parse().context("clusterDNS")?,
        domain: field("clusterDomain")?.clone(),
    })
}
