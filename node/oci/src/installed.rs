//! The programs that a containerd of our own needs.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Beside PATH, which an ordinary user's shell keeps short.
const PLACES: &[&str] =
    &["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/libexec/containerd"];
/// Where distributions put CNI's plugins.
const CNI_PLACES: &[&str] = &["/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"];
/// The plugins that every pod needs.
const CNI_PLUGINS: &[&str] = &["ptp", "host-local", "loopback"];

/// At least one of runc and crun is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    pub containerd: PathBuf,
    pub runc: Option<PathBuf>,
    pub crun: Option<PathBuf>,
    /// The directory of CNI's plugins.
    pub cni_plugins: PathBuf,
    /// Masquerade and host ports need it.
    pub iptables: bool,
}

impl Installed {
    /// What is here; the error names all that is not.
    pub fn find() -> Result<Installed> {
        let mut missing = Vec::new();
        let mut need = |name: &'static str| {
            let found = program(name);
            if found.is_none() {
                missing.push(name);
            }
            found
        };
        let (containerd, _shim) = (need("containerd"), need("containerd-shim-runc-v2"));
        let (runc, crun) = (program("runc"), program("crun"));
        if runc.is_none() && crun.is_none() {
            missing.push("runc (or crun)");
        }
        let complete = |dir: &&&str| CNI_PLUGINS.iter().all(|plugin| executable(&Path::new(dir).join(plugin)));
        let cni_plugins = CNI_PLACES.iter().find(complete).map(PathBuf::from);
        if cni_plugins.is_none() {
            missing.push("the CNI plugins ptp, host-local and loopback");
        }
        match (containerd, cni_plugins) {
            (Some(containerd), Some(cni_plugins)) if missing.is_empty() => {
                Ok(Installed { containerd, runc, crun, cni_plugins, iptables: program("iptables").is_some() })
            }
            _ => Err(Error::Daemon(format!("not installed: {}", missing.join(", ")))),
        }
    }
}

pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(PLACES.iter().map(PathBuf::from));
    places.map(|dir| dir.join(name)).find(|file| executable(file))
}

pub(crate) fn executable(file: &Path) -> bool {
    file.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}
