//! Node.

use super::prelude::*;
use crate::kinds::edit;
use crate::kinds::pod::{defaults, scheduling};
use crate::validation::common::resource_quantity;
use crate::validation::field::{Field, Path};
use crate::validation::net;

pub static KIND: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Node",
    plural: "nodes",
    singular: "node",
    short_names: &["no"],
    categories: &[],
    scope: Scope::Cluster,
    verbs: ALL_VERBS,
    subresources: &[
        Subresource {
            name: "proxy",
            object: Some(("", "v1", "NodeProxyOptions")),
            verbs: &["create", "delete", "get", "patch", "update"],
        },
        Subresource { name: "status", object: None, verbs: &["get", "patch", "update"] },
    ],
    schema: "io.k8s.api.core.v1.Node",
    selectable_fields: &[field!("spec.unschedulable")],
    columns: &[
        Column {
            name: "Name",
            kind: "string",
            format: "name",
            description: "Name must be unique within its scope. It cannot be changed.",
            priority: 0,
        },
        Column { name: "Status", kind: "string", format: "", description: "The state of the object.", priority: 0 },
        Column { name: "Roles", kind: "string", format: "", description: "", priority: 0 },
        Column { name: "Age", kind: "string", format: "", description: "Time since the object was made.", priority: 0 },
        Column { name: "Version", kind: "string", format: "", description: "", priority: 0 },
        Column { name: "Internal-IP", kind: "string", format: "", description: "", priority: 1 },
        Column { name: "External-IP", kind: "string", format: "", description: "", priority: 1 },
        Column { name: "OS-Image", kind: "string", format: "", description: "", priority: 1 },
        Column { name: "Kernel-Version", kind: "string", format: "", description: "", priority: 1 },
        Column { name: "Container-Runtime", kind: "string", format: "", description: "", priority: 1 },
    ],
    cells,
    name: names::dns_subdomain,
    strategy: STRATEGY,
    stored_as: None,
    deprecated: None,
};

const STRATEGY: Strategy = Strategy {
    default,
    prepare_update: |new, old| edit::keep(new, old, "status"),
    prepare_status_update: |new, old| edit::keep(new, old, "spec"),
    validate,
    validate_update,
    validate_status_update: validate_update,
    warnings,
    ..Strategy::PLAIN
};

/// All of the capacity can be used unless told otherwise; one range and the list of them agree.
fn default(object: &mut Value) {
    let Some(map) = object.as_object_mut() else {
        return;
    };
    if let Some(status) = edit::object(map, "status") {
        defaults::round(status, "capacity");
        defaults::round(status, "allocatable");
        if let Some(capacity) = status.get("capacity").filter(|capacity| !capacity.is_null()).cloned() {
            edit::default(status, "allocatable", capacity);
        }
    }
    let Some(spec) = edit::object(map, "spec") else {
        return;
    };
    let single = edit::text(spec, "podCIDR").to_owned();
    let first = spec.get("podCIDRs").and_then(|list| list.get(0)).and_then(Value::as_str).map(str::to_owned);
    match first {
        Some(first) if single.is_empty() => {
            spec.insert("podCIDR".to_owned(), first.into());
        }
        first if !single.is_empty() && first.as_ref() != Some(&single) => {
            spec.insert("podCIDRs".to_owned(), json!([single]));
        }
        _ => {}
    }
}

fn resources(root: &Field<'_>, errors: &mut FieldErrors) {
    for name in ["capacity", "allocatable"] {
        let list = root.below(&["status", name]);
        for (resource, value) in list.entries() {
            resource_quantity(&value.with_path(list.path().named(resource)), resource, errors);
        }
    }
}

fn taints(root: &Field<'_>, errors: &mut FieldErrors) {
    // The reference tells them at the metadata.
    scheduling::taints(&root.below(&["spec", "taints"]), &Path::new("metadata").child("taints"), errors);
}

fn validate(object: &Value, errors: &mut FieldErrors) {
    let root = Field::root(object);
    taints(&root, errors);
    resources(&root, errors);
    let ranges = root.below(&["spec", "podCIDRs"]);
    for range in ranges.items() {
        net::valid_cidr(range.path(), range.str(), errors);
    }
    if ranges.len() > 1 {
        if ranges.len() > 2 || !net::is_dual_stack(ranges.strings()) {
            errors.invalid(&ranges, "may specify no more than one CIDR for each IP family");
        }
        for (i, range) in ranges.items().enumerate() {
            if ranges.strings().take(i).any(|other| other == range.str()) {
                errors.duplicate(range.path(), range.str());
            }
        }
    }
}

fn validate_update(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let (root, before) = (Field::root(new), Field::root(old));
    resources(&root, errors);
    let addresses = root.below(&["status", "addresses"]);
    for (i, address) in addresses.items().enumerate() {
        if addresses.items().take(i).any(|other| other.value() == address.value()) {
            let text = |name| Value::from(address.child(name).str());
            let shown = format!("{{\"Type\":{},\"Address\":{}}}", text("type"), text("address"));
            errors.duplicate_shown(address.path(), &shown);
        }
    }
    let (spec, before) = (root.child("spec"), before.child("spec"));
    let (ranges, former) = (spec.child("podCIDRs"), before.child("podCIDRs"));
    if !former.is_empty() {
        let refusal = "node updates may not change podCIDR except from \"\" to valid";
        if ranges.len() != former.len() {
            errors.forbidden(ranges.path(), refusal);
        } else {
            for (range, former) in ranges.strings().zip(former.strings()) {
                if range != former {
                    errors.forbidden(ranges.path(), refusal);
                }
            }
        }
    }
    let (id, former) = (spec.child("providerID"), before.child("providerID"));
    if !former.is_empty() && id.str() != former.str() {
        errors.forbidden(id.path(), "node updates may not change providerID except from \"\" to valid");
    }
    taints(&root, errors);
    let (id, former) = (spec.child("externalID"), before.child("externalID"));
    if id.str() != former.str() {
        errors.forbidden(id.path(), "may not be updated");
    }
}

fn warnings(new: &Value, _: Option<&Value>) -> Vec<String> {
    let spec = Field::root(new).child("spec");
    let mut all = Vec::new();
    if spec.child("configSource").is_set() {
        all.push("spec.configSource: the feature is no longer supported".to_owned());
    }
    if !spec.child("externalID").is_empty() {
        all.push("spec.externalID: this field is deprecated, and is unused by Kubernetes".to_owned());
    }
    all
}

/// Roles that a node's labels tell.
fn roles(object: &Value) -> String {
    let labels = object.pointer("/metadata/labels").and_then(Value::as_object);
    let mut roles: Vec<&str> = labels
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role),
            None if key == "kubernetes.io/role" => value.as_str(),
            None => None,
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    if roles.is_empty() { "<none>".to_owned() } else { roles.join(",") }
}

fn cells(object: &Value, now: i64) -> Vec<Value> {
    let root = Field::root(object);
    let status = root.child("status");
    let ready = status.child("conditions").items().find(|condition| condition.child("type").str() == "Ready");
    let mut state = match ready.map(|condition| condition.child("status").str()) {
        Some("True") => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if root.below(&["spec", "unschedulable"]).bool() {
        state.push_str(",SchedulingDisabled");
    }
    let address = |kind: &str| {
        let found = status.child("addresses").items().find(|address| address.child("type").str() == kind);
        found.map_or("<none>", |address| address.child("address").str())
    };
    let info = |name| {
        let text = status.below(&["nodeInfo", name]).str();
        if text.is_empty() { "<unknown>" } else { text }
    };
    vec![
        print::name(object),
        json!(state),
        json!(roles(object)),
        print::age(object, now),
        json!(status.below(&["nodeInfo", "kubeletVersion"]).str()),
        json!(address("InternalIP")),
        json!(address("ExternalIP")),
        json!(info("osImage")),
        json!(info("kernelVersion")),
        json!(info("containerRuntimeVersion")),
    ]
}
