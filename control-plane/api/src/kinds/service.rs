//! Service.

use super::prelude::*;

pub static KIND: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Service",
    plural: "services",
    singular: "service",
    short_names: &["svc"],
    categories: &["all"],
    scope: Scope::Namespaced,
    verbs: ALL_VERBS,
    subresources: &[
        Subresource { name: "proxy", object: Some(("", "v1", "ServiceProxyOptions")), verbs: &["create", "delete", "get", "patch", "update"] },
        Subresource { name: "status", object: None, verbs: &["get", "patch", "update"] },
    ],
    schema: "io.k8s.api.core.v1.Service",
    selectable_fields: &[
        field!("spec.clusterIP"),
        field!("spec.type"),
    ],
    columns: &[
        Column { name: "Name", kind: "string", format: "name", description: "Name must be unique within its scope. It cannot be changed.", priority: 0 },
        Column { name: "Type", kind: "string", format: "", description: "", priority: 0 },
        Column { name: "Cluster-IP", kind: "string", format: "", description: "", priority: 0 },
        Column { name: "External-IP", kind: "string", format: "", description: "", priority: 0 },
        Column { name: "Port(s)", kind: "string", format: "", description: "", priority: 0 },
        Column { name: "Age", kind: "string", format: "", description: "Time since the object was made.", priority: 0 },
        Column { name: "Selector", kind: "string", format: "", description: "Labels that select pods.", priority: 1 },
    ],
    cells,
    name: names::dns_label,
    strategy: STRATEGY,
    stored_as: None,
    deprecated: None,
};

const STRATEGY: Strategy = Strategy::PLAIN;

fn cells(object: &Value, now: i64) -> Vec<Value> {
    print::name_and_age(object, now)
}
