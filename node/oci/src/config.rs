//! The files of a containerd of our own: where they lie, and what is in its configuration.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::daemon::DaemonOptions;
use crate::error::{Error, Result};
use crate::installed::{Installed, program};
use crate::pause;

const RUN: &str = "/run/sampan";
const OVERLAY: rustix::fs::FsWord = 0x794c_7630;

/// Sockets have short paths, and data dirs long ones: sockets lie below `/run`, named by a hash of the dir.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    pub dir: PathBuf,
    pub run: PathBuf,
}

impl Paths {
    pub fn of(dir: &Path) -> Result<Paths> {
        let dir = std::path::absolute(dir).map_err(Error::io(dir))?;
        let hash: String = Sha256::digest(dir.as_os_str().as_encoded_bytes())
            .iter()
            .take(6)
            .fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
        Ok(Paths { run: Path::new(RUN).join(hash), dir })
    }

    pub fn make(&self) -> Result<()> {
        // A container that is not root in a user namespace has to pass through.
        let passable = std::fs::Permissions::from_mode(0o711);
        for dir in [self.dir.clone(), self.run.clone(), self.root(), self.state(), self.cni_conf(), self.registry()] {
            std::fs::create_dir_all(&dir).map_err(Error::io(&dir))?;
        }
        for dir in [&self.dir, &self.run] {
            std::fs::set_permissions(dir, passable.clone()).map_err(Error::io(dir))?;
        }
        Ok(())
    }

    pub fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    pub fn state(&self) -> PathBuf {
        self.run.join("state")
    }

    pub fn socket(&self) -> PathBuf {
        self.run.join("containerd.sock")
    }

    pub fn config(&self) -> PathBuf {
        self.dir.join("config.toml")
    }

    pub fn record(&self) -> PathBuf {
        self.dir.join("containerd.json")
    }

    pub fn log(&self) -> PathBuf {
        self.dir.join("containerd.log")
    }

    pub fn cni_conf(&self) -> PathBuf {
        self.dir.join("cni")
    }

    /// Which addresses host-local has given away.
    pub fn cni_state(&self) -> PathBuf {
        self.dir.join("cni-state")
    }

    /// `hosts.toml` per registry, in containerd's own layout.
    pub fn registry(&self) -> PathBuf {
        self.dir.join("registry")
    }

    pub fn crun(&self) -> PathBuf {
        self.dir.join("crun")
    }
}

/// A string of TOML: JSON's escapes are among TOML's.
fn quote(text: impl AsRef<Path>) -> String {
    serde_json::Value::from(text.as_ref().to_string_lossy()).to_string()
}

/// Version 2 of the format: all of 1.6, 1.7 and 2 read it.
pub(crate) fn render(paths: &Paths, installed: &Installed, options: &DaemonOptions) -> String {
    let cri = r#"plugins."io.containerd.grpc.v1.cri""#;
    let registry = options.registry_config_dir.clone().unwrap_or_else(|| paths.registry());
    let default = if installed.runc.is_some() { "runc" } else { "crun" };
    // Overlays do not stack.
    let on_overlay = rustix::fs::statfs(&paths.dir).is_ok_and(|fs| fs.f_type == OVERLAY);
    let snapshotter = if on_overlay { "native" } else { "overlayfs" };
    let mut text = format!(
        r#"version = 2
root = {root}
state = {state}
disabled_plugins = ["io.containerd.internal.v1.opt"]

[grpc]
address = {socket}

[debug]
level = "{level}"

[{cri}]
sandbox_image = {pause}
# What lacks CAP_SYS_RESOURCE can only raise a score.
restrict_oom_score_adj = true
tolerate_missing_hugetlb_controller = true
netns_mounts_under_state_dir = true
stream_server_address = "127.0.0.1"
stream_server_port = "0"

[{cri}.cni]
bin_dir = {plugins}
conf_dir = {conf}
max_conf_num = 1

[{cri}.registry]
config_path = {registry}

[{cri}.containerd]
snapshotter = "{snapshotter}"
default_runtime_name = "{default}"
"#,
        root = quote(paths.root()),
        state = quote(paths.state()),
        socket = quote(paths.socket()),
        level = if options.debug { "debug" } else { "info" },
        pause = quote(pause::REFERENCE),
        plugins = quote(&installed.cni_plugins),
        conf = quote(paths.cni_conf()),
        registry = quote(registry),
    );
    let crun = installed.crun.as_ref().map(|crun| if hybrid_cgroups() { paths.crun() } else { crun.clone() });
    for (name, binary) in [("runc", installed.runc.clone()), ("crun", crun)] {
        let Some(binary) = binary else { continue };
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            r#"
[{cri}.containerd.runtimes.{name}]
runtime_type = "io.containerd.runc.v2"

[{cri}.containerd.runtimes.{name}.options]
BinaryName = {binary}
Root = {root}
SystemdCgroup = false
"#,
            binary = quote(binary),
            root = quote(paths.run.join(name)),
        );
    }
    text
}

/// Control groups version 1 with an empty version 2 beside it.
fn hybrid_cgroups() -> bool {
    Path::new("/sys/fs/cgroup/unified/cgroup.procs").exists()
}

/// crun refuses hybrid control groups: it gets a view of the machine without the second hierarchy.
/// Only that one mount differs, so volumes propagate as ever.
pub(crate) fn write_crun(paths: &Paths, installed: &Installed) -> Result<()> {
    let (Some(crun), true) = (&installed.crun, hybrid_cgroups()) else { return Ok(()) };
    let unshare = program("unshare").ok_or_else(|| {
        Error::Daemon("not installed: unshare (of util-linux), which crun needs with hybrid control groups".into())
    })?;
    let script = format!(
        r#"#!/bin/sh
exec {unshare} --mount --propagation unchanged -- /bin/sh -c '
mount --make-rprivate /sys/fs/cgroup && umount /sys/fs/cgroup/unified && exec "$@"' crun {crun} "$@"
"#,
        unshare = shell_quote(&unshare),
        crun = shell_quote(crun),
    );
    let file = paths.crun();
    std::fs::write(&file, script).map_err(Error::io(&file))?;
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).map_err(Error::io(&file))
}

fn shell_quote(path: &Path) -> String {
    format!("'{}'", path.to_string_lossy().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_long_dir_has_a_short_socket() {
        let long = Path::new("/").join("a very long name/".repeat(20));
        let paths = Paths::of(&long).unwrap();
        assert!(paths.socket().as_os_str().len() < 60, "{}", paths.socket().display());
        assert_ne!(paths.run, Paths::of(&long.join("b")).unwrap().run);
        assert_eq!(paths.run, Paths::of(&long).unwrap().run);
    }

    #[test]
    fn a_path_stays_inside_its_quotes() {
        assert_eq!(quote("/a \"b\\c\n"), r#""/a \"b\\c\n""#);
        assert_eq!(shell_quote(Path::new("/it's")), r"'/it'\''s'");
    }
}
