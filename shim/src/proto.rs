//! containerd's protocols, generated from `proto/`.
#![allow(clippy::all, clippy::unwrap_used, missing_docs)]

pub mod ttrpc {
    include!(concat!(env!("OUT_DIR"), "/ttrpc.rs"));
}

pub mod task {
    include!(concat!(env!("OUT_DIR"), "/containerd.task.v2.rs"));
}

pub mod events {
    include!(concat!(env!("OUT_DIR"), "/containerd.events.rs"));
}

pub mod metrics {
    include!(concat!(env!("OUT_DIR"), "/io.containerd.cgroups.v1.rs"));
}
