//! The Wasm host: everything between a module's bytes and a running container.
//!
//! Guests run in a process of their own per tenant ([`host`]), which the node's agent starts or
//! adopts through [`launch`] and drives over gRPC. Untrusted bytes are recognised by [`module`]
//! and compiled in yet another process ([`compile`]). The node agent and the containerd shim are
//! both users of this library.

pub mod cgroup;
pub mod compile;
pub mod engine;
pub mod host;
pub mod launch;
mod limits;
mod logs;
pub mod module;
mod net;
pub mod process;
pub mod proto;
mod raw;
mod sandbox;
mod stdio;
mod taps;
mod tty;

pub use launch::{Host, HostConfig};
pub use module::{Cache, Module};
pub use proto::ModuleKind;
