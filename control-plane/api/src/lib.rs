//! The Kubernetes API as data: kinds, their schema, encodings, patches, selectors, validation and
//! printing. Nothing here does input or output.

pub mod error;
pub mod kind;
pub mod kinds;
pub mod validation;

pub use error::{Error, FieldError, FieldErrors, FieldReason};
pub use kind::Kind;
