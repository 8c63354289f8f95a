//! Pod.

use super::prelude::*;

pub static KIND: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Pod",
    plural: "pods",
    singular: "pod",
    short_names: &["po"],
    categories: &["all"],
    scope: Scope::Namespaced,
    verbs: ALL_VERBS,
    subresources: &[
        Subresource { name: "attach", object: Some(("", "v1", "PodAttachOptions")), verbs: &["create", "get"] },
        Subresource { name: "binding", object: Some(("", "v1", "Binding")), verbs: &["create"] },
        Subresource { name: "ephemeralcontainers", object: None, verbs: &["get", "patch", "update"] },
        Subresource { name: "eviction", object: Some(("policy", "v1", "Eviction")), verbs: &["create"] },
        Subresource { name: "exec", object: Some(("", "v1", "PodExecOptions")), verbs: &["create", "get"] },
        Subresource { name: "log", object: None, verbs: &["get"] },
        Subresource { name: "portforward", object: Some(("", "v1", "PodPortForwardOptions")), verbs: &["create", "get"] },
        Subresource { name: "proxy", object: Some(("", "v1", "PodProxyOptions")), verbs: &["create", "delete", "get", "patch", "update"] },
        Subresource { name: "resize", object: None, verbs: &["get", "patch", "update"] },
        Subresource { name: "status", object: None, verbs: &["get", "patch", "update"] },
    ],
    schema: "io.k8s.api.core.v1.Pod",
    selectable_fields: &[
        field!("spec.nodeName"),
        field!("spec.restartPolicy"),
        field!("spec.schedulerName"),
        field!("spec.serviceAccountName"),
        field!("spec.hostNetwork"),
        field!("status.phase"),
        field!("status.podIP"),
        SelectableField { path: "status.podIPs", get: pod_ips },
        field!("status.nominatedNodeName"),
    ],
    columns: &[
        Column { name: "Name", kind: "string", format: "name", description: "Name must be unique within its scope. It cannot be changed.", priority: 0 },
        Column { name: "Ready", kind: "string", format: "", description: "How many are ready.", priority: 0 },
        Column { name: "Status", kind: "string", format: "", description: "The state of the object.", priority: 0 },
        Column { name: "Restarts", kind: "string", format: "", description: "", priority: 0 },
        Column { name: "Age", kind: "string", format: "", description: "Time since the object was made.", priority: 0 },
        Column { name: "IP", kind: "string", format: "", description: "", priority: 1 },
        Column { name: "Node", kind: "string", format: "", description: "", priority: 1 },
        Column { name: "Nominated Node", kind: "string", format: "", description: "", priority: 1 },
        Column { name: "Readiness Gates", kind: "string", format: "", description: "", priority: 1 },
    ],
    cells,
    name: names::dns_subdomain,
    strategy: STRATEGY,
    stored_as: None,
    deprecated: None,
};

const STRATEGY: Strategy = Strategy::PLAIN;

fn cells(object: &Value, now: i64) -> Vec<Value> {
    print::name_and_age(object, now)
}

/// All addresses in one text, as the reference compares them.
fn pod_ips(object: &Value) -> String {
    let ips = object.pointer("/status/podIPs").and_then(Value::as_array);
    let ips: Vec<&str> = ips.into_iter().flatten().filter_map(|entry| entry.get("ip")?.as_str()).collect();
    ips.join(",")
}
