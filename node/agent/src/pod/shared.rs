//! What all pods of a node share.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::Client;
use sampan_client::{EventRecorder, Informer};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::container::{Container, State};
use super::objects::Objects;
use super::paths::{self, Paths};
use super::prober::{Asker, PortShift};
use super::spec;
use crate::image::collect::Collecting;
use crate::image::{Images, Puller};
use crate::node::Pressure;
use crate::oci::Oci;
use crate::runtime::{ContainerId, Runtimes};

/// Pod addresses, as far as a pod's life needs them.
#[async_trait]
pub trait Addresses: Send + Sync + 'static {
    async fn assign(&self, namespace: &str, pod_uid: &str) -> anyhow::Result<IpAddr>;
    async fn release(&self, pod_uid: &str) -> anyhow::Result<()>;
    /// The last pod of a namespace is gone.
    async fn remove_namespace(&self, namespace: &str) -> anyhow::Result<()>;
    async fn is_assigned(&self, pod_uid: &str) -> bool;
    /// Pods that hold an address.
    async fn assigned(&self) -> Vec<String>;
}

/// The runs of a container, for who reads its logs.
#[derive(Clone, Debug, Default)]
pub struct Runs {
    pub tenant: String,
    /// The run that is or was last.
    pub current: Option<u32>,
    pub previous: Option<u32>,
    /// Cancelled when the current run has ended; none if it had when this was last looked at.
    pub live: Option<CancellationToken>,
    /// Why there is no run yet.
    pub waiting: Option<String>,
}

/// User and group that a tenant's files belong to; `None` where they are the agent's own.
pub type Owner = Box<dyn Fn(&str) -> Option<(u32, u32)> + Send + Sync>;

pub struct Shared {
    pub node_name: String,
    pub client: Client,
    pub runtimes: Runtimes,
    pub addresses: Arc<dyn Addresses>,
    pub images: Arc<Images>,
    pub puller: Puller,
    pub objects: Arc<Objects>,
    pub services: Informer<core::Service>,
    pub runtime_classes: Informer<RuntimeClass>,
    pub recorder: EventRecorder,
    pub paths: Paths,
    pub disk: Arc<Pressure>,
    /// Makes room on it.
    pub collecting: Collecting,
    /// The node's addresses.
    pub host: Vec<IpAddr>,
    pub allocatable: BTreeMap<String, Quantity>,
    pub cluster_domain: String,
    /// Where cluster DNS answers.
    pub nameserver: IpAddr,
    pub shift: PortShift,
    pub max_pods: usize,
    /// How many pods are set up or started at once: more would only wait for the disk together.
    pub busy: Semaphore,
    /// The user that host processes run as, by tenant, where it is not the agent's.
    pub owner: Owner,
    /// By pod uid and container.
    pub runs: Mutex<HashMap<String, HashMap<String, Runs>>>,
}

impl Shared {
    /// Notes how a pod's containers are, for readers of logs.
    pub fn note_runs(&self, uid: &str, tenant: &str, containers: &[Container]) {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        let pod = runs.entry(uid.to_owned()).or_default();
        for container in containers {
            let run = pod
                .entry(container.name.clone())
                .or_insert_with(|| Runs { tenant: tenant.to_owned(), ..Runs::default() });
            // A pod that was not set up yet was told to be elsewhere.
            tenant.clone_into(&mut run.tenant);
            if run.current != container.attempt || !container.is_running() {
                // Whoever follows has read to the end of that run.
                if let Some(live) = run.live.take() {
                    live.cancel();
                }
            }
            run.current = container.attempt;
            run.previous = container.last.as_ref().map(|last| last.attempt);
            if container.is_running() && run.live.is_none() {
                run.live = Some(CancellationToken::new());
            }
            run.waiting = match &container.state {
                State::Blocked { reason, .. } => Some((*reason).to_owned()),
                _ if container.attempt.is_none() => Some("ContainerCreating".to_owned()),
                _ => None,
            };
            if matches!(container.state, State::Exited { .. } | State::Blocked { .. } | State::Starting { .. }) {
                run.previous = run.previous.or(container.attempt);
            }
        }
    }

    /// A pod is gone.
    pub fn forget_runs(&self, uid: &str) {
        let pod = self.runs.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
        for live in pod.into_iter().flatten().filter_map(|(_, run)| run.live) {
            live.cancel();
        }
    }

    pub fn owner(&self, tenant: &str) -> Option<(u32, u32)> {
        (self.owner)(tenant)
    }

    pub fn oci(&self) -> &Arc<Oci> {
        &self.runtimes.oci
    }

    /// Asks what a probe or hook of a container asks.
    pub fn asker<'a>(&'a self, id: &'a ContainerId) -> Asker<'a> {
        Asker { shift: self.shift, runtime: self.runtimes.of(id), id }
    }

    /// The tenant that a pod was set up for; before it was, that of its namespace.
    pub fn tenant(&self, pod: &core::Pod) -> String {
        let namespace = spec::namespace(pod);
        let isolated = paths::isolated_tenant(namespace, spec::uid(pod));
        if self.paths.tenant(&isolated).is_dir() { isolated } else { namespace.to_owned() }
    }

    /// The Services that a namespace's pods are told of.
    pub fn services(&self, namespace: &str) -> Vec<Arc<core::Service>> {
        let mut services = self.services.list_in(namespace);
        if namespace != "default" {
            services.extend(self.services.get("default", "kubernetes"));
        }
        services
    }

    /// What a pod's RuntimeClass asks for.
    pub fn handler(&self, pod: &core::Pod) -> Result<Handler, String> {
        let Some(name) = pod.spec.as_ref().and_then(|spec| spec.runtime_class_name.as_deref()) else {
            return Ok(Handler::Any);
        };
        let class = self.runtime_classes.get("", name).ok_or_else(|| format!("RuntimeClass \"{name}\" not found"))?;
        match class.handler.as_str() {
            WASM => Ok(Handler::Wasm),
            ISOLATED => Ok(Handler::Isolated),
            other if self.oci().which.has_handler(other) => Ok(Handler::Linux(other.to_owned())),
            other => Err(format!(
                "RuntimeClass \"{name}\": this node has no handler \"{other}\"; it has {}",
                [WASM, ISOLATED]
                    .into_iter()
                    .chain(self.oci().which.handlers().iter().map(String::as_str))
                    .collect::<Vec<_>>()
                    .join(", ")
            )),
        }
    }
}

/// Handlers of RuntimeClasses.
pub const WASM: &str = "wasm";
/// Gives a pod a Wasm host process of its own.
pub const ISOLATED: &str = "wasm-isolated";

/// What a RuntimeClass asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handler {
    /// Nothing: each image says what runs it.
    Any,
    Wasm,
    Isolated,
    /// One of containerd's.
    Linux(String),
}
