//! Node.

use super::prelude::*;

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
        Subresource { name: "proxy", object: Some(("", "v1", "NodeProxyOptions")), verbs: &["create", "delete", "get", "patch", "update"] },
        Subresource { name: "status", object: None, verbs: &["get", "patch", "update"] },
    ],
    schema: "io.k8s.api.core.v1.Node",
    selectable_fields: &[
        field!("spec.unschedulable"),
    ],
    columns: &[
        Column { name: "Name", kind: "string", format: "name", description: "Name must be unique within its scope. It cannot be changed.", priority: 0 },
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

const STRATEGY: Strategy = Strategy::PLAIN;

fn cells(object: &Value, now: i64) -> Vec<Value> {
    print::name_and_age(object, now)
}
