//! ConfigMap.

use super::prelude::*;
use crate::validation::field::{Field, Path};

pub static KIND: Kind = Kind {
    group: "",
    version: "v1",
    kind: "ConfigMap",
    plural: "configmaps",
    singular: "configmap",
    short_names: &["cm"],
    categories: &[],
    scope: Scope::Namespaced,
    verbs: ALL_VERBS,
    subresources: &[],
    schema: "io.k8s.api.core.v1.ConfigMap",
    selectable_fields: &[],
    columns: &[
        Column {
            name: "Name",
            kind: "string",
            format: "name",
            description: "Name must be unique within its scope. It cannot be changed.",
            priority: 0,
        },
        Column { name: "Data", kind: "string", format: "", description: "", priority: 0 },
        Column { name: "Age", kind: "string", format: "", description: "Time since the object was made.", priority: 0 },
    ],
    cells,
    name: names::dns_subdomain,
    strategy: STRATEGY,
    stored_as: None,
    deprecated: None,
};

const STRATEGY: Strategy = Strategy { validate, validate_update, ..Strategy::PLAIN };

/// What `data` of a ConfigMap or Secret may hold in all.
pub const SIZE_LIMIT: usize = 1024 * 1024;

/// Bytes that base64 text stands for.
pub fn decoded_len(text: &str) -> usize {
    let padding = text.bytes().rev().take_while(|c| *c == b'=').count();
    (text.len() / 4 * 3).saturating_sub(padding)
}

fn validate(object: &Value, errors: &mut FieldErrors) {
    let root = Field::root(object);
    let (data, binary) = (root.child("data"), root.child("binaryData"));
    let mut size = 0;
    for (key, value) in data.entries() {
        errors.invalid_all(value.path(), key, names::is_config_key(key));
        if binary.value().and_then(|map| map.get(key)).is_some() {
            errors.invalid_str(value.path(), key, "duplicate of key present in binaryData");
        }
        size += value.len();
    }
    for (key, value) in binary.entries() {
        errors.invalid_all(value.path(), key, names::is_config_key(key));
        size += decoded_len(value.str());
    }
    if size > SIZE_LIMIT {
        errors.too_long(&Path::new(""), SIZE_LIMIT);
    }
}

/// What `immutable` holds fast.
pub fn validate_immutable(new: &Value, old: &Value, fields: &[&'static str], errors: &mut FieldErrors) {
    let (new, old) = (Field::root(new), Field::root(old));
    if !old.child("immutable").bool() {
        return;
    }
    let refusal = "field is immutable when `immutable` is set";
    if !new.child("immutable").bool() {
        errors.forbidden(new.child("immutable").path(), refusal);
    }
    for name in fields {
        let (field, before) = (new.child(name), old.child(name));
        let same = field.value() == before.value() || (field.is_empty() && before.is_empty());
        if !same {
            errors.forbidden(field.path(), refusal);
        }
    }
}

fn validate_update(new: &Value, old: &Value, errors: &mut FieldErrors) {
    validate_immutable(new, old, &["data", "binaryData"], errors);
    validate(new, errors);
}

fn cells(object: &Value, now: i64) -> Vec<Value> {
    let data = print::count(object, "/data") + print::count(object, "/binaryData");
    vec![print::name(object), json!(data), print::age(object, now)]
}
