//! Validation of `metadata`: names, labels, annotations, owners, finalizers, managed fields.

use serde_json::Value;

use super::field::{Field, Path, quote};
use super::names;
use crate::error::FieldErrors;
use crate::kind::Kind;

/// What `metadata.annotations` may hold in all.
const ANNOTATIONS_LIMIT: usize = 256 * 1024;
const FIELD_MANAGER_LIMIT: usize = 128;
const SUBRESOURCE_LIMIT: usize = 256;

const IMMUTABLE: &str = "field is immutable";
pub const NEGATIVE: &str = "must be greater than or equal to 0";

/// Validates the metadata of a new object; a generated name has been filled in before.
pub fn validate(kind: &Kind, object: &Value, errors: &mut FieldErrors) {
    let meta = Field::root(object).child("metadata");
    name(kind, &meta, errors);
    let namespace = meta.child("namespace");
    if kind.namespaced() {
        if namespace.is_empty() {
            errors.required(namespace.path(), "");
        } else {
            errors.invalid_all(namespace.path(), namespace.str(), names::dns_label(namespace.str(), false));
        }
    } else if !namespace.is_empty() {
        errors.forbidden(namespace.path(), "not allowed on this type");
    }
    non_negative(&meta.child("generation"), errors);
    common(&meta, errors);
    if kind.group.is_empty() {
        kube_finalizers(&meta, errors);
    }
}

fn name(kind: &Kind, meta: &Field<'_>, errors: &mut FieldErrors) {
    let (name, generated) = (meta.child("name"), meta.child("generateName"));
    if !generated.is_empty() {
        errors.invalid_all(generated.path(), generated.str(), (kind.name)(generated.str(), true));
    }
    if name.is_empty() {
        errors.required(name.path(), "name or generateName is required");
    } else {
        errors.invalid_all(name.path(), name.str(), (kind.name)(name.str(), false));
    }
}

/// What holds for new and for changed metadata.
fn common(meta: &Field<'_>, errors: &mut FieldErrors) {
    labels(&meta.child("labels"), errors);
    annotations(&meta.child("annotations"), errors);
    owners(&meta.child("ownerReferences"), errors);
    finalizers(&meta.child("finalizers"), errors);
    managed_fields(&meta.child("managedFields"), errors);
}

/// Validates changed metadata against the stored.
pub fn validate_update(kind: &Kind, new: &Value, old: &Value, errors: &mut FieldErrors) {
    let (meta, before) = (Field::root(new).child("metadata"), Field::root(old).child("metadata"));
    if before.child("deletionTimestamp").is_set() {
        let known: Vec<&str> = before.child("finalizers").strings().collect();
        let field = meta.child("finalizers");
        let mut extra: Vec<&str> = field.strings().filter(|name| !known.contains(name)).collect();
        extra.sort_unstable();
        extra.dedup();
        if !extra.is_empty() {
            let list: Vec<String> = extra.iter().map(|name| quote(name)).collect();
            let list = list.join(", ");
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{list}}}"
            );
            errors.forbidden(field.path(), detail);
        }
    }
    let generation = meta.child("generation");
    if generation.int() < before.child("generation").int() {
        errors.invalid_int(generation.path(), generation.int(), "must not be decremented");
    }
    for key in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        let field = meta.child(key);
        if field.value() != before.child(key).value() {
            match key {
                "name" | "namespace" | "uid" => errors.invalid_str(field.path(), field.str(), IMMUTABLE),
                _ => errors.invalid(&field, IMMUTABLE),
            }
        }
    }
    common(&meta, errors);
    if kind.group.is_empty() {
        kube_finalizers(&meta, errors);
    }
}

/// Keys and values of labels, told at the map itself.
pub fn labels(field: &Field<'_>, errors: &mut FieldErrors) {
    for (key, value) in field.entries() {
        errors.invalid_all(field.path(), key, names::is_qualified_name(key));
        errors.invalid_all(field.path(), value.str(), names::is_label_value(value.str()));
    }
}

/// A key of a label, at the path given.
pub fn label_name(path: &Path, name: &str, errors: &mut FieldErrors) {
    errors.invalid_all(path, name, names::is_qualified_name(name));
}

pub fn annotations(field: &Field<'_>, errors: &mut FieldErrors) {
    let mut size = 0;
    for (key, value) in field.entries() {
        errors.invalid_all(field.path(), key, names::is_qualified_name(&key.to_lowercase()));
        size += key.len() + value.len();
    }
    if size > ANNOTATIONS_LIMIT {
        errors.too_long(field.path(), ANNOTATIONS_LIMIT);
    }
}

fn owners(field: &Field<'_>, errors: &mut FieldErrors) {
    let mut controller = String::new();
    for owner in field.items() {
        // The reference tells all owners' errors at the list.
        let at = |name| field.path().child(name);
        let (api_version, kind) = (owner.child("apiVersion").str(), owner.child("kind").str());
        let version = api_version.split_once('/').map_or(api_version, |(_, version)| version);
        if version.is_empty() || api_version.matches('/').count() > 1 {
            errors.invalid_str(&at("apiVersion"), api_version, "version must not be empty");
        }
        for name in ["kind", "name", "uid"] {
            if owner.child(name).is_empty() {
                errors.invalid_str(&at(name), "", "must not be empty");
            }
        }
        if api_version == "v1" && kind == "Event" {
            let shown = super::field::ordered(owner.value(), &["apiVersion", "kind", "name", "uid"]);
            errors.invalid_shown(field.path(), &shown, "/v1, Kind=Event is disallowed from being an owner");
        }
        if owner.child("controller").bool() {
            let this = format!("{kind}/{}", owner.child("name").str());
            if controller.is_empty() {
                controller = this;
            } else {
                let all: Vec<String> = field
                    .items()
                    .map(|owner| super::field::ordered(owner.value(), &["apiVersion", "kind", "name", "uid"]))
                    .collect();
                let detail = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {controller} and \
                     {this}"
                );
                errors.invalid_shown(field.path(), &format!("[{}]", all.join(",")), detail);
            }
        }
    }
}

fn finalizers(field: &Field<'_>, errors: &mut FieldErrors) {
    for name in field.strings() {
        errors.invalid_all(field.path(), name, names::is_qualified_name(name));
    }
    let has = |wanted| field.strings().any(|name| name == wanted);
    if has("orphan") && has("foregroundDeletion") {
        errors.invalid(field, "finalizer orphan and foregroundDeletion cannot be both set");
    }
}

/// Names without a domain are only the reference's own.
fn kube_finalizers(meta: &Field<'_>, errors: &mut FieldErrors) {
    for name in meta.child("finalizers").items() {
        kube_finalizer(name.path(), name.str(), errors);
    }
}

/// A finalizer without a domain must be one of the well-known.
pub fn kube_finalizer(path: &Path, name: &str, errors: &mut FieldErrors) {
    if !name.contains('/') && !matches!(name, "kubernetes" | "orphan" | "foregroundDeletion") {
        errors.invalid_str(path, name, "name is neither a standard finalizer name nor is it fully qualified");
    }
}

fn managed_fields(field: &Field<'_>, errors: &mut FieldErrors) {
    for entry in field.items() {
        let operation = entry.child("operation");
        if !matches!(operation.str(), "Apply" | "Update") {
            errors.invalid_str(operation.path(), operation.str(), "must be `Apply` or `Update`");
        }
        let kind = entry.child("fieldsType");
        if !matches!(kind.str(), "" | "FieldsV1") {
            errors.invalid_str(kind.path(), kind.str(), "must be `FieldsV1`");
        }
        let manager = entry.child("manager");
        field_manager(manager.path(), manager.str(), errors);
        let subresource = entry.child("subresource");
        if subresource.len() > SUBRESOURCE_LIMIT {
            errors.too_long(subresource.path(), SUBRESOURCE_LIMIT);
        }
    }
}

/// A manager's name is short and printable.
pub fn field_manager(path: &Path, manager: &str, errors: &mut FieldErrors) {
    if manager.len() > FIELD_MANAGER_LIMIT {
        errors.too_long(path, FIELD_MANAGER_LIMIT);
    }
    for (position, c) in manager.char_indices() {
        if c.is_control() || (c.is_whitespace() && c != ' ') {
            let detail = format!("invalid character U+{:04X} (at position {position})", c as u32);
            errors.invalid_str(path, manager, detail);
        }
    }
}

pub fn non_negative(field: &Field<'_>, errors: &mut FieldErrors) {
    if field.int() < 0 {
        errors.invalid_int(field.path(), field.int(), NEGATIVE);
    }
}
