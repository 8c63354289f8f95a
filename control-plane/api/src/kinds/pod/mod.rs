//! Pod.

pub mod aggregate;
pub mod cells;
pub mod containers;
pub mod defaults;
pub mod diff;
pub mod environment;
mod internal;
pub mod scheduling;
pub mod security;
pub mod spec;
pub mod update;
pub mod volumes;
pub mod warnings;

use super::edit;
use super::prelude::*;
use crate::validation::field::Field;

/// Marks the copy, in the API, of a pod that a node runs by itself.
pub const MIRROR: &str = "kubernetes.io/config.mirror";

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
        Subresource {
            name: "portforward",
            object: Some(("", "v1", "PodPortForwardOptions")),
            verbs: &["create", "get"],
        },
        Subresource {
            name: "proxy",
            object: Some(("", "v1", "PodProxyOptions")),
            verbs: &["create", "delete", "get", "patch", "update"],
        },
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
        Column {
            name: "Name",
            kind: "string",
            format: "name",
            description: "Name must be unique within its scope. It cannot be changed.",
            priority: 0,
        },
        Column { name: "Ready", kind: "string", format: "", description: "How many are ready.", priority: 0 },
        Column { name: "Status", kind: "string", format: "", description: "The state of the object.", priority: 0 },
        Column { name: "Restarts", kind: "string", format: "", description: "", priority: 0 },
        Column { name: "Age", kind: "string", format: "", description: "Time since the object was made.", priority: 0 },
        Column { name: "IP", kind: "string", format: "", description: "", priority: 1 },
        Column { name: "Node", kind: "string", format: "", description: "", priority: 1 },
        Column { name: "Nominated Node", kind: "string", format: "", description: "", priority: 1 },
        Column { name: "Readiness Gates", kind: "string", format: "", description: "", priority: 1 },
    ],
    cells: cells::cells,
    name: names::dns_subdomain,
    strategy: STRATEGY,
    stored_as: None,
    deprecated: None,
};

const STRATEGY: Strategy = Strategy {
    default: defaults::pod,
    prepare_create,
    prepare_update: update::prepare,
    prepare_status_update: update::prepare_status,
    validate: update::validate_create,
    validate_update: update::validate,
    validate_status_update: update::validate_status,
    warnings: |new, old| {
        if old.is_none() { create_warnings(new) } else { Vec::new() }
    },
    grace_period,
    ..Strategy::PLAIN
};

fn prepare_create(pod: &mut Value) {
    edit::set_generation(pod, 1);
    let mut status = json!({"phase": "Pending", "qosClass": aggregate::qos_class(pod)});
    let gated = pod.pointer("/spec/schedulingGates").and_then(Value::as_array).is_some_and(|gates| !gates.is_empty());
    if gated && let Some(map) = status.as_object_mut() {
        let condition = json!({
            "type": "PodScheduled",
            "status": "False",
            "lastProbeTime": null,
            "lastTransitionTime": null,
            "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates",
        });
        map.insert("conditions".to_owned(), json!([condition]));
    }
    edit::set(pod, "status", status);
    merge_label_keys(pod);
    if let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) {
        defaults::sync_service_account(spec);
    }
}

/// Keys of the pod's own labels become requirements of the selectors that name them.
fn merge_label_keys(pod: &mut Value) {
    let labels = pod.pointer("/metadata/labels").cloned().unwrap_or_default();
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else {
        return;
    };
    for constraint in edit::objects(spec, "topologySpreadConstraints") {
        merge(constraint, "matchLabelKeys", "In", &labels);
    }
    let Some(affinity) = edit::object(spec, "affinity") else {
        return;
    };
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(affinity) = edit::object(affinity, kind) else {
            continue;
        };
        for term in edit::objects(affinity, "requiredDuringSchedulingIgnoredDuringExecution") {
            merge(term, "matchLabelKeys", "In", &labels);
            merge(term, "mismatchLabelKeys", "NotIn", &labels);
        }
        for weighted in edit::objects(affinity, "preferredDuringSchedulingIgnoredDuringExecution") {
            if let Some(term) = edit::object(weighted, "podAffinityTerm") {
                merge(term, "matchLabelKeys", "In", &labels);
                merge(term, "mismatchLabelKeys", "NotIn", &labels);
            }
        }
    }
}

fn merge(term: &mut edit::Object, keys: &str, operator: &str, labels: &Value) {
    let keys: Vec<Value> = term.get(keys).and_then(Value::as_array).cloned().unwrap_or_default();
    let Some(selector) = edit::object(term, "labelSelector") else {
        return;
    };
    for key in keys {
        let Some(value) = key.as_str().and_then(|key| labels.get(key)) else {
            continue;
        };
        let list = selector.entry("matchExpressions").or_insert_with(|| json!([]));
        if let Some(list) = list.as_array_mut() {
            list.push(json!({"key": key, "operator": operator, "values": [value]}));
        }
    }
}

fn create_warnings(pod: &Value) -> Vec<String> {
    let pod = Field::root(pod);
    let name = pod.below(&["metadata", "name"]);
    let mut all = Vec::new();
    let wrong = names::is_dns_label(name.str());
    if !name.is_empty() && !wrong.is_empty() {
        let wrong = wrong.join(" ");
        all.push(format!(
            "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is \
             recommended: [{wrong}]"
        ));
    }
    all.extend(warnings::warnings(&pod));
    all
}

/// A pod that runs nowhere, or no longer, goes at once.
fn grace_period(pod: &Value, asked: Option<i64>) -> Option<i64> {
    let own = pod.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_i64);
    let text = |path| pod.pointer(path).and_then(Value::as_str).unwrap_or_default();
    if text("/spec/nodeName").is_empty() || matches!(text("/status/phase"), "Failed" | "Succeeded") {
        return Some(0);
    }
    let seconds = asked.or(own).unwrap_or(0);
    Some(if seconds < 0 { 1 } else { seconds })
}

/// All addresses in one text, as the reference compares them.
fn pod_ips(object: &Value) -> String {
    let ips = object.pointer("/status/podIPs").and_then(Value::as_array);
    let ips: Vec<&str> = ips.into_iter().flatten().filter_map(|entry| entry.get("ip")?.as_str()).collect();
    ips.join(",")
}
