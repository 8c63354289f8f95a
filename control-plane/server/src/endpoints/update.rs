//! `PUT` of an object, its status, or another part with an endpoint of its own.

use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use sampan_api::{Error, Kind, codec};
use serde_json::{Value, json};

use super::get::respond_written;
use super::{Context, body_media};
use crate::registry::{Preconditions, check_name, meta};
use crate::respond;

pub async fn serve(
    context: &mut Context,
    kind: &'static Kind,
    subresource: &'static str,
    body: &Bytes,
) -> Result<Response, Error> {
    let form = respond::negotiate(&context.headers, &context.query, false)?;
    let media = body_media(&context.headers)?;
    let dry_run = context.check_options("UpdateOptions")?;
    let decoded = codec::decode(kind, body, media, context.field_validation())?;
    let mut warnings = decoded.warnings;
    let mut sent = decoded.object;
    (kind.strategy.default)(&mut sent);
    let manager = context.field_manager();
    let name = context.path.name.clone();
    check_name(&sent, &name)?;
    let uid = meta(&sent, "uid").to_owned();
    let write = context.write(kind, subresource, Some(&manager), dry_run);
    let exists = context.app.cache.of(kind).is_some_and(|cache| cache.get(&context.path.namespace, &name).is_some());
    let (status, result) = if !exists && kind.strategy.create_on_update && subresource.is_empty() {
        context.require_create(kind)?;
        // What does not exist has no version to be held to.
        crate::registry::metadata(&mut sent)?.remove("resourceVersion");
        (StatusCode::CREATED, write.create(sent, &mut warnings).await)
    } else {
        let preconditions = Preconditions { uid: &uid };
        let changed =
            write.update(&name, preconditions, &mut warnings, |old, _| Ok(part(subresource, &sent, old))).await;
        (StatusCode::OK, changed)
    };
    context.warnings.append(&mut warnings);
    Ok(respond_written(context, kind, form, status, result?))
}

/// The new object, of which an endpoint may write only a part.
pub fn part(subresource: &str, sent: &Value, old: &Value) -> Value {
    let only = |pointer: &str, key: &str| {
        let mut new = old.clone();
        keep_version(&mut new, sent);
        let value = sent.pointer(&format!("{pointer}/{key}")).cloned();
        if let Some(map) = new.pointer_mut(pointer).and_then(Value::as_object_mut) {
            match value {
                Some(value) => map.insert(key.to_owned(), value),
                None => map.remove(key),
            };
        }
        new
    };
    match subresource {
        "finalize" => {
            let mut new = old.clone();
            if let Some(map) = new.as_object_mut() {
                map.entry("spec").or_insert_with(|| json!({}));
            }
            let mut new = {
                keep_version(&mut new, sent);
                new
            };
            if let Some(map) = new.get_mut("spec").and_then(Value::as_object_mut) {
                match sent.pointer("/spec/finalizers") {
                    Some(list) => map.insert("finalizers".to_owned(), list.clone()),
                    None => map.remove("finalizers"),
                };
            }
            new
        }
        "ephemeralcontainers" => {
            let mut new = only("/spec", "ephemeralContainers");
            if new.pointer("/spec") != old.pointer("/spec")
                && let Some(metadata) = new.get_mut("metadata").and_then(Value::as_object_mut)
            {
                let count = metadata.get("generation").and_then(Value::as_i64).unwrap_or_default();
                metadata.insert("generation".to_owned(), (count + 1).into());
            }
            new
        }
        _ => sent.clone(),
    }
}

/// The version that a client wants to have changed.
fn keep_version(new: &mut Value, sent: &Value) {
    let version = meta(sent, "resourceVersion").to_owned();
    if let Some(metadata) = new.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("resourceVersion".to_owned(), version.into());
    }
}
