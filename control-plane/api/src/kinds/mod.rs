//! The kinds: one file each. A kind is its row (`Kind`) and the functions that the row names.

/// A field that selectors may name, read by its path.
macro_rules! field {
    ($path:literal) => {
        SelectableField { path: $path, get: |object| crate::kinds::selectable(object, $path) }
    };
}

pub mod configmap;
pub mod deployment;
pub mod edit;
pub mod endpoints;
pub mod endpointslice;
pub mod event;
pub mod lease;
pub mod namespace;
pub mod node;
pub mod pod;
pub mod podtemplate;
pub mod print;
pub mod replicaset;
pub mod runtimeclass;
pub mod secret;
pub mod service;
pub mod serviceaccount;
pub mod workload;

/// What every kind's file uses.
mod prelude {
    pub use serde_json::{Value, json};

    pub use super::print;
    pub use crate::error::FieldErrors;
    pub use crate::kind::{ALL_VERBS, Column, Kind, Scope, SelectableField, StoredAs, Strategy, Subresource};
    pub use crate::validation::names;
}

use serde_json::Value;

use crate::kind::Kind;

/// Every kind, in the order of discovery: the core group first.
pub const ALL: &[&Kind] = &[
    &configmap::KIND,
    &endpoints::KIND,
    &event::CORE,
    &namespace::KIND,
    &node::KIND,
    &pod::KIND,
    &podtemplate::KIND,
    &secret::KIND,
    &service::KIND,
    &serviceaccount::KIND,
    &deployment::KIND,
    &replicaset::KIND,
    &lease::KIND,
    &endpointslice::KIND,
    &event::EVENTS,
    &runtimeclass::KIND,
];

/// The kind of `/apis/GROUP/VERSION/PLURAL`; the core group is the empty one.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    ALL.iter().copied().find(|kind| kind.plural == plural && kind.group == group && kind.version == version)
}

/// The kind by its name in a manifest: `apps/v1`, `Deployment`.
pub fn find_kind(api_version: &str, name: &str) -> Option<&'static Kind> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    ALL.iter().copied().find(|kind| kind.kind == name && kind.group == group && kind.version == version)
}

/// The text of a field as a selector compares it: absent fields are empty, `false` where they are flags.
fn selectable(object: &Value, path: &str) -> String {
    let mut value = Some(object);
    for part in path.split('.') {
        value = value.and_then(|value| value.get(part));
    }
    match value {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(flag)) => flag.to_string(),
        Some(Value::Number(number)) => number.to_string(),
        _ if matches!(path, "spec.unschedulable" | "spec.hostNetwork") => "false".to_owned(),
        _ if path == "status.replicas" => "0".to_owned(),
        _ => String::new(),
    }
}
