//! The node's agent: what the kubelet is to Kubernetes.
//!
//! A pod bound to this node goes through a [state machine](pod::machine) that knows neither clock
//! nor disk nor network; a [manager](pod::worker) does what it decides. Containers run behind
//! [`runtime::Runtime`]: in [Wasm host processes](wasm) and in [containerd](oci), never in this one,
//! which holds the node's credentials. The agent reaches the cluster only through the Kubernetes API.

pub mod api;
mod beneath;
pub mod image;
pub mod join;
pub mod leftovers;
pub mod logs;
mod network;
pub mod node;
pub mod oci;
pub mod pod;
mod run;
pub mod runtime;
mod streams;
pub mod wasm;

pub use image::collect::Thresholds;
pub use join::{Certificate, CertificateRequest, Joined, join};
pub use run::{Config, run};
