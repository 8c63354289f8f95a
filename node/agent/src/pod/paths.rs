//! Where a pod's files are. Everything of a tenant lies below one directory, and its pods' below
//! `pods`, which is all that its host process can see:
//!
//! ```text
//! tenants/TENANT/host.sock, host.json, host.log
//!         pods/UID/containers/NAME/0.log, 0.exit, 0.message   the host's own to write
//!                  volumes/NAME                               so too for an emptyDir
//!                  volumes/.guests/NAME                       copies for the host, where Linux is beside it
//!                  files/NAME/0                               copies of single files
//! ```
//!
//! Every other directory is the agent's, so that no part of these paths is a link that something
//! broken out of a guest has laid. What lies in the host's own is opened by [`crate::beneath`].

use std::path::{Path, PathBuf};

use crate::runtime::ContainerId;

/// Below a pod's directory.
pub const CONTAINERS: &str = "containers";
pub const FILES: &str = "files";

#[derive(Clone, Debug)]
pub struct Paths {
    /// The node's directory.
    pub dir: PathBuf,
}

impl Paths {
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    pub fn tenants(&self) -> PathBuf {
        self.dir.join("tenants")
    }

    pub fn tenant(&self, tenant: &str) -> PathBuf {
        self.tenants().join(tenant)
    }

    pub fn pods(&self, tenant: &str) -> PathBuf {
        self.tenant(tenant).join("pods")
    }

    pub fn pod(&self, tenant: &str, uid: &str) -> PathBuf {
        self.tenant(tenant).join(pod(uid))
    }

    pub fn volume(&self, tenant: &str, uid: &str, volume: &str) -> PathBuf {
        self.tenant(tenant).join(self::volume(uid, volume))
    }

    pub fn log(&self, id: &ContainerId) -> PathBuf {
        self.tenant(&id.tenant).join(log(id))
    }

    pub fn modules(&self) -> PathBuf {
        self.dir.join("modules")
    }

    pub fn images(&self) -> PathBuf {
        self.dir.join("images")
    }
}

/// Below the tenant's directory, as everything after it.
pub fn pod(uid: &str) -> PathBuf {
    Path::new("pods").join(uid)
}

pub fn volume(uid: &str, volume: &str) -> PathBuf {
    volumes(uid).join(volume)
}

/// A copy of a volume for WebAssembly beside Linux containers. No volume has a dot in its name.
pub fn guest_volume(uid: &str, volume: &str) -> PathBuf {
    volumes(uid).join(".guests").join(volume)
}

pub fn volumes(uid: &str) -> PathBuf {
    pod(uid).join("volumes")
}

pub fn containers(uid: &str) -> PathBuf {
    pod(uid).join(CONTAINERS)
}

/// Writable by the tenant's host process.
pub fn container(uid: &str, container: &str) -> PathBuf {
    containers(uid).join(container)
}

/// What a pod's containers have as `/etc/hosts`.
pub fn etc_hosts(uid: &str) -> PathBuf {
    pod(uid).join("etc-hosts")
}

/// Copies of files that are mounted one by one.
pub fn files(uid: &str, container: &str, attempt: u32) -> PathBuf {
    pod(uid).join(FILES).join(container).join(attempt.to_string())
}

pub fn log(id: &ContainerId) -> PathBuf {
    container(&id.pod_uid, &id.container).join(format!("{}.log", id.attempt))
}

pub fn exit(id: &ContainerId) -> PathBuf {
    container(&id.pod_uid, &id.container).join(format!("{}.exit", id.attempt))
}

pub fn termination_message(id: &ContainerId) -> PathBuf {
    container(&id.pod_uid, &id.container).join(format!("{}.message", id.attempt))
}

/// The tenant of a pod with a host process of its own: namespaces have no dots.
pub fn isolated_tenant(namespace: &str, uid: &str) -> String {
    format!("{namespace}.{uid}")
}

/// Whether a tenant is a single pod.
pub fn is_isolated(tenant: &str) -> bool {
    tenant.contains('.')
}

/// The namespace whose network a tenant is in.
pub fn namespace_of(tenant: &str) -> &str {
    tenant.split_once('.').map_or(tenant, |(namespace, _)| namespace)
}
