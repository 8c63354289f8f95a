//! The protocol between agent and host, generated from `proto/host.proto`.
#![allow(clippy::all, clippy::unwrap_used, missing_docs)]

tonic::include_proto!("sampan.wasm.v1");

/// Raised when a host of another release can no longer be driven.
pub const PROTOCOL: u32 = 2;
