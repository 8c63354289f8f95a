//! `serviceaccounts/NAME/token`: a token for the account, bound to a pod or secret where asked for.

use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use sampan_api::validation::requests;
use sampan_api::{Error, FieldErrors, FieldReason, codec};
use serde_json::{Map, Value, json};

use super::{Context, body_media};
use crate::app::time_text;
use crate::authentication::service_account::{Bound, Reference};
use crate::respond;

/// What a pod's own token asks for lives a year, so that old clients that never read it again go on.
const EXTENDED: (i64, i64) = (3607, 365 * 86400);

pub fn create(context: &mut Context, body: &Bytes) -> Result<Response, Error> {
    let form = respond::negotiate(&context.headers, &context.query, false)?;
    let dry_run = context.check_options("CreateOptions")?;
    let media = body_media(&context.headers)?;
    const SCHEMA: &str = "io.k8s.api.authentication.v1.TokenRequest";
    let gvk = ("authentication.k8s.io", "v1", "TokenRequest");
    let decoded = codec::decode_type(SCHEMA, gvk, body, media, context.field_validation())?;
    context.warnings.extend(decoded.warnings);
    let mut request = decoded.object;
    requests::default_token_request(&mut request);
    let app = &context.app;
    let (namespace, name) = (&context.path.namespace, &context.path.name);
    let account = app.find("", "serviceaccounts", namespace, name);
    let account =
        account.ok_or_else(|| Error::NotFound { resource: "serviceaccounts".to_owned(), name: name.clone() })?;
    requests::token_request(&request)?;
    let mut bound = Bound {
        namespace: namespace.clone(),
        serviceaccount: Reference { name: name.clone(), uid: account.uid.to_string() },
        pod: None,
        secret: None,
        node: None,
    };
    let wanted = request.pointer("/spec/boundObjectRef").filter(|wanted| !wanted.is_null()).cloned();
    if let Some(wanted) = &wanted {
        bind(context, wanted, &mut bound)?;
    }
    if let Some(node) = context.identity.node_name()
        && bound.pod.is_none()
    {
        return Err(Error::Forbidden {
            resource: "serviceaccounts".to_owned(),
            name: name.clone(),
            message: format!(
                "serviceaccounts {name:?} is forbidden: node {node:?} requested a token not bound to a pod"
            ),
        });
    }
    let mut audiences: Vec<String> = request
        .pointer("/spec/audiences")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    if audiences.is_empty() {
        audiences.push(app.tokens.issuer().to_owned());
    }
    let seconds = request.pointer("/spec/expirationSeconds").and_then(Value::as_i64).unwrap_or(3600);
    let own = audiences.iter().any(|audience| audience == app.tokens.issuer());
    let lives = if seconds == EXTENDED.0 && bound.pod.is_some() && own { EXTENDED.1 } else { seconds };
    let now = app.now();
    let token = if dry_run {
        String::new()
    } else {
        app.tokens
            .issue(bound, audiences.clone(), now.as_second(), lives)
            .map_err(|error| Error::Internal(format!("signing a token: {error}")))?
    };
    let expires = now.saturating_add(jiff::SignedDuration::from_secs(seconds)).unwrap_or(now);
    let mut spec = Map::new();
    spec.insert("audiences".to_owned(), json!(audiences));
    spec.insert("expirationSeconds".to_owned(), seconds.into());
    spec.insert("boundObjectRef".to_owned(), wanted.unwrap_or(Value::Null));
    let answer = json!({
        "kind": "TokenRequest",
        "apiVersion": "authentication.k8s.io/v1",
        "metadata": {"name": name, "namespace": namespace, "creationTimestamp": time_text(now)},
        "spec": spec,
        "status": {"token": token, "expirationTimestamp": time_text(expires)},
    });
    Ok(respond::value(form, StatusCode::CREATED, &answer))
}

/// Ties a token to the object that the request names.
fn bind(context: &Context, wanted: &Value, bound: &mut Bound) -> Result<(), Error> {
    let text = |key: &str| wanted.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (kind, name, uid) = (text("kind"), text("name"), text("uid"));
    let plural = match (kind.as_str(), text("apiVersion").as_str()) {
        ("Pod", "v1") => "pods",
        ("Secret", "v1") => "secrets",
        ("Node", "v1") => "nodes",
        (_, version) => {
            return Err(Error::BadRequest(format!(
                "cannot bind token for serviceaccount {:?} to object of type \"{version}, Kind={kind}\": use a Pod, Secret or Node of v1",
                context.path.name
            )));
        }
    };
    let namespace = if plural == "nodes" { "" } else { context.path.namespace.as_str() };
    let object = context.app.find("", plural, namespace, &name);
    let object = object.ok_or_else(|| Error::NotFound { resource: plural.to_owned(), name: name.clone() })?;
    if !uid.is_empty() && uid != *object.uid {
        return Err(Error::Conflict {
            resource: plural.to_owned(),
            name: name.clone(),
            message: format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
            ),
        });
    }
    let reference = Reference { name: name.clone(), uid: object.uid.to_string() };
    match plural {
        "secrets" => bound.secret = Some(reference),
        "nodes" => bound.node = Some(reference),
        _ => {
            let pod = object.value();
            let account = pod.pointer("/spec/serviceAccountName").and_then(Value::as_str).unwrap_or_default();
            if account != bound.serviceaccount.name {
                let mut errors = FieldErrors::default();
                errors.push(
                    FieldReason::Invalid,
                    "spec.boundObjectRef.name",
                    format!("Invalid value: {name:?}: cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.", bound.serviceaccount.name),
                );
                return Err(Error::Invalid {
                    kind: "TokenRequest.authentication.k8s.io".to_owned(),
                    name: String::new(),
                    errors,
                });
            }
            let node = pod.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or_default();
            if let Some(asking) = context.identity.node_name()
                && asking != node
            {
                return Err(Error::Forbidden {
                    resource: "serviceaccounts".to_owned(),
                    name: bound.serviceaccount.name.clone(),
                    message: format!(
                        "serviceaccounts {:?} is forbidden: node {asking:?} requested a token bound to a pod scheduled on a different node",
                        bound.serviceaccount.name
                    ),
                });
            }
            if !node.is_empty() {
                let uid = context.app.find("", "nodes", "", node).map(|node| node.uid.to_string()).unwrap_or_default();
                bound.node = Some(Reference { name: node.to_owned(), uid });
            }
            bound.pod = Some(reference);
        }
    }
    Ok(())
}
