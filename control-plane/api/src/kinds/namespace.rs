//! Namespace.

use super::prelude::*;

const VERBS: &[&str] = &["create", "delete", "get", "list", "patch", "update", "watch"];

pub static KIND: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Namespace",
    plural: "namespaces",
    singular: "namespace",
    short_names: &["ns"],
    categories: &[],
    scope: Scope::Cluster,
    verbs: VERBS,
    subresources: &[
        Subresource { name: "finalize", object: None, verbs: &["update"] },
        Subresource { name: "status", object: None, verbs: &["get", "patch", "update"] },
    ],
    schema: "io.k8s.api.core.v1.Namespace",
    selectable_fields: &[
        field!("status.phase"),
    ],
    columns: &[
        Column { name: "Name", kind: "string", format: "name", description: "Name must be unique within its scope. It cannot be changed.", priority: 0 },
        Column { name: "Status", kind: "string", format: "", description: "The state of the object.", priority: 0 },
        Column { name: "Age", kind: "string", format: "", description: "Time since the object was made.", priority: 0 },
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
