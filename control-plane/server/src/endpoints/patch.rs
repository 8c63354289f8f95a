//! `PATCH`: JSON patch, merge patch, strategic merge patch and server-side apply.

use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use sampan_api::apply::{self, Writer};
use sampan_api::codec::FieldValidation;
use sampan_api::schema::Schema;
use sampan_api::{Error, FieldErrors, FieldReason, Kind, codec, patch};
use serde_json::Value;

use super::get::respond_written;
use super::{Context, read_body, update};
use crate::registry::{Preconditions, Written, check_name, meta, not_found};
use crate::respond;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Json,
    Merge,
    Strategic,
    Apply,
}

/// A patch whose body is still to be read.
pub struct Patch(Type);

/// A patch as it was read.
pub struct Parsed {
    of: Type,
    patch: Bytes,
    validation: FieldValidation,
}

impl Patch {
    pub fn read(context: &Context) -> Result<Self, Error> {
        let media = context.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        match media.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => Ok(Self(Type::Json)),
            "application/merge-patch+json" => Ok(Self(Type::Merge)),
            "application/strategic-merge-patch+json" => Ok(Self(Type::Strategic)),
            "application/apply-patch+yaml" => Ok(Self(Type::Apply)),
            _ => Err(Error::UnsupportedMediaType("415: Unsupported Media Type".to_owned())),
        }
    }

    pub fn is_apply(&self) -> bool {
        self.0 == Type::Apply
    }

    pub fn parse(self, body: Bytes, validation: FieldValidation) -> Parsed {
        Parsed { of: self.0, patch: body, validation }
    }
}

impl Parsed {
    fn error(&self, patched: &Value, detail: &str) -> Error {
        let mut errors = FieldErrors::default();
        // The reference shows the patch where it is strategic, else what came of it.
        let shown = match self.of {
            Type::Strategic => String::from_utf8_lossy(&self.patch).into_owned(),
            _ => patched.to_string(),
        };
        errors.push(FieldReason::Invalid, "patch", format!("Invalid value: {}: {detail}", Value::from(shown)));
        Error::Invalid { kind: String::new(), name: String::new(), errors }
    }

    /// Applies the patch to a value of a schema type; unknown fields are told as asked for.
    pub fn on_type(&self, schema: &str, old: &Value, warnings: &mut Vec<String>) -> Result<Value, Error> {
        let patched = match self.of {
            Type::Json => patch::json_patch(old, &self.patch)?,
            Type::Merge => patch::merge_patch(old, &self.patch)?,
            Type::Strategic => {
                let of = Schema::get().type_(schema).ok_or(Error::UnknownPath)?;
                patch::strategic_merge(of, old, &self.patch)?
            }
            Type::Apply => {
                return Err(Error::UnsupportedMediaType("415: Unsupported Media Type".to_owned()));
            }
        };
        let canonical = codec::canonicalize_type(schema, &patched).map_err(|error| self.error(&patched, &error))?;
        if !canonical.strict.is_empty() {
            match self.validation {
                FieldValidation::Ignore => {}
                FieldValidation::Warn => warnings.extend(canonical.strict.iter().cloned()),
                FieldValidation::Strict => {
                    let list = canonical.strict.join(", ");
                    return Err(self.error(&patched, &format!("strict decoding error: {list}")));
                }
            }
        }
        Ok(canonical.object)
    }
}

pub async fn serve(
    context: &mut Context,
    kind: &'static Kind,
    subresource: &'static str,
    request: Request,
) -> Result<Response, Error> {
    let form = respond::negotiate(&context.headers, &context.query, false)?;
    let patch = Patch::read(context)?;
    let dry_run = context.check_patch_options(patch.is_apply())?;
    let body = read_body(request).await?;
    let patch = patch.parse(body, context.field_validation());
    if patch.of == Type::Apply {
        let applied = codec::yaml_to_json(&patch.patch)
            .map_err(|error| Error::BadRequest(format!("error decoding YAML: {error}")))?;
        return apply_patch(context, kind, subresource, form, applied, dry_run).await;
    }
    let name = context.path.name.clone();
    let manager = context.field_manager();
    let mut warnings = Vec::new();
    let written = context
        .write(kind, subresource, Some(&manager), dry_run)
        .update(&name, Preconditions::default(), &mut warnings, |old, warnings| {
            let new = patch.on_type(kind.schema, old, warnings)?;
            Ok(update::part(subresource, &new, old))
        })
        .await;
    context.warnings.append(&mut warnings);
    Ok(respond_written(context, kind, form, StatusCode::OK, written?))
}

async fn apply_patch(
    context: &mut Context,
    kind: &'static Kind,
    subresource: &'static str,
    form: respond::Form,
    applied: Value,
    dry_run: bool,
) -> Result<Response, Error> {
    let name = context.path.name.clone();
    let manager = context.query.text("fieldManager").to_owned();
    let force = context.query.flag("force") == Some(true);
    let validation = context.field_validation();
    let app = context.app.clone();
    let text = |key: &str| applied.get(key).and_then(Value::as_str).unwrap_or_default();
    let (api_version, of_kind) = (text("apiVersion"), text("kind"));
    if (api_version, of_kind) != (kind.api_version().as_str(), kind.kind) {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        return Err(Error::BadRequest(format!("invalid object type: {group}/{version}, Kind={of_kind}")));
    }
    check_name(&applied, &name)?;
    let result = |live: Option<&Value>, warnings: &mut Vec<String>| -> Result<Value, Error> {
        let now = app.now_text();
        let writer = Writer { manager: &manager, subresource, now: &now };
        let new = apply::apply(kind, live, &applied, writer, force)?;
        let canonical = codec::canonicalize(kind, &new).map_err(|error| {
            Error::BadRequest(format!(
                "{} in version {:?} cannot be handled as a {}: {error}",
                kind.kind, kind.version, kind.kind
            ))
        })?;
        match validation {
            FieldValidation::Warn => warnings.extend(canonical.strict),
            FieldValidation::Strict if !canonical.strict.is_empty() => {
                return Err(Error::BadRequest(format!("strict decoding error: {}", canonical.strict.join(", "))));
            }
            _ => {}
        }
        Ok(canonical.object)
    };
    let mut warnings = Vec::new();
    // Made and deleted by others meanwhile: a few rounds are enough.
    for _ in 0..8 {
        warnings.clear();
        let write = context.write(kind, subresource, None, dry_run);
        let exists =
            context.app.cache.of(kind).is_some_and(|cache| cache.get(&context.path.namespace, &name).is_some());
        let (status, written) = if exists {
            let written = write
                .update(&name, Preconditions::default(), &mut warnings, |old, warnings| {
                    let new = result(Some(old), warnings)?;
                    Ok(update::part(subresource, &new, old))
                })
                .await;
            if matches!(written, Err(Error::NotFound { .. })) {
                continue;
            }
            (StatusCode::OK, written)
        } else if !subresource.is_empty() {
            return Err(not_found(kind, &name));
        } else {
            context.require_create(kind)?;
            let created: Result<Written, Error> = async {
                let mut object = result(None, &mut warnings)?;
                if !meta(&object, "uid").is_empty() {
                    return Err(crate::registry::conflict(
                        kind,
                        &name,
                        format!(
                            "uid mismatch: the provided object specified uid {}, and no existing object was found",
                            meta(&object, "uid")
                        ),
                    ));
                }
                (kind.strategy.default)(&mut object);
                write.create(object, &mut warnings).await
            }
            .await;
            if matches!(created, Err(Error::AlreadyExists { .. })) {
                continue;
            }
            (StatusCode::CREATED, created)
        };
        context.warnings.append(&mut warnings);
        return Ok(respond_written(context, kind, form, status, written?));
    }
    Err(crate::registry::conflict(kind, &name, crate::registry::MODIFIED))
}
