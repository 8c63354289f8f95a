//! `GET` of one object.

use axum::response::Response;
use http::StatusCode;
use sampan_api::{Error, Kind};

use super::Context;
use crate::cache::Object;
use crate::registry::{Written, not_found, shown};
use crate::respond::{self, Form, Shape};

pub async fn serve(context: &mut Context, kind: &'static Kind) -> Result<Response, Error> {
    let form = respond::negotiate(&context.headers, &context.query, false)?;
    super::list::await_version(context, context.query.text("resourceVersion")).await?;
    let cache = context.app.cache.of(kind).ok_or(Error::UnknownPath)?;
    let name = &context.path.name;
    let object = cache.get(&context.path.namespace, name).ok_or_else(|| not_found(kind, name))?;
    Ok(respond_object(context, kind, form, StatusCode::OK, &object))
}

/// An object of the cache: its bytes as they are, where they are what was asked for.
pub fn respond_object(
    context: &Context,
    kind: &'static Kind,
    form: Form,
    status: StatusCode,
    object: &Object,
) -> Response {
    if form.shape == Shape::Object && kind.stored_as.is_none() {
        return respond::encoded(form, status, vec![object.bytes()]);
    }
    respond_value(context, kind, form, status, shown(kind, object))
}

pub fn respond_value(
    context: &Context,
    kind: &'static Kind,
    form: Form,
    status: StatusCode,
    value: serde_json::Value,
) -> Response {
    let now = context.app.now().as_second();
    respond::value(form, status, &respond::shaped(kind, form, value, &context.query, now))
}

pub fn respond_written(
    context: &Context,
    kind: &'static Kind,
    form: Form,
    status: StatusCode,
    written: Written,
) -> Response {
    match written {
        Written::Stored(object) => respond_object(context, kind, form, status, &object),
        Written::Value(value) => respond_value(context, kind, form, status, value),
    }
}
