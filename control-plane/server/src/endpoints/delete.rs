//! Deletes: of one object and of collections, with grace, finalizers and preconditions.

use std::sync::Arc;

use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use sampan_api::validation::requests;
use sampan_api::{Error, Kind, codec};
use sampan_store::{Change, Error as StoreError};
use serde_json::{Map, Value, json};

use super::{Context, body_media, list};
use crate::admission;
use crate::app::time_text;
use crate::cache::{self, KindCache, Object};
use crate::registry::{Write, meta, metadata, not_found, shown, store_error};
use crate::respond;

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";
const ATTEMPTS: usize = 64;

/// What a client says of a delete.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub grace: Option<i64>,
    pub policy: Option<String>,
    pub orphan: Option<bool>,
    pub uid: String,
    pub resource_version: String,
    pub dry_run: bool,
}

impl Options {
    pub fn from_value(value: &Value) -> Self {
        let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        Self {
            grace: value.get("gracePeriodSeconds").and_then(Value::as_i64),
            policy: text("/propagationPolicy"),
            orphan: value.get("orphanDependents").and_then(Value::as_bool),
            uid: text("/preconditions/uid").unwrap_or_default(),
            resource_version: text("/preconditions/resourceVersion").unwrap_or_default(),
            dry_run: value.get("dryRun").and_then(Value::as_array).is_some_and(|list| !list.is_empty()),
        }
    }

    /// From the body, or from the query where there is none.
    pub fn read(context: &Context, body: &Bytes) -> Result<Self, Error> {
        let value = if body.is_empty() {
            let mut map = Map::new();
            if let Some(seconds) = context.query.int("gracePeriodSeconds")? {
                map.insert("gracePeriodSeconds".to_owned(), seconds.into());
            }
            if let Some(policy) = context.query.get("propagationPolicy").filter(|policy| !policy.is_empty()) {
                map.insert("propagationPolicy".to_owned(), policy.into());
            }
            if let Some(orphan) = context.query.flag("orphanDependents") {
                map.insert("orphanDependents".to_owned(), orphan.into());
            }
            Value::Object(map)
        } else {
            let media = body_media(&context.headers)?;
            const SCHEMA: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
            let gvk = ("", "v1", "DeleteOptions");
            codec::decode_type(SCHEMA, gvk, body, media, codec::FieldValidation::Ignore)?.object
        };
        let mut value = value;
        if let Some(map) = value.as_object_mut() {
            let dry: Vec<&str> = context.query.all("dryRun").collect();
            if !dry.is_empty() {
                map.insert("dryRun".to_owned(), json!(dry));
            }
        }
        requests::delete_options(&value)?;
        Ok(Self::from_value(&value))
    }

    fn cascades(&self) -> bool {
        self.orphan == Some(false) || self.policy.as_deref() == Some("Foreground")
    }
}

/// Kinds whose delete answers with the object that is gone.
fn returns_object(kind: &Kind) -> bool {
    kind.group.is_empty() && matches!(kind.plural, "pods" | "podtemplates" | "serviceaccounts" | "services")
}

/// What a delete did.
pub enum Deleted {
    Gone(Value),
    /// Still there: something holds it, or it has time to end.
    Marked(Value),
}

/// Finalizers after the wish for dependents is put in.
fn finalizers(object: &Value, options: &Options) -> Vec<String> {
    let list = object.pointer("/metadata/finalizers").and_then(Value::as_array);
    let mut all: Vec<String> = list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    let (orphan, foreground) = match (options.orphan, options.policy.as_deref()) {
        (Some(orphan), _) => (orphan, false),
        (None, Some("Orphan")) => (true, false),
        (None, Some("Foreground")) => (false, true),
        (None, Some(_)) => (false, false),
        (None, None) => return all,
    };
    all.retain(|name| name != ORPHAN && name != FOREGROUND);
    if orphan {
        all.push(ORPHAN.to_owned());
    }
    if foreground {
        all.push(FOREGROUND.to_owned());
    }
    all
}

fn check(kind: &Kind, name: &str, object: &Value, options: &Options) -> Result<(), Error> {
    let conflict =
        |message: String| Error::Conflict { resource: kind.qualified_kind(), name: name.to_owned(), message };
    let uid = meta(object, "uid");
    if !options.uid.is_empty() && options.uid != uid {
        return Err(conflict(format!(
            "the UID in the precondition ({}) does not match the UID in record ({uid}). The object might have been \
             deleted and then recreated",
            options.uid
        )));
    }
    let version = meta(object, "resourceVersion");
    if !options.resource_version.is_empty() && options.resource_version != version {
        return Err(conflict(format!(
            "the ResourceVersion in the precondition ({}) does not match the ResourceVersion in record ({version}). \
             The object might have been modified",
            options.resource_version
        )));
    }
    Ok(())
}

/// The object as it waits for its end; `None`: nothing about it changes.
fn mark(kind: &Kind, object: &Value, options: &Options, now: jiff::Timestamp) -> Result<Plan, Error> {
    let wanted = finalizers(object, options);
    let namespace = kind.group.is_empty() && kind.plural == "namespaces";
    let held = !wanted.is_empty()
        || (namespace
            && object.pointer("/spec/finalizers").and_then(Value::as_array).is_some_and(|list| !list.is_empty()));
    let deleting = meta(object, "deletionTimestamp").to_owned();
    let before = object.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64);
    let grace = (kind.strategy.grace_period)(object, options.grace).map(|grace| if grace < 0 { 1 } else { grace });
    let mut marked = object.clone();
    let fields = metadata(&mut marked)?;
    if wanted.is_empty() {
        fields.remove("finalizers");
    } else {
        fields.insert("finalizers".to_owned(), json!(wanted));
    }
    let mut ends_now = !held;
    if deleting.is_empty() {
        let grace = grace.unwrap_or(0);
        ends_now &= grace == 0;
        let at = now.saturating_add(jiff::SignedDuration::from_secs(grace)).unwrap_or(now);
        fields.insert("deletionTimestamp".to_owned(), time_text(at).into());
        if !namespace {
            fields.insert("deletionGracePeriodSeconds".to_owned(), grace.into());
        }
        if let Some(generation) = fields.get("generation").and_then(Value::as_i64).filter(|count| *count > 0) {
            fields.insert("generation".to_owned(), (generation + 1).into());
        }
    } else if let Some(before) = before.filter(|seconds| *seconds > 0) {
        // The time to end can only become shorter.
        if let Some(grace) =
            options.grace.map(|grace| if grace < 0 { 1 } else { grace }).filter(|grace| *grace < before)
        {
            ends_now &= grace == 0;
            if let Ok(at) = deleting.parse::<jiff::Timestamp>() {
                let at = at.saturating_sub(jiff::SignedDuration::from_secs(before - grace)).unwrap_or(at);
                fields.insert("deletionTimestamp".to_owned(), time_text(at).into());
                fields.insert("deletionGracePeriodSeconds".to_owned(), grace.into());
            }
        } else {
            ends_now = false;
        }
    }
    if namespace
        && deleting.is_empty()
        && let Some(map) = marked.as_object_mut()
        && let Some(status) = map.entry("status").or_insert_with(|| json!({})).as_object_mut()
    {
        status.insert("phase".to_owned(), "Terminating".into());
    }
    if ends_now {
        return Ok(Plan::End(marked));
    }
    Ok(if marked == *object { Plan::Nothing } else { Plan::Mark(marked) })
}

enum Plan {
    End(Value),
    Mark(Value),
    Nothing,
}

/// Deletes one object.
pub async fn run(write: &Write<'_>, name: &str, options: &Options) -> Result<Deleted, Error> {
    let app = write.app;
    let cache: &Arc<KindCache> = app.cache.of(write.kind).ok_or(Error::UnknownPath)?;
    let attributes = admission::Attributes {
        kind: write.kind,
        namespace: write.namespace,
        name,
        subresource: "",
        identity: write.identity,
    };
    for _ in 0..ATTEMPTS {
        let stored = cache.get(write.namespace, name).ok_or_else(|| not_found(write.kind, name))?;
        let object = shown(write.kind, &stored);
        check(write.kind, name, &object, options)?;
        admission::delete(&attributes)?;
        let plan = mark(write.kind, &object, options, app.now())?;
        let key = cache.key(write.namespace, name);
        match plan {
            Plan::Nothing => return Ok(Deleted::Marked(object)),
            Plan::Mark(marked) | Plan::End(marked) if write.dry_run => {
                return Ok(match mark(write.kind, &object, options, app.now())? {
                    Plan::End(_) => Deleted::Gone(marked),
                    _ => Deleted::Marked(marked),
                });
            }
            Plan::Mark(marked) => {
                let stored_kind = write.kind.stored_as.map_or(write.kind, |stored| (stored.kind)());
                let value = match write.kind.stored_as {
                    Some(to) => (to.to_stored)(marked),
                    None => marked,
                };
                let bytes = cache::encode(stored_kind, &value);
                match app.store.update(&key, bytes.clone(), stored.revision).await {
                    Ok(revision) => {
                        write.catch_up(revision).await?;
                        let object = Object::new(stored_kind, &key, &bytes, Change::Updated, stored.created, revision)
                            .map_err(|error| Error::Internal(error.to_string()))?;
                        return Ok(Deleted::Marked(shown(write.kind, &object)));
                    }
                    Err(StoreError::Conflict { current, .. }) => write.catch_up(current).await?,
                    Err(StoreError::NotFound { .. }) => write.vanished(cache, name, stored.revision).await?,
                    Err(error) => return Err(store_error(error)),
                }
            }
            Plan::End(mut marked) => match app.store.delete(&key, stored.revision).await {
                Ok(revision) => {
                    write.catch_up(revision).await?;
                    if write.kind.group.is_empty() && write.kind.plural == "services" {
                        app.services.release(&object, None);
                    }
                    cache::set_version(&mut marked, revision);
                    return Ok(Deleted::Gone(marked));
                }
                Err(StoreError::Conflict { current, .. }) => write.catch_up(current).await?,
                Err(StoreError::NotFound { .. }) => write.vanished(cache, name, stored.revision).await?,
                Err(error) => return Err(store_error(error)),
            },
        }
    }
    Err(crate::registry::conflict(write.kind, name, crate::registry::MODIFIED))
}

/// `DELETE` of one object.
pub async fn one(context: &mut Context, kind: &'static Kind, body: Bytes) -> Result<Response, Error> {
    let form = respond::negotiate(&context.headers, &context.query, false)?;
    let options = Options::read(context, &body)?;
    let write = context.write(kind, "", None, options.dry_run);
    let name = &context.path.name;
    let (object, gone) = match run(&write, name, &options).await? {
        Deleted::Gone(object) => (object, true),
        Deleted::Marked(object) => (object, false),
    };
    let status = if !gone && options.cascades() { StatusCode::ACCEPTED } else { StatusCode::OK };
    if gone && !returns_object(kind) {
        let done = respond::success(kind, name, meta(&object, "uid"));
        return Ok(respond::value(form, status, &done));
    }
    let now = context.app.now().as_second();
    Ok(respond::value(form, status, &respond::shaped(kind, form, object, &context.query, now)))
}

/// `DELETE` of all that a list with the same selectors shows.
pub async fn collection(context: &mut Context, kind: &'static Kind, body: Bytes) -> Result<Response, Error> {
    let form = respond::negotiate(&context.headers, &context.query, true)?;
    let options = Options::read(context, &body)?;
    let selection = list::Selection::read(context, kind)?;
    let cache = context.app.cache.of(kind).ok_or(Error::UnknownPath)?;
    let (snapshot, _) = cache.list(&context.path.namespace, None, 0, |object| selection.matches(object));
    let mut items = Vec::with_capacity(snapshot.objects.len());
    for object in &snapshot.objects {
        let mut write = context.write(kind, "", None, options.dry_run);
        write.namespace = &object.namespace;
        match run(&write, &object.name, &options).await {
            Ok(_) | Err(Error::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        items.push(shown(kind, object));
    }
    list::respond_with(context, kind, form, items, json!({"resourceVersion": snapshot.revision.to_string()}))
}
