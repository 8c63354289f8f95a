//! RuntimeClass.

use super::prelude::*;
use crate::kinds::edit;
use crate::kinds::pod::{defaults, scheduling, spec};
use crate::validation::common::immutable;
use crate::validation::field::Field;
use crate::validation::metadata;

pub static KIND: Kind = Kind {
    group: "node.k8s.io",
    version: "v1",
    kind: "RuntimeClass",
    plural: "runtimeclasses",
    singular: "runtimeclass",
    short_names: &[],
    categories: &[],
    scope: Scope::Cluster,
    verbs: ALL_VERBS,
    subresources: &[],
    schema: "io.k8s.api.node.v1.RuntimeClass",
    selectable_fields: &[],
    columns: &[
        Column {
            name: "Name",
            kind: "string",
            format: "name",
            description: "Name must be unique within its scope. It cannot be changed.",
            priority: 0,
        },
        Column { name: "Handler", kind: "string", format: "", description: "", priority: 0 },
        Column { name: "Age", kind: "string", format: "", description: "Time since the object was made.", priority: 0 },
    ],
    cells,
    name: names::dns_subdomain,
    strategy: STRATEGY,
    stored_as: None,
    deprecated: None,
};

const STRATEGY: Strategy = Strategy {
    default: |object| {
        if let Some(overhead) = object.as_object_mut().and_then(|map| edit::object(map, "overhead")) {
            defaults::round(overhead, "podFixed");
        }
    },
    validate,
    validate_update: |new, old, errors| {
        immutable(&Field::root(new).child("handler"), &Field::root(old).child("handler"), errors);
    },
    unconditional_update: false,
    ..Strategy::PLAIN
};

fn validate(object: &Value, errors: &mut FieldErrors) {
    let root = Field::root(object);
    let handler = root.child("handler");
    errors.invalid_all(handler.path(), handler.str(), names::is_dns_label(handler.str()));
    let overhead = root.child("overhead");
    if overhead.is_set() {
        spec::overhead(&overhead.child("podFixed").with_path(overhead.path().clone()), errors);
    }
    let placing = root.child("scheduling");
    metadata::labels(&placing.child("nodeSelector"), errors);
    scheduling::tolerations(&placing.child("tolerations"), errors);
}

fn cells(object: &Value, now: i64) -> Vec<Value> {
    vec![print::name(object), json!(print::text(object, "/handler")), print::age(object, now)]
}
