//! What is done to pods: bound to a node, evicted.

use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use sampan_api::validation::requests;
use sampan_api::{Error, Kind, codec, kinds};
use serde_json::{Map, Value, json};

use super::{Context, body_media, delete};
use crate::registry::{MODIFIED, Preconditions, conflict, meta};
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
    context.warnings.extend(decoded.warnings);
    let binding = decoded.object;
    let given = meta(&binding, "name").to_owned();
    let name = if context.path.subresource.is_empty() { given.clone() } else { context.path.name.clone() };
    if given != name {
        return Err(Error::BadRequest("name in URL does not match name in Binding object".to_owned()));
    }
    requests::binding(&binding, &name)?;
    let uid = meta(&binding, "uid").to_owned();
    let version = meta(&binding, "resourceVersion").to_owned();
    let now = context.app.now_text();
    context
        .write(pods, "binding", None, dry_run)
        .alter(&name, Preconditions { uid: &uid }, |pod| {
            if !version.is_empty() && version != "0" && version != meta(pod, "resourceVersion") {
                return Err(conflict(pods, &name, MODIFIED));
            }
            kinds::pod::update::bind(pod, &binding, &now).map_err(|message| Error::Conflict {
                resource: "pods/binding".to_owned(),
                name: name.clone(),
                message,
            })
        })
        .await?;
    done(context)
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
