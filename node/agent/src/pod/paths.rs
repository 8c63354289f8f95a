//! Where a pod's files are. Everything of a tenant lies below one directory, which is all that its
//! host process can see.

use std::path::{Path, PathBuf};

use crate::runtime::ContainerId;

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
    pod(uid).join("volumes").join(volume)
}

pub fn container(uid: &str, container: &str) -> PathBuf {
    pod(uid).join(container)
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

/// The namespace whose network a tenant is in.
pub fn namespace_of(tenant: &str) -> &str {
    tenant.split_once('.').map_or(tenant, |(namespace, _)| namespace)
}
