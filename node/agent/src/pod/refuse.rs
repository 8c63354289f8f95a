//! What a pod may ask that has no meaning for WebAssembly, said in words rather than ignored.

use k8s_openapi::api::core::v1 as core;

/// Why no pod of WebAssembly containers can be made.
pub fn pod(pod: &core::Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    if spec.host_network == Some(true) {
        return Some(
            "spec.hostNetwork: WebAssembly containers have no access to the node's network; leave it out, or use a Service of type NodePort".to_owned(),
        );
    }
    if spec.host_pid == Some(true) || spec.host_ipc == Some(true) {
        let field = if spec.host_pid == Some(true) { "hostPID" } else { "hostIPC" };
        return Some(format!("spec.{field}: WebAssembly containers have no processes to share; leave it out"));
    }
    None
}

pub const HOST_PATH: &str = "hostPath: the directories of the node are not given to WebAssembly containers; use emptyDir, configMap, secret or projected";

pub const TARGET: &str =
    "targetContainerName: a WebAssembly container has no processes for others to see; leave it out";

/// Why a Linux container cannot be added to a pod that was made of WebAssembly alone.
pub const WASM_GROUND: &str = "the pod was set up for WebAssembly alone; delete it to have it set up anew, or look at a copy: `kubectl debug POD --copy-to=NAME --image=IMAGE`";

/// Why a volume cannot be given, to a pod all of whose containers are WebAssembly.
pub fn volume(volume: &core::Volume, sandboxed: bool) -> Option<String> {
    if volume.host_path.is_some() {
        return (!sandboxed).then(|| HOST_PATH.to_owned());
    }
    let medium = volume.empty_dir.as_ref().and_then(|source| source.medium.as_deref()).unwrap_or_default();
    if !matches!(medium, "" | "Memory") {
        return Some(format!(
            "emptyDir.medium \"{medium}\": this node gives pods no huge pages; use \"Memory\", or leave it out"
        ));
    }
    let known = volume.empty_dir.is_some()
        || volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
        || volume.image.is_some();
    if known {
        return None;
    }
    let given = serde_json::to_value(volume).ok();
    let source = given
        .as_ref()
        .and_then(|value| value.as_object())
        .and_then(|fields| fields.keys().find(|key| *key != "name"))
        .map_or("no source", String::as_str);
    Some(format!(
        "{source}: this node has no such volumes; it has emptyDir, configMap, secret, downwardAPI, projected and image, and hostPath for Linux containers"
    ))
}

/// Why a WebAssembly container cannot be created as it is written.
pub fn container(container: &core::Container) -> Option<String> {
    for (field, probe) in [
        ("startupProbe", &container.startup_probe),
        ("readinessProbe", &container.readiness_probe),
        ("livenessProbe", &container.liveness_probe),
    ] {
        let Some(probe) = probe else { continue };
        if probe.exec.is_some() {
            return Some(format!(
                "{field}.exec: a WebAssembly container has no other program to run; use httpGet or tcpSocket"
            ));
        }
    }
    let lifecycle = container.lifecycle.as_ref();
    for (field, handler) in [
        ("postStart", lifecycle.and_then(|it| it.post_start.as_ref())),
        ("preStop", lifecycle.and_then(|it| it.pre_stop.as_ref())),
    ] {
        if handler.is_some_and(|handler| handler.exec.is_some()) {
            return Some(format!(
                "lifecycle.{field}.exec: a WebAssembly container has no other program to run; use httpGet or sleep"
            ));
        }
    }
    if container.security_context.as_ref().and_then(|context| context.privileged) == Some(true) {
        return Some(
            "securityContext.privileged: a WebAssembly container cannot be given the machine; leave it out".to_owned(),
        );
    }
    if container.volume_devices.as_ref().is_some_and(|devices| !devices.is_empty()) {
        return Some("volumeDevices: a WebAssembly container cannot use block devices; use volumeMounts".to_owned());
    }
    None
}
