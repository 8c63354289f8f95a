//! A node writes only what is its own, where the path of a request does not say so.

use sampan_api::Error;
use serde_json::Value;

use super::Attributes;

pub fn create(attributes: &Attributes<'_>, object: &Value) -> Result<(), Error> {
    let Some(node) = attributes.identity.node_name() else {
        return Ok(());
    };
    let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    if attributes.is("", "nodes") && name != node {
        return Err(attributes.forbidden(&format!("node {node:?} is not allowed to modify node {name:?}")));
    }
    if attributes.is("coordination.k8s.io", "leases") && name != node {
        return Err(attributes.forbidden("can only access node lease with the same name as the requesting node"));
    }
    Ok(())
}

/// Labels under this domain are an administrator's: workloads are kept apart by them.
const RESTRICTED: &str = "node-restriction.kubernetes.io/";

pub fn update(attributes: &Attributes<'_>, object: &Value, old: &Value) -> Result<(), Error> {
    let Some(node) = attributes.identity.node_name() else {
        return Ok(());
    };
    if attributes.kind.plural != "nodes" || !attributes.kind.group.is_empty() {
        return Ok(());
    }
    let labels = |of: &Value| -> Vec<(String, Value)> {
        let labels = of.pointer("/metadata/labels").and_then(Value::as_object);
        labels
            .into_iter()
            .flatten()
            .filter(|(key, _)| key.contains(RESTRICTED))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    };
    if labels(object) != labels(old) {
        return Err(attributes.forbidden(&format!("is not allowed to modify labels: {RESTRICTED}*")));
    }
    let taints = |of: &Value| of.pointer("/spec/taints").cloned().unwrap_or(Value::Null);
    if taints(object) != taints(old) {
        return Err(attributes.forbidden(&format!("node {node:?} is not allowed to modify taints")));
    }
    Ok(())
}
