//! Errors of the API's own domain. They know nothing of HTTP: `status` turns one into a
//! Kubernetes `Status`, the only place where a code is chosen.

use serde_json::{Map, Value, json};

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
    #[error("{kind} {name:?} is invalid")]
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
    /// 422 without a field: a patch that cannot be applied to the object as it is.
    #[error("{0}")]
    Unprocessable(String),
    /// An error that the reference answers with 500 and no reason.
    #[error("{0}")]
    Unclassified(String),
    /// An answer worded elsewhere (a node's, an admission's): passed on unchanged.
    #[error("{}", .0.get("message").and_then(Value::as_str).unwrap_or_default())]
    Status(Box<Value>),
}

/// Splits `deployments.apps` into plural and group.
fn split(resource: &str) -> (&str, &str) {
    resource.split_once('.').unwrap_or((resource, ""))
}

/// `details` that name a resource or kind and an object; empty parts are left out.
fn details(resource: &str, name: &str) -> Map<String, Value> {
    let (kind, group) = split(resource);
    let mut map = Map::new();
    for (key, value) in [("group", group), ("kind", kind), ("name", name)] {
        if !value.is_empty() {
            map.insert(key.to_owned(), value.into());
        }
    }
    map
}

fn causes(of: impl Iterator<Item = Cause>) -> Value {
    of.map(|cause| {
        let mut map = Map::new();
        for (key, value) in [("reason", cause.reason), ("message", cause.message), ("field", cause.field)] {
            if !value.is_empty() {
                map.insert(key.to_owned(), value.into());
            }
        }
        Value::Object(map)
    })
    .collect()
}

impl FieldErrors {
    /// All errors in one line: `[a, b]` where there are several. Equal ones are told once.
    pub fn to_line(&self) -> String {
        let mut lines: Vec<String> = Vec::new();
        for error in &self.0 {
            let line = error.to_string();
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
        match lines.len() {
            1 => lines.swap_remove(0),
            _ => format!("[{}]", lines.join(", ")),
        }
    }
}

impl std::fmt::Display for FieldError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

impl Error {
    /// The HTTP code and the word in `reason`.
    fn code(&self) -> (u16, &'static str) {
        match self {
            Self::NotFound { .. } | Self::UnknownPath => (404, "NotFound"),
            Self::AlreadyExists { .. } => (409, "AlreadyExists"),
            Self::Conflict { .. } | Self::ApplyConflict { .. } => (409, "Conflict"),
            Self::Invalid { .. } | Self::Unprocessable(_) => (422, "Invalid"),
            Self::BadRequest(_) => (400, "BadRequest"),
            Self::Unauthorized => (401, "Unauthorized"),
            Self::Forbidden { .. } => (403, "Forbidden"),
            Self::MethodNotAllowed => (405, "MethodNotAllowed"),
            Self::NotAcceptable(_) => (406, "NotAcceptable"),
            Self::UnsupportedMediaType(_) => (415, "UnsupportedMediaType"),
            Self::Expired(_) => (410, "Expired"),
            Self::FutureVersion { .. } | Self::Timeout(_) => (504, "Timeout"),
            Self::TooManyRequests { .. } => (429, "TooManyRequests"),
            Self::RequestTooLarge(_) => (413, "RequestEntityTooLarge"),
            Self::ServiceUnavailable(_) => (503, "ServiceUnavailable"),
            Self::Internal(_) => (500, "InternalError"),
            Self::Unclassified(_) => (500, ""),
            Self::Status(status) => {
                let code = status.get("code").and_then(Value::as_u64).and_then(|code| u16::try_from(code).ok());
                (code.unwrap_or(500), "")
            }
        }
    }

    /// The Kubernetes `Status` of this error: HTTP code and JSON body.
    pub fn status(&self) -> (u16, Value) {
        let (code, reason) = self.code();
        let mut message = self.to_string();
        let details: Option<Map<String, Value>> = match self {
            Self::Status(status) => return (code, status.as_ref().clone()),
            Self::NotFound { resource, name }
            | Self::AlreadyExists { resource, name }
            | Self::Conflict { resource, name, .. }
            | Self::Forbidden { resource, name, .. } => Some(details(resource, name)),
            Self::ApplyConflict { causes: list, .. } => {
                Some(Map::from_iter([("causes".to_owned(), causes(list.iter().cloned()))]))
            }
            Self::Invalid { kind, name, errors } => {
                let mut map = details(kind, name);
                if !errors.is_empty() {
                    message = format!("{message}: {}", errors.to_line());
                    let list = errors.0.iter().map(|error| Cause {
                        reason: error.reason.as_str().to_owned(),
                        message: error.message.clone(),
                        field: error.field.clone(),
                    });
                    map.insert("causes".to_owned(), causes(list));
                }
                Some(map)
            }
            Self::UnknownPath | Self::MethodNotAllowed => Some(Map::new()),
            // The router's own refusals carry empty details, the negotiation's none.
            Self::NotAcceptable(text) | Self::UnsupportedMediaType(text) => {
                text.starts_with(&format!("{code}: ")).then(Map::new)
            }
            Self::FutureVersion { .. } => {
                message = format!("Timeout: {message}");
                let cause = json!([{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]);
                Some(Map::from_iter([("causes".to_owned(), cause), ("retryAfterSeconds".to_owned(), 1.into())]))
            }
            Self::Timeout(_) => {
                message = format!("Timeout: {message}");
                Some(Map::new())
            }
            Self::TooManyRequests { retry_after_seconds, .. } => {
                let mut map = Map::new();
                if *retry_after_seconds > 0 {
                    map.insert("retryAfterSeconds".to_owned(), (*retry_after_seconds).into());
                }
                Some(map)
            }
            Self::RequestTooLarge(text) => {
                message = format!("Request entity too large: {text}");
                None
            }
            Self::Internal(text) => {
                message = format!("Internal error occurred: {text}");
                Some(Map::from_iter([("causes".to_owned(), json!([{"message": text}]))]))
            }
            Self::BadRequest(_)
            | Self::Unauthorized
            | Self::Expired(_)
            | Self::ServiceUnavailable(_)
            | Self::Unprocessable(_)
            | Self::Unclassified(_) => None,
        };
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "code": code,
        });
        if let Some(map) = status.as_object_mut() {
            if !reason.is_empty() {
                map.insert("reason".to_owned(), reason.into());
            }
            if let Some(details) = details {
                map.insert("details".to_owned(), Value::Object(details));
            }
        }
        (code, status)
    }

    /// Seconds a client is asked to wait (`Retry-After`), where the status says so.
    pub fn retry_after(&self) -> Option<u32> {
        match self {
            Self::TooManyRequests { retry_after_seconds, .. } if *retry_after_seconds > 0 => Some(*retry_after_seconds),
            Self::FutureVersion { .. } => Some(1),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invalid_object_tells_every_cause_once() {
        let mut errors = FieldErrors::default();
        for field in ["a", "b", "a"] {
            errors.push(FieldReason::Required, field, "Required value");
        }
        let error = Error::Invalid { kind: "Deployment.apps".into(), name: "d".into(), errors };
        let (code, status) = error.status();
        assert_eq!(code, 422);
        let message = "Deployment.apps \"d\" is invalid: [a: Required value, b: Required value]";
        assert_eq!(status.get("message"), Some(&json!(message)));
        assert_eq!(status.pointer("/details/kind"), Some(&json!("Deployment")));
        assert_eq!(status.pointer("/details/group"), Some(&json!("apps")));
    }

    #[test]
    fn statuses() {
        let (code, status) = Error::FutureVersion { requested: 9, current: 1 }.status();
        assert_eq!((code, status.get("reason")), (504, Some(&json!("Timeout"))));
        let message = "Timeout: Too large resource version: 9, current: 1";
        assert_eq!(status.get("message"), Some(&json!(message)));
        let (code, status) = Error::Unclassified("odd".into()).status();
        assert_eq!((code, status.get("reason")), (500, None));
        let (_, status) = Error::NotAcceptable("406: Not Acceptable".into()).status();
        assert_eq!(status.get("details"), Some(&json!({})));
    }
}
