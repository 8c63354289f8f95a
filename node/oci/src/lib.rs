//! OCI containers through containerd: sandboxes, containers, images and events over CRI and
//! containerd's own services, and a containerd of our own where none runs.
//!
//! - Knows neither the Kubernetes API nor the node's agent. What it keeps, containerd keeps: a caller
//!   that lost everything finds its pods again by listing them.
//! - An answer of containerd is data from outside: what is missing is an [`Error`], never a panic.
//! - [`Containerd`] connects again by itself; [`Event::Resync`] says when events may have been missed.
//! - Nothing of an archive is written before all of it was checked, and a lease holds what is written
//!   until a name holds it.
//! - A [`Daemon`] outlives us and is found again; [`Daemon::purge`] leaves nothing of it behind, not
//!   even of one that was killed: everything it makes lies in directories that its own path names.

pub mod cgroup;
mod client;
pub mod cni;
mod config;
mod container;
mod daemon;
mod error;
mod events;
mod exec;
mod image;
mod import;
mod installed;
mod json;
pub mod layout;
mod lease;
mod pause;
mod ports;
mod proto;
mod purge;
mod sandbox;
mod security;
mod settings;
mod stats;
mod status;
pub mod testing;
mod view;

pub use client::{Condition, Containerd, Version};
pub use container::{ContainerConfig, Device, Hugepages, Mount, Propagation, Resources};
pub use daemon::{Daemon, DaemonOptions};
pub use error::{Error, Result};
pub use events::{Event, Events};
pub use exec::{ExecOutput, ExecStreams};
pub use image::{Credentials, FileSystem, Image, ImageConfig};
pub use installed::Installed;
pub use pause::REFERENCE as PAUSE_IMAGE;
pub use purge::{is_mounted_below, unmount_below};
pub use sandbox::{Dns, PortMapping, Protocol, Sandbox, SandboxConfig, SandboxFilter, SandboxState, SandboxStatus};
pub use security::{Capabilities, IpcMode, Namespaces, NetworkMode, PidMode, Profile, Security};
pub use settings::{Handler, Settings};
pub use stats::ContainerStats;
pub use status::{Container, ContainerFilter, ContainerState, ContainerStatus};
pub use view::{View, ViewMount, mount_view};
