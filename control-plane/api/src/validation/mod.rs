//! Validation: names, metadata, and what requests to subresources carry.

pub mod names;
