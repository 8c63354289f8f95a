//! Secret.

use base64::Engine;

use super::prelude::*;
use crate::kinds::configmap::{SIZE_LIMIT, decoded_len, validate_immutable};
use crate::kinds::edit;
use crate::validation::common::immutable;
use crate::validation::field::Field;

pub static KIND: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Secret",
    plural: "secrets",
    singular: "secret",
    short_names: &[],
    categories: &[],
    scope: Scope::Namespaced,
    verbs: ALL_VERBS,
    subresources: &[],
    schema: "io.k8s.api.core.v1.Secret",
    selectable_fields: &[field!("type")],
    columns: &[
        Column {
            name: "Name",
            kind: "string",
            format: "name",
            description: "Name must be unique within its scope. It cannot be changed.",
            priority: 0,
        },
        Column { name: "Type", kind: "string", format: "", description: "", priority: 0 },
        Column { name: "Data", kind: "string", format: "", description: "", priority: 0 },
        Column { name: "Age", kind: "string", format: "", description: "Time since the object was made.", priority: 0 },
    ],
    cells,
    name: names::dns_subdomain,
    strategy: STRATEGY,
    stored_as: None,
    deprecated: None,
};

const STRATEGY: Strategy = Strategy { default, validate, validate_update, ..Strategy::PLAIN };

/// Text is taken over into `data`, and the type is told.
fn default(object: &mut Value) {
    let Some(map) = object.as_object_mut() else {
        return;
    };
    if let Some(Value::Object(texts)) = map.remove("stringData")
        && !texts.is_empty()
    {
        let data = edit::ensure(map, "data");
        for (key, text) in texts {
            let bytes = text.as_str().unwrap_or_default();
            data.insert(key, base64::engine::general_purpose::STANDARD.encode(bytes).into());
        }
    }
    edit::default_zero(map, "type", "Opaque");
}

fn validate(object: &Value, errors: &mut FieldErrors) {
    let root = Field::root(object);
    let data = root.child("data");
    let mut size = 0;
    for (key, value) in data.entries() {
        errors.invalid_all(value.path(), key, names::is_config_key(key));
        size += decoded_len(value.str());
    }
    if size > SIZE_LIMIT {
        errors.too_long(data.path(), SIZE_LIMIT);
    }
    let entry = |key: &str| data.entries().find(|(name, _)| *name == key).map(|(_, value)| value);
    let need = |key: &str, errors: &mut FieldErrors| {
        if entry(key).is_none() {
            errors.required(&data.path().key(key), "");
        }
    };
    match root.child("type").str() {
        "kubernetes.io/service-account-token" => {
            let annotations = root.below(&["metadata", "annotations"]);
            let key = "kubernetes.io/service-account.name";
            if !annotations.entries().any(|(name, value)| name == key && !value.is_empty()) {
                errors.required(&annotations.path().key(key), "");
            }
        }
        "kubernetes.io/dockercfg" => json_entry(&data, ".dockercfg", errors),
        "kubernetes.io/dockerconfigjson" => json_entry(&data, ".dockerconfigjson", errors),
        "kubernetes.io/basic-auth" if entry("username").is_none() && entry("password").is_none() => {
            need("username", errors);
            need("password", errors);
        }
        "kubernetes.io/ssh-auth" if entry("ssh-privatekey").is_none_or(|value| value.is_empty()) => {
            errors.required(&data.path().key("ssh-privatekey"), "");
        }
        "kubernetes.io/tls" => {
            need("tls.crt", errors);
            need("tls.key", errors);
        }
        _ => {}
    }
}

/// The entry must hold a JSON object.
fn json_entry(data: &Field<'_>, key: &str, errors: &mut FieldErrors) {
    let path = data.path().key(key);
    let Some((_, value)) = data.entries().find(|(name, _)| *name == key) else {
        errors.required(&path, "");
        return;
    };
    let bytes = base64::engine::general_purpose::STANDARD.decode(value.str()).unwrap_or_default();
    let wrong = match serde_json::from_slice::<Value>(&bytes) {
        Ok(Value::Object(_) | Value::Null) => return,
        Ok(other) => {
            let kind = match other {
                Value::Array(_) => "array",
                Value::String(_) => "string",
                Value::Bool(_) => "bool",
                _ => "number",
            };
            format!("json: cannot unmarshal {kind} into Go value of type map[string]interface {{}}")
        }
        Err(error) if error.is_eof() => "unexpected end of JSON input".to_owned(),
        Err(error) => {
            let text = String::from_utf8_lossy(&bytes);
            let wrong = text.lines().nth(error.line().saturating_sub(1));
            let wrong = wrong.and_then(|line| line.chars().nth(error.column().saturating_sub(1))).unwrap_or_default();
            format!("invalid character '{wrong}' looking for beginning of value")
        }
    };
    errors.invalid_str(&path, "<secret contents redacted>", wrong);
}

fn validate_update(new: &Value, old: &Value, errors: &mut FieldErrors) {
    immutable(&Field::root(new).child("type"), &Field::root(old).child("type"), errors);
    validate_immutable(new, old, &["data"], errors);
    validate(new, errors);
}

fn cells(object: &Value, now: i64) -> Vec<Value> {
    let kind = print::text(object, "/type");
    vec![print::name(object), json!(kind), json!(print::count(object, "/data")), print::age(object, now)]
}
