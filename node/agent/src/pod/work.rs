//! The work that pods' machines ask for: each piece waits for something, none decides anything.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use kube::api::{Api, DeleteParams, Patch, Preconditions};
use serde_json::json;

use tokio_util::sync::CancellationToken;

use super::ground::{self, Ground};
use super::machine::SetUpError;
use super::probes::{self, ProbeKind};
use super::shared::Shared;
use super::volumes::Write;
use super::{hooks, mounts, paths, prober, spec, start, volumes};
use crate::runtime::{ContainerId, Exit, RunState};

/// How long to wait before something is ended again, at first and at most.
const RELEASE: Duration = Duration::from_millis(200);
const RELEASE_MAX: Duration = Duration::from_secs(5);
/// How often a Wasm host is asked to end a container.
const ATTEMPTS: u32 = 3;
/// Seconds that a container has after its preStop hook, if it has a grace at all.
const LEAST_GRACE: u32 = 2;

/// Ground and volumes; also when the volumes are to be written again.
pub(super) async fn set_up(
    shared: &Arc<Shared>,
    pod: &core::Pod,
    ending: &CancellationToken,
) -> Result<(Ground, Option<Timestamp>), SetUpError> {
    let sandbox = |message: String| SetUpError {
        reason: "FailedCreatePodSandBox",
        message: format!("Failed to create pod sandbox: {message}"),
    };
    let ground = ground::prepare(shared, pod, ending).await.map_err(sandbox)?;
    let _permit = shared.busy.acquire().await;
    let refresh = write_volumes(shared, pod, &ground.addresses, &ground.tenant, Write::All).await?;
    Ok((ground, refresh))
}

pub(super) async fn write_volumes(
    shared: &Arc<Shared>,
    pod: &core::Pod,
    addresses: &[IpAddr],
    tenant: &str,
    write: Write,
) -> Result<Option<Timestamp>, SetUpError> {
    let namespace = spec::namespace(pod);
    let context = volumes::Context {
        client: &shared.client,
        recorder: &shared.recorder,
        paths: &shared.paths,
        tenant,
        source: super::env::PodObjects { objects: &shared.objects, namespace, uid: spec::uid(pod) },
        host: &shared.host,
        addresses,
        allocatable: &shared.allocatable,
        owner: shared.owner(tenant),
        sandboxed: shared.oci().ground(spec::uid(pod)).is_some(),
    };
    volumes::write(&context, pod, write).await
}

pub(super) fn target(
    pod: &core::Pod,
    index: usize,
    kind: ProbeKind,
    addresses: &[IpAddr],
) -> Result<prober::Target, String> {
    let container = spec::container(pod, index).ok_or("no such container")?;
    let probe = probes::of(&container, kind).ok_or("no such probe")?;
    let address = *addresses.first().ok_or("the pod has no address")?;
    prober::target(&container, probe, address)
}

/// Ends one container: its preStop hook, then the runtime, within the grace.
pub(super) async fn stop(
    shared: &Arc<Shared>,
    container: &core::Container,
    id: &ContainerId,
    addresses: &[IpAddr],
    grace: u32,
    pod: &core::Pod,
) -> Option<Exit> {
    let begin = tokio::time::Instant::now();
    let asker = shared.asker(id);
    let hook = hooks::pre_stop(container, addresses.first().copied(), &asker, Duration::from_secs(grace.into()));
    if let Err(problem) = hook.await {
        let index = spec::all_containers(pod).position(|(it, _)| it.name == container.name);
        let reference = spec::reference(pod, index);
        shared.recorder.record_reference(reference, sampan_client::EventKind::Warning, "FailedPreStopHook", problem);
    }
    let spent = u32::try_from(begin.elapsed().as_secs()).unwrap_or(u32::MAX);
    // However long the hook took, its end has a moment of its own.
    let left = grace.saturating_sub(spent).max(grace.min(LEAST_GRACE));
    let mut wait = RELEASE;
    for attempt in 1.. {
        match shared.runtimes.of(id).stop(id, left).await {
            Ok(exit) => return Some(exit),
            Err(error) => tracing::warn!(container = id.id(), error = format!("{error:#}"), "not stopped"),
        }
        // A container of containerd's runs while containerd is away: it is not lost.
        if attempt == ATTEMPTS && !shared.oci().has(id) {
            break;
        }
        tokio::time::sleep(wait).await;
        wait = (wait + wait).min(RELEASE_MAX);
    }
    None
}

pub(super) async fn remove(shared: &Arc<Shared>, id: &ContainerId) {
    if let Err(error) = shared.runtimes.of(id).remove(id).await {
        tracing::debug!(container = id.id(), error = format!("{error:#}"), "not removed");
    }
    let tenant = shared.paths.tenant(&id.tenant);
    for file in start::files_of(id) {
        let path = tenant.join(file);
        if tokio::fs::remove_file(&path).await.is_err() {
            let _ = tokio::task::spawn_blocking(move || mounts::remove(&path)).await;
        }
    }
}

/// Takes a pod's sandbox down, however long containerd is away: a pod that still runs is not gone.
pub(super) async fn release(shared: &Shared, uid: &str) {
    let mut wait = RELEASE;
    while let Err(error) = shared.oci().release(uid).await {
        tracing::warn!(pod = uid, error = format!("{error:#}"), "sandbox not taken down; trying again");
        tokio::time::sleep(wait).await;
        wait = (wait + wait).min(RELEASE_MAX);
    }
}

/// Gives back what only a living pod needs. Logs stay until the pod is gone from the API.
pub(super) async fn clean_up(shared: &Arc<Shared>, pod: &core::Pod, tenant: &str, ended: Vec<ContainerId>) {
    let uid = spec::uid(pod);
    for id in ended {
        if let Err(error) = shared.runtimes.of(&id).remove(&id).await {
            tracing::debug!(container = id.id(), error = format!("{error:#}"), "not removed");
        }
    }
    shared.objects.release(uid);
    if paths::is_isolated(tenant) {
        release(shared, uid).await;
        if let Err(error) = shared.runtimes.wasm.release_tenant(tenant).await {
            tracing::warn!(tenant, error = format!("{error:#}"), "host stays");
        }
    }
    if let Err(error) = shared.addresses.release(uid).await {
        tracing::warn!(pod = uid, error = format!("{error:#}"), "address stays");
    }
    let volumes = shared.paths.tenant(tenant).join(paths::volumes(uid));
    if let Ok(Err(error)) = tokio::task::spawn_blocking(move || mounts::remove(&volumes)).await {
        tracing::warn!(pod = uid, %error, "volumes stay");
    } else if spec::image_volumes(pod).next().is_some()
        && let Err(error) = shared.oci().hide(|of| of == uid).await
    {
        tracing::warn!(pod = uid, error = format!("{error:#}"), "files of images stay in containerd");
    }
}

/// Whether others wait for this: readiness and ends are told at once. That a pod runs may wait for what
/// its first probe says.
pub(super) fn is_urgent(published: Option<&core::PodStatus>, status: &core::PodStatus, pod: &core::Pod) -> bool {
    let ready = |status: Option<&core::PodStatus>| {
        status
            .and_then(|status| status.conditions.as_ref())
            .and_then(|conditions| conditions.iter().find(|condition| condition.type_ == "Ready"))
            .is_some_and(|condition| condition.status == "True")
    };
    let before = published.or(pod.status.as_ref());
    let phase = |status: Option<&core::PodStatus>| status.and_then(|status| status.phase.clone());
    phase(before) != phase(Some(status)) && !matches!(status.phase.as_deref(), Some("Pending" | "Running"))
        || ready(before) != ready(Some(status))
}

/// Whether the API's status is the one we told, in what others act on.
pub(super) fn agrees(published: &core::PodStatus, api: Option<&core::PodStatus>) -> bool {
    let Some(api) = api else { return false };
    let conditions = |status: &core::PodStatus| -> BTreeMap<String, String> {
        let ours = ["Ready", "ContainersReady", "Initialized"];
        status
            .conditions
            .iter()
            .flatten()
            .filter(|condition| ours.contains(&condition.type_.as_str()))
            .map(|condition| (condition.type_.clone(), condition.status.clone()))
            .collect()
    };
    published.phase == api.phase && conditions(published) == conditions(api)
}

/// A status as a strategic merge patch that leaves nothing of the one before.
fn patch(status: &core::PodStatus) -> serde_json::Value {
    let mut body = serde_json::to_value(status).unwrap_or_default();
    if let Some(body) = body.as_object_mut() {
        // What is no longer so has to be said.
        for field in ["reason", "message"] {
            body.entry(field).or_insert(serde_json::Value::Null);
        }
        // Lists by address would be merged: a pod that was set up anew has another one, not one more.
        for field in ["podIPs", "hostIPs"] {
            if let Some(list) = body.get_mut(field).and_then(serde_json::Value::as_array_mut) {
                list.insert(0, json!({ "$patch": "replace" }));
            }
        }
    }
    body
}

/// Writes the status; `Err` asks for another try.
pub(super) async fn write_status(
    shared: &Shared,
    pod: &core::Pod,
    status: &core::PodStatus,
) -> Result<Option<u64>, ()> {
    let (namespace, name) = (spec::namespace(pod), spec::name(pod));
    let patch = Patch::Strategic(json!({ "metadata": { "uid": spec::uid(pod) }, "status": patch(status) }));
    match sampan_client::patch_status::<core::Pod, _>(&shared.client, namespace, name, &patch).await {
        Ok(receipt) => Ok(receipt.resource_version().parse().ok()),
        // Gone, or another pod of that name: the watch will tell.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(None),
        // Asking again would change nothing, and the pod's end must not wait for it.
        Err(kube::Error::Api(status)) if status.code == 422 => {
            tracing::error!(pod = spec::title(pod), error = status.message, "status refused");
            Ok(None)
        }
        Err(error) => {
            tracing::warn!(pod = spec::title(pod), %error, "status not written; trying again");
            Err(())
        }
    }
}

/// Removes the object of a pod that has ended. False asks for another try.
pub(super) async fn delete(shared: &Shared, pod: &core::Pod) -> bool {
    let pods: Api<core::Pod> = Api::namespaced(shared.client.clone(), spec::namespace(pod));
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions { uid: pod.metadata.uid.clone(), resource_version: None }),
        ..Default::default()
    };
    match pods.delete(spec::name(pod), &params).await {
        Ok(_) => true,
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => true,
        Err(error) => {
            tracing::warn!(pod = spec::title(pod), %error, "not deleted; trying again");
            false
        }
    }
}

/// Ends every container, as the shutdown of a whole cluster asks.
pub async fn end_all(shared: &Arc<Shared>, grace: u32) {
    let running = match shared.runtimes.list().await {
        Ok(list) => list,
        Err(error) => {
            tracing::warn!(error = format!("{error:#}"), "containers are not known");
            return;
        }
    };
    let mut tenants: HashSet<String> = HashSet::new();
    let mut ending = tokio::task::JoinSet::new();
    for (id, state) in running {
        tenants.insert(id.tenant.clone());
        if matches!(state, RunState::Running { .. }) {
            let shared = shared.clone();
            ending.spawn(async move {
                if let Err(error) = shared.runtimes.of(&id).stop(&id, grace).await {
                    tracing::warn!(container = id.id(), error = format!("{error:#}"), "not stopped");
                }
            });
        }
    }
    ending.join_all().await;
    let mut ending = tokio::task::JoinSet::new();
    for tenant in tenants {
        let shared = shared.clone();
        ending.spawn(async move {
            if let Err(error) = shared.runtimes.wasm.release_tenant(&tenant).await {
                tracing::warn!(tenant, error = format!("{error:#}"), "host stays");
            }
        });
    }
    ending.join_all().await;
    let mut ending = tokio::task::JoinSet::new();
    match shared.oci().sandboxed().await {
        Ok(pods) => {
            for uid in pods.into_keys() {
                let shared = shared.clone();
                ending.spawn(async move {
                    if let Err(error) = shared.oci().release(&uid).await {
                        tracing::warn!(pod = uid, error = format!("{error:#}"), "sandbox stays");
                    }
                });
            }
        }
        Err(error) => tracing::warn!(error = format!("{error:#}"), "sandboxes are not known"),
    }
    ending.join_all().await;
    if let Err(error) = shared.oci().end().await {
        tracing::warn!(error = format!("{error:#}"), "containerd stays");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_address_replaces_the_one_before() {
        let status: core::PodStatus =
            serde_json::from_value(json!({ "podIP": "10.0.0.7", "podIPs": [{ "ip": "10.0.0.7" }] })).unwrap();
        let patch = patch(&status);
        assert_eq!(patch["podIPs"], json!([{ "$patch": "replace" }, { "ip": "10.0.0.7" }]));
        assert!(patch.as_object().unwrap().contains_key("reason") && patch.get("hostIPs").is_none());
    }
}
