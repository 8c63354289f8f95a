//! Deployment.

use super::prelude::*;
use crate::kinds::edit;
use crate::kinds::pod::defaults;
use crate::kinds::workload;
use crate::validation::common::{at_most_100_percent, number_or_percent, percent};
use crate::validation::field::Field;
use crate::validation::metadata::non_negative;

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
        Column {
            name: "Name",
            kind: "string",
            format: "name",
            description: "Name must be unique within its scope. It cannot be changed.",
            priority: 0,
        },
        Column { name: "Ready", kind: "string", format: "", description: "How many are ready.", priority: 0 },
        Column { name: "Up-to-date", kind: "integer", format: "", description: "", priority: 0 },
        Column { name: "Available", kind: "integer", format: "", description: "", priority: 0 },
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
        edit::set(object, "status", json!({}));
    },
    prepare_update: |new, old| {
        edit::keep(new, old, "status");
        let annotations = |object: &Value| object.pointer("/metadata/annotations").cloned();
        let changed = new.get("spec") != old.get("spec") || annotations(new) != annotations(old);
        edit::count_generation(new, old, changed);
    },
    prepare_status_update: |new, old| {
        edit::keep(new, old, "spec");
        edit::keep_meta(new, old, "labels");
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
    let strategy = edit::ensure(spec, "strategy");
    edit::default_zero(strategy, "type", "RollingUpdate");
    if edit::text(strategy, "type") == "RollingUpdate" {
        let rolling = edit::ensure(strategy, "rollingUpdate");
        edit::default(rolling, "maxUnavailable", "25%");
        edit::default(rolling, "maxSurge", "25%");
    }
    edit::default(spec, "revisionHistoryLimit", 10);
    edit::default(spec, "progressDeadlineSeconds", 600);
    defaults::template(edit::ensure(spec, "template"));
    edit::ensure(map, "status");
}

fn validate(object: &Value, errors: &mut FieldErrors) {
    let spec = Field::root(object).child("spec");
    non_negative(&spec.child("replicas"), errors);
    workload::selector_and_template(&spec, errors);
    strategy(&spec.child("strategy"), errors);
    let (ready, limit) = (spec.child("minReadySeconds"), spec.child("revisionHistoryLimit"));
    non_negative(&ready, errors);
    non_negative(&limit, errors);
    let deadline = spec.child("progressDeadlineSeconds");
    if let Some(seconds) = deadline.opt_int() {
        non_negative(&deadline, errors);
        if seconds <= ready.int() {
            errors.invalid(&deadline, "must be greater than minReadySeconds");
        }
    }
}

fn strategy(field: &Field<'_>, errors: &mut FieldErrors) {
    let rolling = field.child("rollingUpdate");
    match field.child("type").str() {
        "Recreate" => {
            if rolling.is_set() {
                let detail = "may not be specified when strategy `type` is 'Recreate'";
                errors.forbidden(rolling.path(), detail);
            }
        }
        "RollingUpdate" if !rolling.is_set() => {
            errors.required(rolling.path(), "this should be defaulted and never be nil");
        }
        "RollingUpdate" => {
            let (unavailable, surge) = (rolling.child("maxUnavailable"), rolling.child("maxSurge"));
            number_or_percent(&unavailable, errors);
            number_or_percent(&surge, errors);
            let amount = |field: &Field<'_>| percent(field).unwrap_or_else(|| field.int());
            if amount(&unavailable) == 0 && amount(&surge) == 0 {
                errors.invalid(&unavailable, "may not be 0 when `maxSurge` is 0");
            }
            at_most_100_percent(&unavailable, errors);
        }
        other => {
            let rolling = match rolling.value() {
                None => "null".to_owned(),
                Some(value) => {
                    let part = |name| value.get(name).cloned().unwrap_or_else(|| json!(0));
                    format!("{{\"MaxUnavailable\":{},\"MaxSurge\":{}}}", part("maxUnavailable"), part("maxSurge"))
                }
            };
            let shown = format!("{{\"Type\":{},\"RollingUpdate\":{rolling}}}", Value::from(other));
            errors.not_supported_shown(field.path(), &shown, &["Recreate", "RollingUpdate"]);
        }
    }
}

fn validate_status_update(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let status = Field::root(new).child("status");
    let counts = [
        "observedGeneration",
        "replicas",
        "updatedReplicas",
        "readyReplicas",
        "availableReplicas",
        "unavailableReplicas",
        "collisionCount",
    ];
    for name in counts {
        non_negative(&status.child(name), errors);
    }
    workload::counts(&status, &["updatedReplicas", "readyReplicas", "availableReplicas"], errors);
    let (now, then) = (status.child("collisionCount"), Field::root(old).below(&["status", "collisionCount"]));
    if then.opt_int().is_some_and(|then| now.int() < then) {
        errors.invalid_int(now.path(), now.int(), "cannot be decremented");
    }
}

fn cells(object: &Value, now: i64) -> Vec<Value> {
    let (names, images) = print::containers(object.pointer("/spec/template"));
    let ready = print::number(object, "/status/readyReplicas");
    vec![
        print::name(object),
        json!(format!("{ready}/{}", print::number(object, "/spec/replicas"))),
        json!(print::number(object, "/status/updatedReplicas")),
        json!(print::number(object, "/status/availableReplicas")),
        print::age(object, now),
        json!(names),
        json!(images),
        json!(print::selector(object.pointer("/spec/selector"))),
    ]
}
