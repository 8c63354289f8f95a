//! ServiceAccount.

use super::prelude::*;
use crate::kinds::edit;

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
    subresources: &[Subresource {
        name: "token",
        object: Some(("authentication.k8s.io", "v1", "TokenRequest")),
        verbs: &["create"],
    }],
    schema: "io.k8s.api.core.v1.ServiceAccount",
    selectable_fields: &[],
    columns: &[
        Column {
            name: "Name",
            kind: "string",
            format: "name",
            description: "Name must be unique within its scope. It cannot be changed.",
            priority: 0,
        },
        Column { name: "Age", kind: "string", format: "", description: "Time since the object was made.", priority: 0 },
    ],
    cells,
    name: names::dns_subdomain,
    strategy: STRATEGY,
    stored_as: None,
    deprecated: None,
};

const STRATEGY: Strategy = Strategy {
    prepare_create: |object| name_only(object),
    prepare_update: |new, _| name_only(new),
    warnings,
    ..Strategy::PLAIN
};

/// References to secrets keep nothing but the name.
fn name_only(object: &mut Value) {
    let Some(map) = object.as_object_mut() else {
        return;
    };
    for secret in edit::objects(map, "secrets") {
        secret.retain(|key, _| key == "name");
    }
}

fn warnings(new: &Value, old: Option<&Value>) -> Vec<String> {
    let key = "kubernetes.io/enforce-mountable-secrets";
    let value = |object: &Value| object.pointer("/metadata/annotations")?.get(key)?.as_str().map(str::to_owned);
    if value(new).is_some() && old.is_none_or(|old| value(old) != value(new)) {
        return vec![format!(
            "metadata.annotations[{key}]: deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets"
        )];
    }
    Vec::new()
}

fn cells(object: &Value, now: i64) -> Vec<Value> {
    print::name_and_age(object, now)
}
