//! The node as the cluster sees it: its object, its lease, its conditions.

pub mod disk;
mod facts;
mod lease;
mod register;

pub use disk::Pressure;
pub use facts::{Facts, capacity};
pub use lease::renew;
pub use register::{Registration, register, wait_for_range};
