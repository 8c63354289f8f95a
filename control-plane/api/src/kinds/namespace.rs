//! Namespace.

use super::prelude::*;
use crate::kinds::edit;
use crate::validation::field::{Field, Path};
use crate::validation::metadata::kube_finalizer;

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
    selectable_fields: &[field!("status.phase")],
    columns: &[
        Column {
            name: "Name",
            kind: "string",
            format: "name",
            description: "Name must be unique within its scope. It cannot be changed.",
            priority: 0,
        },
        Column { name: "Status", kind: "string", format: "", description: "The state of the object.", priority: 0 },
        Column { name: "Age", kind: "string", format: "", description: "Time since the object was made.", priority: 0 },
    ],
    cells,
    name: names::dns_label,
    strategy: STRATEGY,
    stored_as: None,
    deprecated: None,
};

const STRATEGY: Strategy = Strategy {
    default,
    prepare_create,
    prepare_update,
    prepare_status_update: |new, old| edit::keep(new, old, "spec"),
    validate,
    validate_status_update,
    ..Strategy::PLAIN
};

/// The label that tells a namespace's name.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

fn default(object: &mut Value) {
    name_label(object);
    if let Some(map) = object.as_object_mut() {
        edit::default_zero(edit::ensure(map, "status"), "phase", "Active");
    }
}

fn name_label(object: &mut Value) {
    let name = print::text(object, "/metadata/name").to_owned();
    if let Some(map) = object.as_object_mut()
        && !name.is_empty()
    {
        edit::ensure(edit::ensure(map, "metadata"), "labels").insert(NAME_LABEL.to_owned(), name.into());
    }
}

/// A namespace goes only once its content has: the finalizer sees to that.
fn prepare_create(object: &mut Value) {
    name_label(object);
    edit::set(object, "status", json!({"phase": "Active"}));
    let Some(map) = object.as_object_mut() else {
        return;
    };
    let list = edit::ensure(map, "spec").entry("finalizers").or_insert_with(|| json!([]));
    if let Some(list) = list.as_array_mut()
        && !list.iter().any(|name| name == "kubernetes")
    {
        list.push(json!("kubernetes"));
    }
}

fn prepare_update(new: &mut Value, old: &Value) {
    edit::keep(new, old, "spec");
    edit::keep(new, old, "status");
    name_label(new);
}

fn finalizers(object: &Value, indexed: bool, errors: &mut FieldErrors) {
    for name in Field::root(object).below(&["spec", "finalizers"]).items() {
        let path = if indexed { name.path().clone() } else { Path::new("spec").child("finalizers") };
        errors.invalid_all(&path, name.str(), names::is_qualified_name(name.str()));
        kube_finalizer(&path, name.str(), errors);
    }
}

fn validate(object: &Value, errors: &mut FieldErrors) {
    finalizers(object, false, errors);
}

fn validate_status_update(new: &Value, _: &Value, errors: &mut FieldErrors) {
    let going = new.pointer("/metadata/deletionTimestamp").is_some_and(|time| !time.is_null());
    let phase = print::text(new, "/status/phase");
    let path = Path::new("status").child("Phase");
    if !going && phase != "Active" {
        errors.invalid_str(&path, phase, "may only be 'Active' if `deletionTimestamp` is empty");
    }
    if going && phase != "Terminating" {
        errors.invalid_str(&path, phase, "may only be 'Terminating' if `deletionTimestamp` is not empty");
    }
}

/// A write to `finalize` changes the specification's finalizers, nothing else.
pub fn prepare_finalize(new: &mut Value, old: &Value) {
    edit::keep(new, old, "status");
}

pub fn validate_finalize(new: &Value, old: &Value) -> FieldErrors {
    let mut errors = FieldErrors::default();
    crate::validation::metadata::validate_update(&KIND, new, old, &mut errors);
    finalizers(new, true, &mut errors);
    errors
}

fn cells(object: &Value, now: i64) -> Vec<Value> {
    vec![print::name(object), json!(print::text(object, "/status/phase")), print::age(object, now)]
}
