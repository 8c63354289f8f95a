//! What a containerd that is not ours is set up to do.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use crate::client::{Containerd, SHORT, call};
use crate::error::{Error, Result};
use crate::proto::cri;

/// Of its CRI plugin; what a version does not tell is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// Image of the process that holds a pod's namespaces. Not told by containerd 2.
    pub sandbox_image: Option<String>,
    /// Where it looks for the pods' network: [`crate::cni::load`] checks what lies there.
    pub cni_conf_dir: Option<PathBuf>,
    pub cni_plugins: Vec<PathBuf>,
    /// Why it has no network for pods; `None`: it has.
    pub cni_error: Option<String>,
    /// By name.
    pub handlers: BTreeMap<String, Handler>,
    pub default_handler: String,
    /// What keeps images' files.
    pub snapshotter: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Handler {
    /// Control groups are systemd's: a sandbox's `cgroup_parent` has to be a slice, such as `pod1.slice`.
    pub systemd_cgroup: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    #[serde(default)]
    sandbox_image: String,
    cni: Option<Cni>,
    containerd: Option<Runtimes>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Cni {
    #[serde(default)]
    conf_dir: PathBuf,
    #[serde(default)]
    bin_dir: PathBuf,
    /// From 2.1 on.
    #[serde(default)]
    bin_dirs: Vec<PathBuf>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Runtimes {
    #[serde(default)]
    snapshotter: String,
    #[serde(default)]
    default_runtime_name: String,
    #[serde(default)]
    runtimes: BTreeMap<String, Runtime>,
}

#[derive(Deserialize)]
struct Runtime {
    options: Option<Options>,
}

#[derive(Deserialize)]
struct Options {
    #[serde(default, rename = "SystemdCgroup")]
    systemd_cgroup: bool,
}

impl Settings {
    /// Whether a handler's control groups are systemd's; an empty name is the default handler.
    pub fn has_systemd_groups(&self, handler: &str) -> bool {
        let name = if handler.is_empty() { &self.default_handler } else { handler };
        self.handlers.get(name).is_some_and(|handler| handler.systemd_cgroup)
    }
}

impl Containerd {
    pub async fn settings(&self) -> Result<Settings> {
        let request = cri::StatusRequest { verbose: true };
        let info = call("Status", SHORT, self.runtime().status(request)).await?.info;
        parse(&info)
    }
}

fn parse(info: &BTreeMap<String, String>) -> Result<Settings> {
    let lacks = Error::Answer { call: "Status", missing: "config" };
    let Some(text) = info.get("config") else { return Err(lacks) };
    let config: Config = serde_json::from_str(text).map_err(|error| {
        tracing::debug!(%error, "settings of containerd");
        lacks
    })?;
    let told = |path: &PathBuf| !path.as_os_str().is_empty();
    let (mut cni_conf_dir, mut cni_plugins) = (None, Vec::new());
    if let Some(cni) = config.cni {
        cni_conf_dir = Some(cni.conf_dir).filter(told);
        cni_plugins = std::iter::once(cni.bin_dir).filter(told).chain(cni.bin_dirs).collect();
    }
    let (mut handlers, mut default_handler, mut snapshotter) = (BTreeMap::new(), String::new(), None);
    if let Some(containerd) = config.containerd {
        let handler = |runtime: Runtime| Handler { systemd_cgroup: runtime.options.is_some_and(|o| o.systemd_cgroup) };
        handlers = containerd.runtimes.into_iter().map(|(name, runtime)| (name, handler(runtime))).collect();
        default_handler = containerd.default_runtime_name;
        snapshotter = Some(containerd.snapshotter).filter(|name| !name.is_empty());
    }
    // The answer is a text of JSON; "OK" when all is well.
    let cni = info.get("lastCNILoadStatus").and_then(|text| serde_json::from_str::<String>(text).ok());
    Ok(Settings {
        sandbox_image: Some(config.sandbox_image).filter(|image| !image.is_empty()),
        cni_conf_dir,
        cni_plugins,
        cni_error: cni.filter(|status| status != "OK"),
        handlers,
        default_handler,
        snapshotter,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn info(config: &str, cni: &str) -> BTreeMap<String, String> {
        [("config".to_owned(), config.to_owned()), ("lastCNILoadStatus".to_owned(), cni.to_owned())].into()
    }

    #[test]
    fn versions_tell_it_in_their_ways() {
        let old = r#"{"sandboxImage":"pause:3","cni":{"binDir":"/b","confDir":"/c"},"containerd":{
            "snapshotter":"native","defaultRuntimeName":"runc","runtimes":{"runc":{"options":{"SystemdCgroup":true}},"x":{"options":null}}}}"#;
        let settings = parse(&info(old, "\"OK\"")).unwrap();
        assert_eq!((settings.sandbox_image.as_deref(), settings.cni_error), (Some("pause:3"), None));
        assert_eq!((settings.cni_conf_dir, settings.cni_plugins), (Some("/c".into()), vec!["/b".into()]));
        assert_eq!(settings.snapshotter.as_deref(), Some("native"));
        assert!(settings.handlers["runc"].systemd_cgroup && !settings.handlers["x"].systemd_cgroup);
        let new = r#"{"cni":{"binDir":"","binDirs":["/a","/b"]}}"#;
        let settings = parse(&info(new, "\"cni config load failed\"")).unwrap();
        assert_eq!((settings.sandbox_image, settings.cni_plugins.len()), (None, 2));
        assert_eq!(settings.cni_error.unwrap(), "cni config load failed");
        for bad in ["", "7", "{\"cni\":1}"] {
            assert!(parse(&info(bad, "")).is_err(), "{bad}");
        }
        assert!(parse(&BTreeMap::new()).is_err());
    }
}
