//! Reading a pod's spec: what the rest of the agent asks of it.

use std::borrow::Cow;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use kube::ResourceExt;

use super::container::{Container, Role};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

/// Namespace, name and uid, for messages and paths.
pub fn namespace(pod: &core::Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or("default")
}

pub fn name(pod: &core::Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

pub fn uid(pod: &core::Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// `name_namespace(uid)`, as the kubelet names a pod in messages.
pub fn title(pod: &core::Pod) -> String {
    format!("{}_{}({})", name(pod), namespace(pod), uid(pod))
}

pub fn restart_policy(pod: &core::Pod) -> RestartPolicy {
    match pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()) {
        Some("Never") => RestartPolicy::Never,
        Some("OnFailure") => RestartPolicy::OnFailure,
        _ => RestartPolicy::Always,
    }
}

/// Init containers, then the others: what a pod was made with.
pub fn containers(pod: &core::Pod) -> impl Iterator<Item = (&core::Container, Role)> {
    let spec = pod.spec.as_ref();
    let inits = spec.and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default();
    let mains = spec.map(|spec| spec.containers.as_slice()).unwrap_or_default();
    inits
        .iter()
        .map(|container| {
            let sidecar = container.restart_policy.as_deref() == Some("Always");
            (container, if sidecar { Role::Sidecar } else { Role::Init })
        })
        .chain(mains.iter().map(|container| (container, Role::Main)))
}

/// Those, then the ephemeral ones: the order in which a pod's containers are counted here.
pub fn all_containers(pod: &core::Pod) -> impl Iterator<Item = (Cow<'_, core::Container>, Role)> {
    let own = containers(pod).map(|(container, role)| (Cow::Borrowed(container), role));
    own.chain(ephemeral(pod).iter().map(|container| (Cow::Owned(as_container(container)), Role::Ephemeral)))
}

pub fn container(pod: &core::Pod, index: usize) -> Option<Cow<'_, core::Container>> {
    all_containers(pod).nth(index).map(|(container, _)| container)
}

/// What a pod has images as volumes for.
pub fn image_volumes(pod: &core::Pod) -> impl Iterator<Item = (&str, &core::ImageVolumeSource)> {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    volumes.iter().filter_map(|volume| Some((volume.name.as_str(), volume.image.as_ref()?)))
}

/// The images that a pod names, for its containers and its volumes.
pub fn images(pod: &core::Pod) -> impl Iterator<Item = String> {
    let of_containers = all_containers(pod).filter_map(|(container, _)| container.into_owned().image);
    of_containers.chain(image_volumes(pod).filter_map(|(_, volume)| volume.reference.clone()))
}

fn ephemeral(pod: &core::Pod) -> &[core::EphemeralContainer] {
    pod.spec.as_ref().and_then(|spec| spec.ephemeral_containers.as_deref()).unwrap_or_default()
}

/// The container whose processes an ephemeral one is to see.
pub fn target_container<'a>(pod: &'a core::Pod, container: &str) -> Option<&'a str> {
    let found = ephemeral(pod).iter().find(|it| it.name == container)?;
    found.target_container_name.as_deref().filter(|name| !name.is_empty())
}

fn as_container(ephemeral: &core::EphemeralContainer) -> core::Container {
    let ephemeral = ephemeral.clone();
    core::Container {
        args: ephemeral.args,
        command: ephemeral.command,
        env: ephemeral.env,
        env_from: ephemeral.env_from,
        image: ephemeral.image,
        image_pull_policy: ephemeral.image_pull_policy,
        lifecycle: ephemeral.lifecycle,
        liveness_probe: ephemeral.liveness_probe,
        name: ephemeral.name,
        ports: ephemeral.ports,
        readiness_probe: ephemeral.readiness_probe,
        resize_policy: ephemeral.resize_policy,
        resources: ephemeral.resources,
        restart_policy: ephemeral.restart_policy,
        restart_policy_rules: ephemeral.restart_policy_rules,
        security_context: ephemeral.security_context,
        startup_probe: ephemeral.startup_probe,
        stdin: ephemeral.stdin,
        stdin_once: ephemeral.stdin_once,
        termination_message_path: ephemeral.termination_message_path,
        termination_message_policy: ephemeral.termination_message_policy,
        tty: ephemeral.tty,
        volume_devices: ephemeral.volume_devices,
        volume_mounts: ephemeral.volume_mounts,
        working_dir: ephemeral.working_dir,
    }
}

/// State for each container of a pod.
pub fn new_containers(pod: &core::Pod) -> Vec<Container> {
    all_containers(pod).map(|(spec, role)| Container::new(&spec, role)).collect()
}

/// `spec.containers{app}`, as an event about a container names it.
pub fn field_path(pod: &core::Pod, index: usize) -> Option<String> {
    all_containers(pod).nth(index).map(|(container, role)| {
        let list = match role {
            Role::Init | Role::Sidecar => "initContainers",
            Role::Main => "containers",
            Role::Ephemeral => "ephemeralContainers",
        };
        format!("spec.{list}{{{}}}", container.name)
    })
}

/// The time a pod has to end, from its deletion or its spec.
pub fn grace_seconds(pod: &core::Pod) -> u32 {
    let grace = pod
        .metadata
        .deletion_grace_period_seconds
        .or_else(|| pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds))
        .unwrap_or(30);
    u32::try_from(grace.max(0)).unwrap_or(u32::MAX)
}

pub fn is_deleted(pod: &core::Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// The phase in the API's object.
pub fn phase(pod: &core::Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

pub fn is_terminal(pod: &core::Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// A reference for events about a pod or one of its containers.
pub fn reference(pod: &core::Pod, index: Option<usize>) -> core::ObjectReference {
    core::ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: pod.namespace(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        resource_version: pod.metadata.resource_version.clone(),
        field_path: index.and_then(|index| field_path(pod, index)),
    }
}

/// The status the API's object has for a container.
pub fn known_status(pod: &core::Pod, container: &str) -> Option<core::ContainerStatus> {
    let status = pod.status.as_ref()?;
    let lists = [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses];
    lists.into_iter().flatten().flatten().find(|status| status.name == container).cloned()
}

/// A pod as the watch hands it over.
pub type PodRef = Arc<core::Pod>;
