//! The Kubernetes API as data: kinds, their schema, encodings, patches, selectors, validation and
//! printing. Nothing here does input or output.

pub mod apply;
pub mod codec;
pub mod error;
pub mod kind;
pub mod kinds;
pub mod openapi;
pub mod patch;
pub mod quantity;
pub mod schema;
pub mod selector;
pub mod table;
pub mod validation;

pub use error::{Error, FieldError, FieldErrors, FieldReason};
pub use kind::Kind;
