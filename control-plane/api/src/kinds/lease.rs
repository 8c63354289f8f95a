//! Lease.

use super::prelude::*;
use crate::validation::field::Field;

pub static KIND: Kind = Kind {
    group: "coordination.k8s.io",
    version: "v1",
    kind: "Lease",
    plural: "leases",
    singular: "lease",
    short_names: &[],
    categories: &[],
    scope: Scope::Namespaced,
    verbs: ALL_VERBS,
    subresources: &[],
    schema: "io.k8s.api.coordination.v1.Lease",
    selectable_fields: &[],
    columns: &[
        Column {
            name: "Name",
            kind: "string",
            format: "name",
            description: "Name must be unique within its scope. It cannot be changed.",
            priority: 0,
        },
        Column { name: "Holder", kind: "string", format: "", description: "", priority: 0 },
        Column { name: "Age", kind: "string", format: "", description: "Time since the object was made.", priority: 0 },
    ],
    cells,
    name: names::dns_subdomain,
    strategy: STRATEGY,
    stored_as: None,
    deprecated: None,
};

const STRATEGY: Strategy = Strategy {
    validate,
    validate_update: |new, _, errors| validate(new, errors),
    create_on_update: true,
    unconditional_update: false,
    ..Strategy::PLAIN
};

fn validate(object: &Value, errors: &mut FieldErrors) {
    let spec = Field::root(object).child("spec");
    let (duration, transitions) = (spec.child("leaseDurationSeconds"), spec.child("leaseTransitions"));
    if duration.opt_int().is_some_and(|seconds| seconds <= 0) {
        errors.invalid(&duration, "must be greater than 0");
    }
    if transitions.opt_int().is_some_and(|count| count < 0) {
        errors.invalid(&transitions, "must be greater than or equal to 0");
    }
    let strategy = spec.child("strategy");
    if strategy.is_set() {
        let path = strategy.path().child("strategy");
        if strategy.str().contains('/') {
            errors.invalid_all(&path, strategy.str(), names::is_qualified_name(strategy.str()));
        } else if strategy.str() != "OldestEmulationVersion" {
            errors.not_supported(&path, strategy.str(), &["OldestEmulationVersion"]);
        }
    }
    let preferred = spec.child("preferredHolder");
    if !preferred.is_empty() && strategy.is_empty() {
        errors.forbidden(preferred.path(), "may only be specified if `strategy` is defined");
    }
}

fn cells(object: &Value, now: i64) -> Vec<Value> {
    vec![print::name(object), json!(print::text(object, "/spec/holderIdentity")), print::age(object, now)]
}
