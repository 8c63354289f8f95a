//! `POST` of a new object.

use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use sampan_api::{Error, Kind, codec};

use super::get::respond_written;
use super::{Context, body_media};
use crate::respond;

pub async fn serve(context: &mut Context, kind: &'static Kind, body: &Bytes) -> Result<Response, Error> {
    let form = respond::negotiate(&context.headers, &context.query, false)?;
    let media = body_media(&context.headers)?;
    let dry_run = context.check_options("CreateOptions")?;
    let decoded = codec::decode(kind, body, media, context.field_validation())?;
    let mut warnings = decoded.warnings;
    let mut object = decoded.object;
    (kind.strategy.default)(&mut object);
    let manager = context.field_manager();
    let result = context.write(kind, "", Some(&manager), dry_run).create(object, &mut warnings).await;
    context.warnings.append(&mut warnings);
    Ok(respond_written(context, kind, form, StatusCode::CREATED, result?))
}
