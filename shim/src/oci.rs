//! What of a bundle's `config.json` means something to a WebAssembly guest.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Deserialize;

/// A container's role in a pod, as containerd's CRI marks it.
const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";
/// Where a `wasi:http` component listens.
const HTTP_PORT: &str = "sampan.dev/http-port";
const DEFAULT_PORT: u16 = 8080;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Spec {
    pub process: Process,
    pub root: Root,
    pub mounts: Vec<Mount>,
    pub linux: Linux,
    pub annotations: BTreeMap<String, String>,
    pub hostname: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Process {
    pub args: Vec<String>,
    pub env: Vec<String>,
    pub cwd: String,
    pub user: User,
    pub capabilities: Capabilities,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(default)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    pub bounding: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Root {
    pub path: String,
    pub readonly: bool,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub struct Mount {
    pub destination: PathBuf,
    #[serde(rename = "type")]
    pub kind: String,
    pub source: String,
    pub options: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Linux {
    pub namespaces: Vec<Namespace>,
    pub resources: Resources,
    pub cgroups_path: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Namespace {
    #[serde(rename = "type")]
    pub kind: String,
    pub path: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Resources {
    pub memory: MemoryLimit,
    pub cpu: CpuLimit,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct MemoryLimit {
    pub limit: i64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct CpuLimit {
    pub quota: i64,
    pub period: u64,
}

/// The network a container asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    Machine,
    /// One of its own, to be made.
    New,
    At(PathBuf),
}

impl Spec {
    pub fn read(bundle: &Path) -> anyhow::Result<Spec> {
        let path = bundle.join("config.json");
        let text = std::fs::read(&path).with_context(|| path.display().to_string())?;
        serde_json::from_slice(&text).with_context(|| path.display().to_string())
    }

    /// The pod that a container belongs to; by itself it is its own.
    pub fn group<'a>(&'a self, id: &'a str) -> &'a str {
        self.annotations.get(SANDBOX_ID).map_or(id, String::as_str)
    }

    pub fn is_sandbox(&self) -> bool {
        self.annotations.get(CONTAINER_TYPE).is_some_and(|kind| kind == "sandbox")
    }

    pub fn network(&self) -> Network {
        match self.linux.namespaces.iter().find(|namespace| namespace.kind == "network") {
            None => Network::Machine,
            Some(Namespace { path: Some(path), .. }) if !path.as_os_str().is_empty() => Network::At(path.clone()),
            Some(_) => Network::New,
        }
    }

    /// The control group as the hierarchies name it. systemd's notation is `slice:prefix:name`.
    pub fn cgroup(&self) -> Option<String> {
        let path = self.linux.cgroups_path.as_str();
        let parts: Vec<&str> = path.split(':').collect();
        let path = match parts.as_slice() {
            [slice, prefix, name] => {
                let stem = slice.strip_suffix(".slice")?;
                let mut path = String::new();
                // `a-b.slice` lies in `a.slice`.
                for (at, _) in stem.match_indices('-').chain([(stem.len(), "")]) {
                    path += &format!("/{}.slice", stem.get(..at)?);
                }
                format!("{path}/{prefix}-{name}.scope")
            }
            _ => format!("/{}", path.trim_matches('/')),
        };
        (path.len() > 1).then_some(path)
    }

    /// Bytes; 0: no limit.
    pub fn memory_limit(&self) -> u64 {
        u64::try_from(self.linux.resources.memory.limit).unwrap_or(0)
    }

    /// Thousandths of a core; 0: no limit.
    pub fn cpu_limit(&self) -> u32 {
        let cpu = &self.linux.resources.cpu;
        let period = if cpu.period == 0 { 100_000 } else { cpu.period };
        match u64::try_from(cpu.quota) {
            Ok(quota) if quota > 0 => u32::try_from(quota.saturating_mul(1000) / period).unwrap_or(u32::MAX).max(1),
            _ => 0,
        }
    }

    pub fn variable(&self, name: &str) -> Option<&str> {
        self.process.env.iter().find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
    }

    pub fn http_port(&self) -> Result<u16, String> {
        let (field, text) = match (self.annotations.get(HTTP_PORT), self.variable("PORT")) {
            (Some(text), _) => (format!("annotation {HTTP_PORT}"), text.as_str()),
            (None, Some(text)) => ("variable PORT".to_owned(), text),
            (None, None) => return Ok(DEFAULT_PORT),
        };
        match text.parse() {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(format!("{field}: {text:?} is no port: a number from 1 to 65535")),
        }
    }

    /// Whether ports below 1024 are the container's to listen on.
    pub fn may_bind_low_ports(&self) -> bool {
        self.process.capabilities.bounding.iter().any(|name| name == "CAP_NET_BIND_SERVICE")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn spec(text: &str) -> Spec {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn networks() {
        let network = |text: &str| spec(&format!("{{\"linux\":{{\"namespaces\":[{text}]}}}}")).network();
        assert_eq!(network(""), Network::Machine);
        assert_eq!(network(r#"{"type":"pid"},{"type":"network"}"#), Network::New);
        assert_eq!(network(r#"{"type":"network","path":"/run/n"}"#), Network::At("/run/n".into()));
    }

    #[test]
    fn control_groups_in_both_notations() {
        let group = |path: &str| spec(&format!("{{\"linux\":{{\"cgroupsPath\":{path:?}}}}}")).cgroup();
        assert_eq!(group("/k8s/pod1/abc").as_deref(), Some("/k8s/pod1/abc"));
        let nested = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-ab.scope";
        assert_eq!(group("kubepods-burstable-pod1.slice:cri-containerd:ab").as_deref(), Some(nested));
        assert_eq!(group(""), None);
    }

    #[test]
    fn limits_and_ports() {
        let resources = r#"{"memory":{"limit":1048576},"cpu":{"quota":25000,"period":50000}}"#;
        let some = spec(&format!("{{\"linux\":{{\"resources\":{resources}}}}}"));
        assert_eq!((some.memory_limit(), some.cpu_limit(), some.http_port()), (1 << 20, 500, Ok(8080)));
        let none = spec(r#"{"linux":{"resources":{"memory":{"limit":-1},"cpu":{"quota":-1}}}}"#);
        assert_eq!((none.memory_limit(), none.cpu_limit()), (0, 0));
        let ported = spec(r#"{"process":{"env":["PORTS=1","PORT=80"]}}"#);
        assert_eq!(ported.http_port(), Ok(80));
        let wrong = spec(r#"{"annotations":{"sampan.dev/http-port":"http"},"process":{"env":["PORT=80"]}}"#);
        assert!(wrong.http_port().unwrap_err().contains("sampan.dev/http-port"));
    }
}
