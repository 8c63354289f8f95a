//! What is done to pods: bound to a node, evicted.

use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use sampan_api::validation::requests;
use sampan_api::{Error, Kind, codec, kinds};
use serde_json::{Map, Value, json};

use super::{Context, body_media, delete};
use crate::registry::{Preconditions, meta};
use crate::respond;

fn done(context: &Context) -> Result<Response, Error> {
    let form = respond::negotiate(&context.headers, &context.query, false)?;
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(respond::value(form, StatusCode::CREATED, &status))
}

/// `POST pods/NAME/binding`, and `POST bindings` with the name inside.
pub async fn bind(context: &mut Context, body: &Bytes) -> Result<Response, Error> {
    let pods: &'static Kind = kinds::find("", "v1", "pods").ok_or(Error::UnknownPath)?;
    let dry_run = context.check_options("CreateOptions")?;
    let media = body_media(&context.headers)?;
    const SCHEMA: &str = "io.k8s.api.core.v1.Binding";
    let gvk = ("", "v1", "Binding");
    let decoded = codec::decode_type(SCHEMA, gvk, body, media, context.field_validation())?;
    let mut warnings = decoded.warnings;
    let binding = decoded.object;
    let given = meta(&binding, "name").to_owned();
    let name = if context.path.subresource.is_empty() { given.clone() } else { context.path.name.clone() };
    if given != name {
        return Err(Error::BadRequest("name in URL does not match name in Binding object".to_owned()));
    }
    requests::binding(&binding, &name)?;
    let node = binding.pointer("/target/name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let uid = meta(&binding, "uid").to_owned();
    let version = meta(&binding, "resourceVersion").to_owned();
    let annotations = binding.pointer("/metadata/annotations").and_then(Value::as_object).cloned();
    let now = context.app.now_text();
    let manager = context.field_manager();
    let preconditions = Preconditions { uid: &uid };
    let written = context
        .write(pods, "binding", Some(&manager), dry_run)
        .update(&name, preconditions, &mut warnings, |old, _| {
            let refuse = |message: String| {
                let resource = "pods/binding".to_owned();
                Err(Error::Conflict { resource, name: name.clone(), message })
            };
            if !meta(old, "deletionTimestamp").is_empty() {
                return refuse(format!("pod {name} is being deleted, cannot be assigned to a host"));
            }
            if let Some(bound) = old.pointer("/spec/nodeName").and_then(Value::as_str).filter(|node| !node.is_empty()) {
                return refuse(format!("pod {name} is already assigned to node {bound:?}"));
            }
            let gated =
                old.pointer("/spec/schedulingGates").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
            if gated {
                return refuse(format!("pod {name} has non-empty .spec.schedulingGates"));
            }
            let mut new = old.clone();
            if let Some(metadata) = new.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.insert("resourceVersion".to_owned(), version.clone().into());
                if let Some(annotations) = &annotations {
                    let own = metadata.entry("annotations").or_insert_with(|| Value::Object(Map::new()));
                    if let Some(own) = own.as_object_mut() {
                        own.extend(annotations.clone());
                    }
                }
                let count = metadata.get("generation").and_then(Value::as_i64).unwrap_or_default();
                metadata.insert("generation".to_owned(), (count + 1).into());
            }
            if let Some(spec) = new.get_mut("spec").and_then(Value::as_object_mut) {
                spec.insert("nodeName".to_owned(), node.clone().into());
            }
            scheduled(&mut new, &now);
            Ok(new)
        })
        .await;
    context.warnings.append(&mut warnings);
    written?;
    done(context)
}

/// Sets the condition that says that a pod has a node.
fn scheduled(pod: &mut Value, now: &str) {
    let Some(pod) = pod.as_object_mut() else {
        return;
    };
    let Some(status) = pod.entry("status").or_insert_with(|| json!({})).as_object_mut() else {
        return;
    };
    let conditions = status.entry("conditions").or_insert_with(|| json!([]));
    let Some(conditions) = conditions.as_array_mut() else {
        return;
    };
    let condition = json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now});
    let same = |entry: &Value| entry.get("type").and_then(Value::as_str) == Some("PodScheduled");
    match conditions.iter_mut().find(|entry| same(entry)) {
        Some(entry) if entry.get("status").and_then(Value::as_str) == Some("True") => {}
        Some(entry) => *entry = condition,
        None => conditions.push(condition),
    }
}

/// `POST pods/NAME/eviction`: a delete that budgets may hold back. There are no budgets yet.
pub async fn evict(context: &mut Context, pods: &'static Kind, body: &Bytes) -> Result<Response, Error> {
    let query_dry_run = context.check_options("CreateOptions")?;
    let media = body_media(&context.headers)?;
    const SCHEMA: &str = "io.k8s.api.policy.v1.Eviction";
    let gvk = ("policy", "v1", "Eviction");
    let decoded = codec::decode_type(SCHEMA, gvk, body, media, context.field_validation())?;
    context.warnings.extend(decoded.warnings);
    let eviction = decoded.object;
    let name = context.path.name.clone();
    if meta(&eviction, "name") != name {
        return Err(Error::BadRequest("name in URL does not match name in Eviction object".to_owned()));
    }
    let empty = Value::Object(Map::new());
    let wanted = eviction.get("deleteOptions").unwrap_or(&empty);
    requests::delete_options(wanted)?;
    let options = delete::Options::from_value(wanted);
    let dry_run = query_dry_run || options.dry_run;
    delete::run(&context.write(pods, "", None, dry_run), &name, &options).await?;
    done(context)
}
