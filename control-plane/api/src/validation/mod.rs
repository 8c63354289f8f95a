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
use crate::kinds::{namespace, pod};

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

    /// Keeps what a write to a subresource (or, for an empty name, to the object) may not change.
    pub fn prepare_write(&self, subresource: &str, new: &mut Value, old: &Value) {
        match (subresource, self.kind) {
            ("status", _) => (self.strategy.prepare_status_update)(new, old),
            ("ephemeralcontainers", _) => pod::update::prepare_ephemeral(new, old),
            ("resize", _) => pod::update::prepare_resize(new, old),
            ("finalize", "Namespace") => namespace::prepare_finalize(new, old),
            // The server itself made these out of the stored object.
            ("binding" | "eviction", _) => {}
            _ => (self.strategy.prepare_update)(new, old),
        }
    }

    /// Everything that is checked on a write to a subresource or, for an empty name, to the object.
    pub fn validate_write(&self, subresource: &str, new: &Value, old: &Value) -> FieldErrors {
        match (subresource, self.kind) {
            ("status" | "binding" | "eviction", _) => self.validate_status_update(new, old),
            ("ephemeralcontainers", _) => pod::update::validate_ephemeral(new, old),
            ("resize", _) => pod::update::validate_resize(new, old),
            ("finalize", "Namespace") => namespace::validate_finalize(new, old),
            _ => self.validate_update(new, old),
        }
    }

    /// Everything that is checked when an object's status is changed.
    pub fn validate_status_update(&self, new: &Value, old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        metadata::validate_update(self, new, old, &mut errors);
        (self.strategy.validate_status_update)(new, old, &mut errors);
        errors
    }
}
