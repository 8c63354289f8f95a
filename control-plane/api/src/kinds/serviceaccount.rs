//! ServiceAccount.

use super::prelude::*;

pub static KIND: Kind = Kind {
    group: "",
    version: "v1",
    kind: "ServiceAccount",
    plural: "serviceaccounts",
    singular: "serviceaccount",
    short_names: &["sa"],
    categories: &[],
    scope: Scope::Namespaced,
    verbs: ALL_VERBS,
    subresources: &[
        Subresource { name: "token", object: Some(("authentication.k8s.io", "v1", "TokenRequest")), verbs: &["create"] },
    ],
    schema: "io.k8s.api.core.v1.ServiceAccount",
    selectable_fields: &[],
    columns: &[
        Column { name: "Name", kind: "string", format: "name", description: "Name must be unique within its scope. It cannot be changed.", priority: 0 },
        Column { name: "Age", kind: "string", format: "", description: "Time since the object was made.", priority: 0 },
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
