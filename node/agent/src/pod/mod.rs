//! A pod from "bound here" to "gone".
//!
//! [`machine`] decides, without I/O and with the time handed in; [`worker`] does what it decided
//! and hands back what came of it. Everything else here is one concern of theirs.

pub mod admit;
pub mod backoff;
pub mod container;
mod disk_usage;
pub mod empty_dir;
pub mod env;
mod evict;
pub mod expand;
pub mod ground;
mod hooks;
pub mod image_volumes;
pub mod machine;
pub mod mounts;
pub mod objects;
pub mod paths;
pub mod prober;
pub mod probes;
mod publish;
pub mod refuse;
pub mod resources;
pub mod shared;
pub mod spec;
pub mod start;
pub mod status;
mod steps;
mod tenants;
pub mod volumes;
pub mod work;
pub mod worker;
pub mod writer;

#[cfg(test)]
mod machine_tests;
