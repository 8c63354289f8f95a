//! `scale`: the replica count of a workload as a `Scale` of autoscaling/v1.

use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use sampan_api::validation::requests;
use sampan_api::{Error, Kind, codec};
use serde_json::{Map, Value, json};

use super::patch::Patch;
use super::{Context, body_media, read_body};
use crate::registry::{Preconditions, check_name, meta, not_found};
use crate::respond;

pub const SCHEMA: &str = "io.k8s.api.autoscaling.v1.Scale";

/// The Scale of a workload.
fn of(object: &Value) -> Value {
    let mut metadata = Map::new();
    for key in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object.get("metadata").and_then(|metadata| metadata.get(key)) {
            metadata.insert(key.to_owned(), value.clone());
        }
    }
    let count = |pointer: &str| object.pointer(pointer).and_then(Value::as_i64).unwrap_or_default();
    let mut spec = Map::new();
    let replicas = object.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(1);
    if replicas != 0 {
        spec.insert("replicas".to_owned(), replicas.into());
    }
    let mut status = json!({"replicas": count("/status/replicas")});
    let selector = selector_text(object.pointer("/spec/selector").unwrap_or(&Value::Null));
    if let Some(map) = status.as_object_mut()
        && !selector.is_empty()
    {
        map.insert("selector".to_owned(), selector.into());
    }
    json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec, "status": status})
}

/// A label selector as clients write it in a query.
fn selector_text(selector: &Value) -> String {
    let mut parts: Vec<String> = Vec::new();
    for (key, value) in selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
        parts.push(format!("{key}={}", value.as_str().unwrap_or_default()));
    }
    for expression in selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
        let text = |name: &str| expression.get(name).and_then(Value::as_str).unwrap_or_default();
        let key = text("key");
        let mut values: Vec<&str> = expression
            .get("values")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        values.sort_unstable();
        parts.push(match text("operator") {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    parts.sort();
    parts.join(",")
}

pub fn get(context: &Context, kind: &'static Kind) -> Result<Response, Error> {
    let form = respond::negotiate(&context.headers, &context.query, false)?;
    let name = &context.path.name;
    let object = context.app.cache.of(kind).and_then(|cache| cache.get(&context.path.namespace, name));
    let object = object.ok_or_else(|| not_found(kind, name))?;
    Ok(respond::value(form, StatusCode::OK, &of(&object.value())))
}

/// Puts the count of a Scale into a workload.
fn put(object: &Value, scale: &Value) -> Value {
    let mut new = object.clone();
    if let Some(spec) = new.get_mut("spec").and_then(Value::as_object_mut) {
        let replicas = scale.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or_default();
        spec.insert("replicas".to_owned(), replicas.into());
    }
    if let Some(metadata) = new.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("resourceVersion".to_owned(), meta(scale, "resourceVersion").into());
    }
    new
}

fn check(scale: &Value, name: &str) -> Result<(), Error> {
    check_name(scale, name)?;
    requests::scale(scale)
}

pub async fn update(context: &mut Context, kind: &'static Kind, body: &Bytes) -> Result<Response, Error> {
    let form = respond::negotiate(&context.headers, &context.query, false)?;
    let dry_run = context.check_options("UpdateOptions")?;
    let media = body_media(&context.headers)?;
    let gvk = ("autoscaling", "v1", "Scale");
    let decoded = codec::decode_type(SCHEMA, gvk, body, media, context.field_validation())?;
    let mut warnings = decoded.warnings;
    let scale = decoded.object;
    let name = context.path.name.clone();
    let manager = context.field_manager();
    let uid = meta(&scale, "uid").to_owned();
    let preconditions = Preconditions { uid: &uid };
    let written = context
        .write(kind, "scale", Some(&manager), dry_run)
        .update(&name, preconditions, &mut warnings, |old, _| {
            check(&scale, &name)?;
            Ok(put(old, &scale))
        })
        .await;
    context.warnings.append(&mut warnings);
    Ok(respond::value(form, StatusCode::OK, &of(&written?.value(kind))))
}

pub async fn patch(context: &mut Context, kind: &'static Kind, request: Request) -> Result<Response, Error> {
    let form = respond::negotiate(&context.headers, &context.query, false)?;
    let patch = Patch::read(context)?;
    let dry_run = context.check_patch_options(patch.is_apply())?;
    let body = read_body(request).await?;
    let patch = patch.parse(body, context.field_validation());
    let name = context.path.name.clone();
    let manager = context.field_manager();
    let mut warnings = Vec::new();
    let written = context
        .write(kind, "scale", Some(&manager), dry_run)
        .update(&name, Preconditions::default(), &mut warnings, |old, warnings| {
            let scale = patch.on_type(SCHEMA, &of(old), warnings)?;
            check(&scale, &name)?;
            Ok(put(old, &scale))
        })
        .await;
    context.warnings.append(&mut warnings);
    Ok(respond::value(form, StatusCode::OK, &of(&written?.value(kind))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_as_text() {
        let selector = json!({
            "matchLabels": {"b": "2", "a": "1"},
            "matchExpressions": [{"key": "c", "operator": "In", "values": ["y", "x"]}, {"key": "d", "operator": "DoesNotExist"}],
        });
        assert_eq!(selector_text(&selector), "!d,a=1,b=2,c in (x,y)");
        assert_eq!(selector_text(&Value::Null), "");
    }
}
