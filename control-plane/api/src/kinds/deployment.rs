//! Deployment.

use super::prelude::*;

pub static KIND: Kind = Kind {
    group: "apps",
    version: "v1",
    kind: "Deployment",
    plural: "deployments",
    singular: "deployment",
    short_names: &["deploy"],
    categories: &["all"],
    scope: Scope::Namespaced,
    verbs: ALL_VERBS,
    subresources: &[
        Subresource { name: "scale", object: Some(("autoscaling", "v1", "Scale")), verbs: &["get", "patch", "update"] },
        Subresource { name: "status", object: None, verbs: &["get", "patch", "update"] },
    ],
    schema: "io.k8s.api.apps.v1.Deployment",
    selectable_fields: &[],
    columns: &[
        Column { name: "Name", kind: "string", format: "name", description: "Name must be unique within its scope. It cannot be changed.", priority: 0 },
        Column { name: "Ready", kind: "string", format: "", description: "How many are ready.", priority: 0 },
        Column { name: "Up-to-date", kind: "integer", format: "", description: "", priority: 0 },
        Column { name: "Available", kind: "integer", format: "", description: "", priority: 0 },
        Column { name: "Age", kind: "string", format: "", description: "Time since the object was made.", priority: 0 },
        Column { name: "Containers", kind: "string", format: "", description: "Names of the containers in the template.", priority: 1 },
        Column { name: "Images", kind: "string", format: "", description: "Images of the containers in the template.", priority: 1 },
        Column { name: "Selector", kind: "string", format: "", description: "Labels that select pods.", priority: 1 },
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
