//! Validation: names, metadata, and what requests to subresources carry.

pub mod common;
pub mod field;
pub mod metadata;
pub mod names;
pub mod net;
pub mod requests;

use serde_json::Value;

use crate::error::FieldErrors;
use crate::kind::Kind;

pub use field::{Field, Path};

impl Kind {
    /// Everything that is checked when an object is created: its metadata, then the kind's own rules.
    pub fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        metadata::validate(self, object, &mut errors);
        (self.strategy.validate)(object, &mut errors);
        errors
    }

    /// Everything that is checked when an object is changed.
    pub fn validate_update(&self, new: &Value, old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        metadata::validate_update(self, new, old, &mut errors);
        (self.strategy.validate_update)(new, old, &mut errors);
        errors
    }

    /// Everything that is checked when an object's status is changed.
    pub fn validate_status_update(&self, new: &Value, old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        metadata::validate_update(self, new, old, &mut errors);
        (self.strategy.validate_status_update)(new, old, &mut errors);
        errors
    }
}
