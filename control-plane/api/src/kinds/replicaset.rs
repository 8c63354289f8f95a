//! ReplicaSet.

use super::prelude::*;
use crate::kinds::edit;
use crate::kinds::pod::defaults;
use crate::kinds::workload;
use crate::validation::field::Field;
use crate::validation::metadata::non_negative;

pub static KIND: Kind = Kind {
    group: "apps",
    version: "v1",
    kind: "ReplicaSet",
    plural: "replicasets",
    singular: "replicaset",
    short_names: &["rs"],
    categories: &["all"],
    scope: Scope::Namespaced,
    verbs: ALL_VERBS,
    subresources: &[
        Subresource { name: "scale", object: Some(("autoscaling", "v1", "Scale")), verbs: &["get", "patch", "update"] },
        Subresource { name: "status", object: None, verbs: &["get", "patch", "update"] },
    ],
    schema: "io.k8s.api.apps.v1.ReplicaSet",
    selectable_fields: &[field!("status.replicas")],
    columns: &[
        Column {
            name: "Name",
            kind: "string",
            format: "name",
            description: "Name must be unique within its scope. It cannot be changed.",
            priority: 0,
        },
        Column { name: "Desired", kind: "integer", format: "", description: "", priority: 0 },
        Column { name: "Current", kind: "integer", format: "", description: "", priority: 0 },
        Column { name: "Ready", kind: "integer", format: "", description: "How many are ready.", priority: 0 },
        Column { name: "Age", kind: "string", format: "", description: "Time since the object was made.", priority: 0 },
        Column {
            name: "Containers",
            kind: "string",
            format: "",
            description: "Names of the containers in the template.",
            priority: 1,
        },
        Column {
            name: "Images",
            kind: "string",
            format: "",
            description: "Images of the containers in the template.",
            priority: 1,
        },
        Column { name: "Selector", kind: "string", format: "", description: "Labels that select pods.", priority: 1 },
    ],
    cells,
    name: names::dns_subdomain,
    strategy: STRATEGY,
    stored_as: None,
    deprecated: None,
};

const STRATEGY: Strategy = Strategy {
    default,
    prepare_create: |object| {
        edit::set_generation(object, 1);
        edit::set(object, "status", json!({"replicas": 0}));
    },
    prepare_update: |new, old| {
        edit::keep(new, old, "status");
        let changed = new.get("spec") != old.get("spec");
        edit::count_generation(new, old, changed);
    },
    prepare_status_update: |new, old| {
        edit::keep(new, old, "spec");
        edit::keep_meta(new, old, "generation");
    },
    validate,
    validate_update: |new, old, errors| {
        validate(new, errors);
        workload::selector_immutable(new, old, errors);
    },
    validate_status_update,
    warnings: workload::warnings,
    ..Strategy::PLAIN
};

fn default(object: &mut Value) {
    let Some(map) = object.as_object_mut() else {
        return;
    };
    let spec = edit::ensure(map, "spec");
    edit::default(spec, "replicas", 1);
    defaults::template(edit::ensure(spec, "template"));
    edit::default(edit::ensure(map, "status"), "replicas", 0);
}

fn validate(object: &Value, errors: &mut FieldErrors) {
    let spec = Field::root(object).child("spec");
    non_negative(&spec.child("replicas"), errors);
    non_negative(&spec.child("minReadySeconds"), errors);
    workload::selector_and_template(&spec, errors);
}

fn validate_status_update(new: &Value, _: &Value, errors: &mut FieldErrors) {
    let status = Field::root(new).child("status");
    let counts = ["replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas", "observedGeneration"];
    for name in counts {
        non_negative(&status.child(name), errors);
    }
    workload::counts(&status, &["fullyLabeledReplicas", "readyReplicas", "availableReplicas"], errors);
}

fn cells(object: &Value, now: i64) -> Vec<Value> {
    let (names, images) = print::containers(object.pointer("/spec/template"));
    let selector = print::selector(object.pointer("/spec/selector"));
    vec![
        print::name(object),
        json!(print::number(object, "/spec/replicas")),
        json!(print::number(object, "/status/replicas")),
        json!(print::number(object, "/status/readyReplicas")),
        print::age(object, now),
        json!(names),
        json!(images),
        json!(if selector.is_empty() { "<none>".to_owned() } else { selector }),
    ]
}
