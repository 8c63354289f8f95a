//! The Kubernetes API server: HTTPS in front, the revisioned store behind, a watch cache between.
//!
//! [`Server::start`] brings everything up. Programs of the same process use [`Server::router`] with
//! an identity; everybody else comes over TLS and is authenticated there.

mod admission;
mod app;
mod authentication;
mod authorization;
mod cache;
mod endpoints;
mod expiry;
mod identity;
mod initial;
mod listener;
mod managed;
mod metrics;
mod naming;
mod nodes;
mod pki;
mod registry;
mod request;
mod respond;
mod services;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use axum::{Extension, Router};
use futures::future::BoxFuture;
use ipnet::IpNet;
use sampan_api::kinds;
use sampan_store::{RedbStore, Store};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use crate::app::Clock;
pub use crate::cache::encode as stored_form;
pub use crate::identity::Identity;
pub use crate::pki::CertificateAndKey;

/// The domain under which Services have names.
pub const CLUSTER_DOMAIN: &str = "cluster.local";

/// How a server is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where its keys and its store are kept.
    pub dir: PathBuf,
    pub listen: SocketAddr,
    /// The address that nodes and clients are told, where it is not the one listened on.
    pub advertise: Option<IpAddr>,
    /// Further names and addresses of the server's certificate.
    pub names: Vec<String>,
    pub service_cidr: IpNet,
    pub cluster_cidr: IpNet,
    pub node_ports: RangeInclusive<u16>,
}

impl Config {
    /// The address that the cluster knows the server by.
    pub fn endpoint(&self) -> SocketAddr {
        let address = self.advertise.unwrap_or_else(|| match self.listen.ip() {
            ip if ip.is_unspecified() => outgoing_address().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            ip => ip,
        });
        SocketAddr::new(address, self.listen.port())
    }

    /// The address of `default/kubernetes`.
    pub fn kubernetes_address(&self) -> IpAddr {
        services::nth(&self.service_cidr, 1)
    }

    /// Where the cluster's DNS answers.
    pub fn dns_address(&self) -> IpAddr {
        services::nth(&self.service_cidr, services::DNS_OFFSET)
    }
}

/// The address that a connection to elsewhere would come from. Sends nothing.
pub fn outgoing_address() -> Option<IpAddr> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    // A documentation address: only the route is looked up.
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

/// A running server.
pub struct Server {
    app: Arc<app::App>,
    local: SocketAddr,
    router: Router,
    finished: watch::Receiver<bool>,
}

impl Server {
    /// Opens `DIR/store.redb` and serves until `shutdown`.
    pub fn start(config: Config, shutdown: CancellationToken) -> BoxFuture<'static, anyhow::Result<Self>> {
        // Boxed: compiled with this crate, not again with each program that calls it.
        Box::pin(Self::open(config, shutdown))
    }

    async fn open(config: Config, shutdown: CancellationToken) -> anyhow::Result<Self> {
        tokio::fs::create_dir_all(&config.dir)
            .await
            .with_context(|| format!("data directory {}", config.dir.display()))?;
        let path = config.dir.join("store.redb");
        let store =
            tokio::task::spawn_blocking(move || RedbStore::open(path, sampan_store::Options::default())).await??;
        Self::start_with(config, Arc::new(store), Arc::new(jiff::Timestamp::now), shutdown).await
    }

    /// As [`Self::start`], on a store and with a clock that are given.
    pub async fn start_with(
        mut config: Config,
        store: Arc<dyn Store>,
        clock: Clock,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(config.listen)
            .await
            .with_context(|| format!("cannot listen on {}; choose another address with --listen", config.listen))?;
        let local = listener.local_addr()?;
        config.listen = local;
        let dir = config.dir.join("pki");
        let pki = tokio::task::spawn_blocking(move || pki::Pki::open(&dir)).await??;
        let cache = cache::Cache::start(store.clone(), kinds::ALL.iter().copied(), shutdown.clone())
            .await
            .context("reading the store")?;
        let tokens = authentication::service_account::Tokens::new(
            &pki,
            format!("https://kubernetes.default.svc.{CLUSTER_DOMAIN}"),
        )?;
        // An ordinary user's cluster lives in loopback ranges: endpoints there are the cluster's own.
        for range in [config.cluster_cidr, config.service_cidr] {
            if let IpNet::V4(range) = range {
                sampan_api::validation::net::allow_loopback(range.network(), range.prefix_len());
            }
        }
        let services = services::Allocators::new(config.service_cidr, config.node_ports.clone());
        let tls = pki.server_tls(&names(&config), &addresses(&config, local))?;
        let app = Arc::new(app::App {
            nodes: nodes::NodeClient::new(&pki)?,
            config,
            store,
            cache,
            pki,
            tokens,
            services,
            metrics: metrics::Metrics::new(),
            clock,
            shutdown,
            ready: AtomicBool::new(false),
        });
        if let Some(known) = app.kind_cache("", "services") {
            let (snapshot, _) = known.list("", None, 0, |_| true);
            for service in &snapshot.objects {
                app.services.occupy(&service.value());
            }
        }
        initial::make(&app).await.map_err(|error| {
            let (_, status) = error.status();
            let text = status.get("message").and_then(serde_json::Value::as_str).unwrap_or_default();
            anyhow::anyhow!("making the cluster's own objects: {text}")
        })?;
        app.ready.store(true, Ordering::Release);
        let router = endpoints::router(app.clone());
        tokio::spawn(expiry::run(app.clone()));
        let (done, finished) = watch::channel(false);
        let serving = listener::serve(app.clone(), listener, tls, router.clone());
        tokio::spawn(async move {
            serving.await;
            done.send_replace(true);
        });
        tracing::info!(address = %local, "the API server listens");
        Ok(Self { app, local, router, finished })
    }

    /// The API for this process, as an identity; what TLS and authentication do is done.
    pub fn router(&self, identity: Identity) -> Router {
        self.router.clone().layer(Extension(identity))
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    pub fn ca_pem(&self) -> &str {
        self.app.pki.ca_pem()
    }

    /// SHA-256 of the CA in hex: the last part of a join token.
    pub fn ca_hash(&self) -> String {
        self.app.pki.ca_hash()
    }

    /// A client certificate and its key, PEM, for a user in at most one group.
    pub fn client_certificate(&self, user: &str, groups: &[&str]) -> anyhow::Result<CertificateAndKey> {
        Ok(self.app.pki.client_certificate(user, groups)?)
    }

    /// The certificate of a node of this process, for its signing request (PEM both).
    pub fn node_certificate(&self, request_pem: &str) -> anyhow::Result<String> {
        Ok(self.app.pki.sign_node(request_pem)?.1)
    }

    /// Whether `/readyz` says so.
    pub fn is_ready(&self) -> bool {
        self.app.is_ready()
    }

    /// Waits for the end: the listener is closed and every answer is given.
    pub async fn finished(mut self) {
        // An error says that the sender is gone: as finished as it gets.
        let _ = self.finished.wait_for(|done| *done).await;
    }
}

/// The version that the server reports.
pub fn version() -> String {
    endpoints::git_version()
}

fn names(config: &Config) -> Vec<String> {
    let service = format!("kubernetes.default.svc.{CLUSTER_DOMAIN}");
    let mut all: Vec<String> =
        ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", &service].map(str::to_owned).into();
    all.extend(config.names.iter().filter(|name| name.parse::<IpAddr>().is_err()).cloned());
    all
}

fn addresses(config: &Config, local: SocketAddr) -> Vec<IpAddr> {
    let mut all = vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(std::net::Ipv6Addr::LOCALHOST)];
    all.push(config.kubernetes_address());
    all.push(config.endpoint().ip());
    all.push(local.ip());
    all.extend(config.names.iter().filter_map(|name| name.parse::<IpAddr>().ok()));
    all.retain(|ip: &IpAddr| !ip.is_unspecified());
    let mut seen = std::collections::HashSet::new();
    all.retain(|ip| seen.insert(*ip));
    all
}
