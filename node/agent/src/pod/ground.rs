//! What a pod stands on, decided once, before the first of its containers: the network that all
//! WebAssembly pods of its namespace share, or a sandbox of containerd's, where containers of both
//! kinds are at home.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;

use tokio_util::sync::CancellationToken;

use super::env::PodObjects;
use super::shared::{Handler, Shared};
use super::start::{hostname, keyring};
use super::{paths, refuse, spec};
use crate::image::{Kind, Policy, Reference};
use crate::oci;

/// Where a pod is.
#[derive(Clone, Debug)]
pub struct Ground {
    pub tenant: String,
    pub addresses: Vec<IpAddr>,
    /// In a sandbox of containerd's.
    pub sandboxed: bool,
}

/// Gives a pod its ground; asked again it answers as the first time.
pub async fn prepare(shared: &Arc<Shared>, pod: &core::Pod, ending: &CancellationToken) -> Result<Ground, String> {
    let (namespace, uid) = (spec::namespace(pod), spec::uid(pod));
    let isolated = paths::isolated_tenant(namespace, uid);
    let handler = shared.handler(pod)?;
    let runtime = match &handler {
        Handler::Linux(name) => Some(name.clone()),
        Handler::Wasm | Handler::Isolated => None,
        Handler::Any => tokio::select! {
            wants = wants_sandbox(shared, pod) => wants?.then(String::new),
            () = ending.cancelled() => return Err("given up: the pod is ending".to_owned()),
        },
    };
    let _permit = shared.busy.acquire().await;
    if let Some(runtime) = runtime {
        return sandbox(shared, pod, isolated, runtime).await;
    }
    if let Some(refusal) = refuse::pod(pod) {
        return Err(refusal);
    }
    let address = shared.addresses.assign(namespace, uid).await.map_err(|error| format!("{error:#}"))?;
    let tenant = if handler == Handler::Isolated { isolated } else { namespace.to_owned() };
    Ok(Ground { tenant, addresses: vec![address], sandboxed: false })
}

/// Whether some container of a pod is no WebAssembly, or cannot be told: a sandbox is right for both.
async fn wants_sandbox(shared: &Arc<Shared>, pod: &core::Pod) -> Result<bool, String> {
    if shared.oci().available().is_err() {
        return Ok(false);
    }
    if shared.oci().has_sandbox(spec::uid(pod)) {
        return Ok(true);
    }
    if shared.addresses.is_assigned(spec::uid(pod)).await {
        return Ok(false);
    }
    let source = PodObjects { objects: &shared.objects, namespace: spec::namespace(pod), uid: spec::uid(pod) };
    let mut keys = None;
    for (container, _) in spec::containers(pod) {
        let Ok(reference) = Reference::parse(container.image.as_deref().unwrap_or_default()) else { continue };
        if keys.is_none() {
            keys = Some(keyring(shared, pod, &source).await);
        }
        let policy = Policy::of(container.image_pull_policy.as_deref());
        let kind = match &keys {
            Some(keys) => shared.puller.kind(&reference, policy, keys).await,
            None => None,
        };
        if kind != Some(Kind::Wasm) {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn sandbox(shared: &Arc<Shared>, pod: &core::Pod, tenant: String, runtime: String) -> Result<Ground, String> {
    let uid = spec::uid(pod);
    let root = shared.paths.tenant(&tenant);
    let logs = root.join(paths::containers(uid));
    let (root_dir, logs_dir) = (root.clone(), logs.clone());
    let made = tokio::task::spawn_blocking(move || -> std::io::Result<()> {
        use std::os::unix::fs::PermissionsExt as _;
        let new = !root_dir.exists();
        std::fs::create_dir_all(&logs_dir)?;
        if new {
            std::fs::set_permissions(&root_dir, std::fs::Permissions::from_mode(0o710))?;
        }
        Ok(())
    });
    let made = made.await.map_err(|error| error.to_string())?;
    made.map_err(|error| format!("{}: {error}", root.display()))?;
    let read = async |path: &str| tokio::fs::read_to_string(path).await.unwrap_or_default();
    let node = oci::spec::resolv_conf(&read("/etc/resolv.conf").await);
    let cluster = oci::spec::Cluster { nameserver: shared.nameserver, domain: &shared.cluster_domain, node };
    let cgroup = shared.oci().cgroup(oci::spec::qos(pod), uid);
    let mut config = oci::spec::sandbox(pod, &cluster, hostname(pod), &logs, cgroup);
    config.runtime_handler = runtime;
    let ground =
        shared.oci().sandbox(config, oci::spec::pod_limits(pod)).await.map_err(|error| format!("{error:#}"))?;
    let addresses = if ground.addresses.is_empty() { shared.host.clone() } else { ground.addresses };
    let hosts = match oci::spec::in_host_network(pod) {
        true => read("/etc/hosts").await + &oci::spec::aliases(pod),
        false => oci::spec::hosts(pod, &hostname(pod), &addresses, &shared.cluster_domain),
    };
    let file = root.join(paths::etc_hosts(uid));
    tokio::fs::write(&file, hosts).await.map_err(|error| format!("{}: {error}", file.display()))?;
    Ok(Ground { tenant, addresses, sandboxed: true })
}
