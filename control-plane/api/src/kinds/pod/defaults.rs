//! What the reference fills in for a pod and for a pod's template.

use serde_json::{Value, json};

use super::aggregate;
use crate::kinds::edit::{Object, default, default_zero, ensure, object, objects, text};
use crate::quantity::Quantity;

/// Defaults of a whole pod: those of the spec, and those that only a pod gets.
pub fn pod(value: &mut Value) {
    let Some(map) = value.as_object_mut() else {
        return;
    };
    let spec = ensure(map, "spec");
    pod_spec(spec);
    for list in ["containers", "initContainers"] {
        for container in objects(spec, list) {
            requests_from_limits(container);
        }
    }
    pod_level_resources(spec);
    default(spec, "enableServiceLinks", true);
    if spec.get("hostNetwork").and_then(Value::as_bool) == Some(true) {
        for list in ["containers", "initContainers"] {
            for container in objects(spec, list) {
                for port in objects(container, "ports") {
                    if let Some(number) = port.get("containerPort").cloned() {
                        default_zero(port, "hostPort", number);
                    }
                }
            }
        }
    }
    // A negative grace period means one second, in a pod but not in a template.
    if spec.get("terminationGracePeriodSeconds").and_then(Value::as_i64).is_some_and(|seconds| seconds < 0) {
        spec.insert("terminationGracePeriodSeconds".to_owned(), 1.into());
    }
    drop_init_annotations(map);
    sync_ips(map);
}

/// A pod's template: labels, annotations and a spec.
pub fn template(template: &mut Object) {
    drop_init_annotations(template);
    pod_spec(ensure(template, "spec"));
}

/// Annotations that held init containers before they had a field.
fn drop_init_annotations(pod: &mut Object) {
    let Some(annotations) = object(pod, "metadata").and_then(|meta| object(meta, "annotations")) else {
        return;
    };
    for version in ["alpha", "beta"] {
        for what in ["init-containers", "init-container-statuses"] {
            annotations.remove(&format!("pod.{version}.kubernetes.io/{what}"));
        }
    }
}

/// `podIP` and `podIPs` tell the same.
pub fn sync_ips(pod: &mut Object) {
    let Some(status) = object(pod, "status") else {
        return;
    };
    let single = text(status, "podIP").to_owned();
    let first = status.get("podIPs").and_then(|ips| ips.get(0)?.get("ip")?.as_str()).map(str::to_owned);
    match first {
        Some(first) if single.is_empty() => {
            status.insert("podIP".to_owned(), first.into());
        }
        first if !single.is_empty() && first.as_ref() != Some(&single) => {
            status.insert("podIPs".to_owned(), json!([{"ip": single}]));
        }
        _ => {}
    }
}

/// The old name of a field tells the same as the new one.
pub fn sync_service_account(spec: &mut Object) {
    let name =
        [text(spec, "serviceAccountName"), text(spec, "serviceAccount")].into_iter().find(|name| !name.is_empty());
    if let Some(name) = name.map(str::to_owned) {
        spec.insert("serviceAccountName".to_owned(), name.clone().into());
        spec.insert("serviceAccount".to_owned(), name.into());
    }
}

/// Defaults of a pod's spec wherever it stands.
pub fn pod_spec(spec: &mut Object) {
    default_zero(spec, "dnsPolicy", "ClusterFirst");
    default_zero(spec, "restartPolicy", "Always");
    default(spec, "securityContext", json!({}));
    default(spec, "terminationGracePeriodSeconds", 30);
    default_zero(spec, "schedulerName", "default-scheduler");
    sync_service_account(spec);
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for one in objects(spec, list) {
            container(one);
        }
    }
    for one in objects(spec, "volumes") {
        volume(one);
    }
    round(spec, "overhead");
    if let Some(resources) = object(spec, "resources") {
        round(resources, "limits");
        round(resources, "requests");
    }
}

/// Resources are kept in thousandths at the finest.
pub fn round(map: &mut Object, key: &str) {
    for (_, value) in object(map, key).into_iter().flatten() {
        let Some(mut quantity) = value.as_str().and_then(|text| Quantity::parse(text).ok()) else {
            continue;
        };
        let before = quantity.clone();
        quantity.round_up_milli();
        if quantity != before {
            *value = quantity.to_string().into();
        }
    }
}

fn container(container: &mut Object) {
    let policy = if is_latest(text(container, "image")) { "Always" } else { "IfNotPresent" };
    default_zero(container, "imagePullPolicy", policy);
    default_zero(container, "terminationMessagePath", "/dev/termination-log");
    default_zero(container, "terminationMessagePolicy", "File");
    default(container, "resources", json!({}));
    for port in objects(container, "ports") {
        default_zero(port, "protocol", "TCP");
    }
    for env in objects(container, "env") {
        if let Some(source) = object(env, "valueFrom") {
            field_ref(source);
            if let Some(file) = object(source, "fileKeyRef") {
                default(file, "optional", false);
            }
        }
    }
    if let Some(resources) = object(container, "resources") {
        round(resources, "limits");
        round(resources, "requests");
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = object(container, name) {
            default_zero(probe, "timeoutSeconds", 1);
            default_zero(probe, "periodSeconds", 10);
            default_zero(probe, "successThreshold", 1);
            default_zero(probe, "failureThreshold", 3);
            http_get(probe);
            if let Some(grpc) = object(probe, "grpc") {
                default(grpc, "service", "");
            }
        }
    }
    if let Some(lifecycle) = object(container, "lifecycle") {
        for name in ["postStart", "preStop"] {
            if let Some(handler) = object(lifecycle, name) {
                http_get(handler);
            }
        }
    }
}

fn http_get(handler: &mut Object) {
    if let Some(get) = object(handler, "httpGet") {
        default_zero(get, "path", "/");
        default_zero(get, "scheme", "HTTP");
    }
}

fn field_ref(source: &mut Object) {
    if let Some(field) = object(source, "fieldRef") {
        default_zero(field, "apiVersion", "v1");
    }
    // The divisor is always written.
    if let Some(resource) = object(source, "resourceFieldRef") {
        default(resource, "divisor", "0");
    }
}

const DEFAULT_MODE: i64 = 0o644;

fn volume(volume: &mut Object) {
    if volume.iter().all(|(key, value)| key == "name" || value.is_null()) {
        volume.insert("emptyDir".to_owned(), json!({}));
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = object(volume, source) {
            default(source, "defaultMode", DEFAULT_MODE);
        }
    }
    if let Some(source) = object(volume, "hostPath") {
        default(source, "type", "");
    }
    if let Some(source) = object(volume, "downwardAPI") {
        for item in objects(source, "items") {
            field_ref(item);
        }
    }
    if let Some(source) = object(volume, "projected") {
        for source in objects(source, "sources") {
            if let Some(token) = object(source, "serviceAccountToken") {
                default(token, "expirationSeconds", 3600);
            }
            if let Some(downward) = object(source, "downwardAPI") {
                for item in objects(downward, "items") {
                    field_ref(item);
                }
            }
        }
    }
    if let Some(source) = object(volume, "image") {
        let policy = if is_latest(text(source, "reference")) { "Always" } else { "IfNotPresent" };
        default_zero(source, "pullPolicy", policy);
    }
    if let Some(source) = object(volume, "iscsi") {
        default_zero(source, "iscsiInterface", "default");
    }
    if let Some(source) = object(volume, "rbd") {
        default_zero(source, "pool", "rbd");
        default_zero(source, "user", "admin");
        default_zero(source, "keyring", "/etc/ceph/keyring");
    }
    if let Some(source) = object(volume, "azureDisk") {
        default(source, "cachingMode", "ReadWrite");
        default(source, "kind", "Shared");
        default(source, "fsType", "ext4");
        default(source, "readOnly", false);
    }
    if let Some(source) = object(volume, "scaleIO") {
        default_zero(source, "storageMode", "ThinProvisioned");
        default_zero(source, "fsType", "xfs");
    }
    if let Some(template) = object(volume, "ephemeral").and_then(|source| object(source, "volumeClaimTemplate"))
        && let Some(spec) = object(template, "spec")
    {
        default(spec, "volumeMode", "Filesystem");
        if let Some(resources) = object(spec, "resources") {
            round(resources, "limits");
            round(resources, "requests");
        }
    }
}

fn requests_from_limits(container: &mut Object) {
    let Some(resources) = object(container, "resources") else {
        return;
    };
    let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else {
        return;
    };
    if limits.is_empty() {
        return;
    }
    let requests = ensure(resources, "requests");
    for (name, value) in limits {
        requests.entry(name).or_insert(value);
    }
}

/// Requests and limits of the pod as a whole follow from those of its containers, where it has any.
fn pod_level_resources(spec: &mut Object) {
    let Some(resources) = spec.get("resources").and_then(Value::as_object) else {
        return;
    };
    let filled =
        |key: &str, resources: &Object| resources.get(key).and_then(Value::as_object).is_some_and(|m| !m.is_empty());
    let (has_limits, has_requests) = (filled("limits", resources), filled("requests", resources));
    if !has_limits && !has_requests {
        return;
    }
    let all_requests = aggregate::containers(spec, "requests");
    let all_limits = aggregate::containers(spec, "limits");
    let limited_everywhere: Vec<String> =
        all_limits.keys().filter(|name| aggregate::all_containers_limit(spec, name)).cloned().collect();
    let supported = |name: &str| matches!(name, "cpu" | "memory") || name.starts_with("hugepages-");
    let Some(resources) = object(spec, "resources") else {
        return;
    };
    for (name, quantity) in &all_limits {
        let requested = resources.get("requests").is_some_and(|requests| requests.get(name).is_some());
        if name.starts_with("hugepages-") && !requested {
            ensure(resources, "limits").entry(name.clone()).or_insert_with(|| quantity.to_string().into());
        }
    }
    let limits = resources.get("limits").and_then(Value::as_object).cloned().unwrap_or_default();
    if !limits.is_empty() {
        let requests = ensure(resources, "requests");
        for (name, quantity) in &all_requests {
            if matches!(name.as_str(), "cpu" | "memory") {
                requests.entry(name.clone()).or_insert_with(|| quantity.to_string().into());
            }
        }
        for (name, value) in &limits {
            if supported(name) {
                requests.entry(name.clone()).or_insert_with(|| value.clone());
            }
        }
        if requests.is_empty() {
            resources.remove("requests");
        }
    } else if has_requests {
        for (name, quantity) in &all_limits {
            if matches!(name.as_str(), "cpu" | "memory") && limited_everywhere.contains(name) {
                ensure(resources, "limits").entry(name.clone()).or_insert_with(|| quantity.to_string().into());
            }
        }
    }
}

/// Whether an image's name means the tag `latest`: said, or because neither tag nor digest is.
pub fn is_latest(image: &str) -> bool {
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    let start = name.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match name.get(start..).and_then(|last| last.rfind(':')) {
        Some(colon) => {
            let (name, tag) = name.split_at(start + colon);
            (name, tag.get(1..))
        }
        None => (name, None),
    };
    is_repository(name) && tag.is_none_or(|tag| tag == "latest") && (tag.is_some() || digest.is_none())
}

/// A registry's host, where one is named, and path components in lower case.
fn is_repository(name: &str) -> bool {
    let path = match name.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" || host.to_lowercase() != host => path,
        _ => name,
    };
    let component = |part: &str| {
        let bytes = part.as_bytes();
        let word = |c: &u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        bytes.first().is_some_and(word)
            && bytes.last().is_some_and(word)
            && bytes.iter().all(|c| word(c) || matches!(c, b'.' | b'_' | b'-'))
            && !["..", "___", "._", "_.", ".-", "-.", "_-", "-_"].iter().any(|run| part.contains(run))
    };
    let is_digest = name.len() == 64 && name.bytes().all(|c| c.is_ascii_hexdigit());
    !is_digest && path.split('/').all(component)
}

#[cfg(test)]
mod tests {
    use super::is_latest;

    #[test]
    fn tags() {
        for image in ["x", "a/b:latest", "localhost:5000/a/b", "Registry/a", "x:latest@sha256:00"] {
            assert!(is_latest(image), "{image}");
        }
        for image in ["", "x:1", "x@sha256:00", "localhost:5000/a:v1", "Bad_Image", "a//b"] {
            assert!(!is_latest(image), "{image}");
        }
    }
}
