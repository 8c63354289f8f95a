//! Generated from `proto/`.
#![allow(clippy::all, clippy::unwrap_used, missing_docs, non_camel_case_types)]

include!(concat!(env!("OUT_DIR"), "/proto.rs"));

pub use runtime::v1 as cri;
