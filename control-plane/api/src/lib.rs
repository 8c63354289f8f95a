//! The Kubernetes API as data: kinds, their schema, encodings, patches, selectors, validation and
//! printing. Nothing here does input or output.

pub mod codec;
pub mod selector;
pub mod patch;
pub mod apply;
pub mod error;
pub mod kind;
pub mod openapi;
pub mod quantity;
pub mod schema;
pub mod kinds;
pub mod table;
pub mod validation;

pub use error::{Error, FieldError, FieldErrors, FieldReason};
pub use kind::Kind;
