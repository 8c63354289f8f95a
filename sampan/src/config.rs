//! One way of configuration: flags, and a YAML file with the same names for what the flags leave out.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use ipnet::IpNet;
use serde::Deserialize;

use crate::cli::{ControlPlaneArgs, DaemonArgs, LogFormat, NodeFlags};

const DEFAULT_MAX_PODS: u32 = 1000;

/// The keys of the file given with `--config`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct File {
    data_dir: Option<PathBuf>,
    log_format: Option<LogFormat>,
    listen: Option<SocketAddr>,
    kubeconfig: Option<PathBuf>,
    cluster_cidr: Option<IpNet>,
    service_cidr: Option<IpNet>,
    node_name: Option<String>,
    max_pods: Option<u32>,
    server: Option<String>,
}

/// What a long-running command was told, flags and file together.
pub struct Config {
    pub data_dir: PathBuf,
    pub log_format: LogFormat,
    pub listen: Option<SocketAddr>,
    pub kubeconfig: Option<PathBuf>,
    pub cluster_cidr: Option<IpNet>,
    pub service_cidr: Option<IpNet>,
    pub node_name: String,
    pub max_pods: u32,
    pub server: Option<String>,
}

impl Config {
    pub fn new(
        daemon: DaemonArgs,
        control_plane: ControlPlaneArgs,
        node: NodeFlags,
        server: Option<String>,
    ) -> Result<Self> {
        let file = daemon.config.as_deref().map(read).transpose()?.unwrap_or_default();
        let node_name = match node.node_name.or(file.node_name) {
            Some(name) => name,
            None => host_name()?,
        };
        ensure!(
            is_dns_subdomain(&node_name),
            "node name {node_name:?} is not a lower-case DNS name; give another with --node-name"
        );
        let max_pods = node.max_pods.or(file.max_pods).unwrap_or(DEFAULT_MAX_PODS);
        ensure!((1..=30_000).contains(&max_pods), "maxPods is {max_pods}: 1 to 30000 can be had");
        let config = Self {
            data_dir: daemon.data_dir.or(file.data_dir).map_or_else(default_data_dir, Ok)?,
            log_format: daemon.log_format.or(file.log_format).unwrap_or_default(),
            listen: control_plane.listen.or(file.listen),
            kubeconfig: control_plane.kubeconfig.or(file.kubeconfig),
            cluster_cidr: control_plane.cluster_cidr.or(file.cluster_cidr),
            service_cidr: control_plane.service_cidr.or(file.service_cidr),
            node_name,
            max_pods,
            server: server.or(file.server),
        };
        config.check_ranges()?;
        Ok(config)
    }

    fn check_ranges(&self) -> Result<()> {
        for (flag, range) in [("--cluster-cidr", self.cluster_cidr), ("--service-cidr", self.service_cidr)] {
            let Some(range) = range else { continue };
            ensure!(range.addr().is_ipv4(), "{flag} {range}: IPv4 ranges only, for now");
            ensure!(
                range.addr() == range.network(),
                "{flag} {range} has bits behind its prefix; {} is the range",
                range.trunc()
            );
            ensure!(range.prefix_len() <= 24, "{flag} {range} is too small: /24 or larger");
        }
        if let (Some(cluster), Some(service)) = (self.cluster_cidr, self.service_cidr) {
            ensure!(
                !cluster.contains(&service) && !service.contains(&cluster),
                "--cluster-cidr {cluster} and --service-cidr {service} overlap"
            );
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<File> {
    let text = std::fs::read_to_string(path).with_context(|| format!("--config {}", path.display()))?;
    if text.trim().is_empty() {
        return Ok(File::default());
    }
    serde_saphyr::from_str(&text).map_err(|error| anyhow::anyhow!("--config {}: {error}", path.display()))
}

/// `/var/lib/sampan` as root, else below the user's own data.
pub fn default_data_dir() -> Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Ok("/var/lib/sampan".into());
    }
    let data = match std::env::var_os("XDG_DATA_HOME").filter(|dir| !dir.is_empty()) {
        Some(dir) => PathBuf::from(dir),
        None => {
            PathBuf::from(std::env::var_os("HOME").context("neither HOME nor --data-dir is set")?).join(".local/share")
        }
    };
    Ok(data.join("sampan"))
}

fn host_name() -> Result<String> {
    let name = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
    ensure!(!name.is_empty(), "this machine has no name; give one with --node-name");
    Ok(name)
}

fn is_dns_subdomain(name: &str) -> bool {
    name.len() <= 253
        && name.split('.').all(|label| {
            let bytes = label.as_bytes();
            let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            bytes.len() <= 63
                && bytes.first().is_some_and(alphanumeric)
                && bytes.last().is_some_and(alphanumeric)
                && bytes.iter().all(|byte| alphanumeric(byte) || *byte == b'-')
        })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn with_file(text: &str) -> Result<Config> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let daemon = DaemonArgs { config: Some(file.path().to_owned()), ..Default::default() };
        let node = NodeFlags { node_name: Some("n".into()), ..Default::default() };
        Config::new(daemon, ControlPlaneArgs::default(), node, None)
    }

    #[test]
    fn a_file_fills_in_what_flags_leave_out() {
        let config = with_file("maxPods: 7\nnodeName: other\nlisten: 127.0.0.1:0\n").unwrap();
        assert_eq!((config.max_pods, config.node_name.as_str()), (7, "n"));
        assert_eq!(config.listen, Some("127.0.0.1:0".parse().unwrap()));
    }

    #[test]
    fn an_unknown_key_is_named() {
        let error = with_file("maxpods: 7\n").err().unwrap().to_string();
        assert!(error.contains("maxpods"), "{error}");
    }

    #[test]
    fn ranges_are_checked() {
        let error = |text: &str| with_file(text).err().unwrap().to_string();
        assert!(error("clusterCidr: 10.1.2.3/16\n").contains("10.1.0.0/16"));
        assert!(error("clusterCidr: 10.0.0.0/8\nserviceCidr: 10.96.0.0/16\n").contains("overlap"));
        assert!(error("serviceCidr: 10.0.0.0/30\n").contains("too small"));
    }

    #[test]
    fn names_of_nodes() {
        for good in ["a", "a-1.b", "0"] {
            assert!(is_dns_subdomain(good), "{good}");
        }
        for bad in ["", "A", "a_b", "-a", "a-", "a..b", "a."] {
            assert!(!is_dns_subdomain(bad), "{bad}");
        }
    }
}
