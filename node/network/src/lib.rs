//! A node's network: pod addresses, a network namespace per tenant, Services and cluster DNS.
//!
//! Privileged, a tenant (namespace) has a network namespace of its own, joined to the machine by
//! one veth; Services are nftables maps, or a userspace proxy where there is no `nft`.
//! Unprivileged, pods and Services live in 127.0.0.0/8 and the proxy serves them.
//!
//! What this crate makes outlives the process: pods go on while their agent restarts. It is
//! written down before it is made, and [`clean`] removes just that.

mod addresses;
mod dns;
mod error;
mod files;
mod mode;
mod namespace;
mod netlink;
mod network;
mod nodes;
mod overlay;
mod records;
mod routes;
mod services;
mod tenants;
mod ways;

pub use error::{Error, Result};
pub use mode::{Mode, detect_mode};
pub use network::{Assignment, Config, Network, PortShift, Tenant};
pub use records::{Removed, clean};
pub use services::nft::tables_in_force;

#[cfg(test)]
mod testing;
