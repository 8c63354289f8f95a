//! One way of configuration: flags, and a YAML file with the same names for what the flags leave out.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use ipnet::{IpNet, Ipv4Net};
use sampan_agent::Thresholds;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::cli::{ControlPlaneArgs, DaemonArgs, LogFormat, NodeFlags};
use crate::names::is_dns_subdomain;

const DEFAULT_MAX_PODS: u32 = 1000;

/// Of pod and Service addresses: nothing that the internet uses.
const PRIVATE: [IpNet; 5] = [
    private([10, 0, 0, 0], 8),
    private([172, 16, 0, 0], 12),
    private([192, 168, 0, 0], 16),
    private([100, 64, 0, 0], 10),
    private([127, 0, 0, 0], 8),
];
/// Addresses that a node needs beside two for each pod, as the controller that hands out ranges counts.
const SPARE: u128 = 32;

const fn private(address: [u8; 4], prefix: u8) -> IpNet {
    let [a, b, c, d] = address;
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix))
}

/// The keys of the file given with `--config`.
#[derive(Debug, Default)]
struct File {
    data_dir: Option<PathBuf>,
    log_format: Option<LogFormat>,
    listen: Option<SocketAddr>,
    kubeconfig: Option<PathBuf>,
    cluster_cidr: Option<IpNet>,
    service_cidr: Option<IpNet>,
    node_name: Option<String>,
    node_ip: Option<Ipv4Addr>,
    max_pods: Option<u32>,
    containerd: Option<PathBuf>,
    image_gc_high_threshold: Option<u8>,
    image_gc_low_threshold: Option<u8>,
    server: Option<String>,
}

impl File {
    /// Key by key, so that an error names the key and what is wanted there.
    fn set(&mut self, key: &str, value: &Value) -> Result<()> {
        const RANGE: &str = "a range such as 10.40.0.0/16";
        const PERCENT: &str = "a number from 0 to 100";
        match key {
            "dataDir" => self.data_dir = read_value(value, "a path")?,
            "logFormat" => self.log_format = read_value(value, "text or json")?,
            "listen" => self.listen = read_value(value, "an address and port such as 127.0.0.1:6443")?,
            "kubeconfig" => self.kubeconfig = read_value(value, "a path")?,
            "clusterCidr" => self.cluster_cidr = read_value(value, RANGE)?,
            "serviceCidr" => self.service_cidr = read_value(value, RANGE)?,
            "nodeName" => self.node_name = read_value(value, "a name (one of digits in quotes)")?,
            "nodeIp" => self.node_ip = read_value(value, "an address of this machine such as 192.0.2.7")?,
            "containerd" => self.containerd = read_value(value, "a path")?,
            "maxPods" => self.max_pods = read_value(value, "a number from 1 to 30000")?,
            "imageGcHighThreshold" => self.image_gc_high_threshold = read_value(value, PERCENT)?,
            "imageGcLowThreshold" => self.image_gc_low_threshold = read_value(value, PERCENT)?,
            "server" => self.server = read_value(value, "a URL such as https://192.0.2.1:6443")?,
            _ => bail!(
                "no such key; there are dataDir, logFormat, listen, kubeconfig, clusterCidr, serviceCidr, nodeName, \
                 nodeIp, maxPods, containerd, imageGcHighThreshold, imageGcLowThreshold and server"
            ),
        }
        Ok(())
    }
}

/// A key without a value is as one that is left out.
fn read_value<T: DeserializeOwned>(value: &Value, wanted: &str) -> Result<Option<T>> {
    serde_json::from_value(value.clone()).map_err(|_| anyhow!("{value} is not {wanted}"))
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
    pub node_ip: Option<Ipv4Addr>,
    pub max_pods: u32,
    pub containerd: Option<PathBuf>,
    pub image_gc: Thresholds,
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
        let defaults = Thresholds::default();
        let image_gc = Thresholds {
            high: node.image_gc_high_threshold.or(file.image_gc_high_threshold).unwrap_or(defaults.high),
            low: node.image_gc_low_threshold.or(file.image_gc_low_threshold).unwrap_or(defaults.low),
        };
        ensure!(
            image_gc.low < image_gc.high && image_gc.high <= 100,
            "imageGcLowThreshold is {} and imageGcHighThreshold {}: the first has to be below the second, and that 100 at most",
            image_gc.low,
            image_gc.high
        );
        let config = Self {
            data_dir: daemon.data_dir.or(file.data_dir).map_or_else(default_data_dir, Ok)?,
            log_format: daemon.log_format.or(file.log_format).unwrap_or_default(),
            listen: control_plane.listen.or(file.listen),
            kubeconfig: control_plane.kubeconfig.or(file.kubeconfig),
            cluster_cidr: control_plane.cluster_cidr.or(file.cluster_cidr),
            service_cidr: control_plane.service_cidr.or(file.service_cidr),
            node_name,
            node_ip: node.node_ip.or(file.node_ip),
            max_pods,
            containerd: node.containerd.or(file.containerd),
            image_gc,
            server: server.or(file.server),
        };
        config.check_ranges()?;
        config.check_address()?;
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
            ensure!(
                PRIVATE.iter().any(|private| private.contains(&range)),
                "{flag} {range} is not private: its real owners would be out of reach; take a part of 10.0.0.0/8, \
                 172.16.0.0/12, 192.168.0.0/16 or 100.64.0.0/10, and without root of 127.0.0.0/8"
            );
        }
        if let (Some(cluster), Some(service)) = (self.cluster_cidr, self.service_cidr) {
            ensure!(
                !cluster.contains(&service) && !service.contains(&cluster),
                "--cluster-cidr {cluster} and --service-cidr {service} overlap"
            );
        }
        Ok(())
    }

    fn check_address(&self) -> Result<()> {
        let Some(address) = self.node_ip else { return Ok(()) };
        // Whoever can bind it has it.
        ensure!(
            !address.is_unspecified() && UdpSocket::bind((address, 0)).is_ok(),
            "--node-ip {address} is not found in this machine's network interfaces; give one that is"
        );
        Ok(())
    }

    /// Whether this node's pods fit: a node that gets no range waits for one for ever.
    pub fn check_room(&self, cluster: IpNet) -> Result<()> {
        let bits = cluster.max_prefix_len();
        let needed = (2 * u128::from(self.max_pods) + SPARE).next_power_of_two();
        let held = 1_u128.checked_shl(u32::from(bits - cluster.prefix_len())).unwrap_or(u128::MAX);
        ensure!(
            needed <= held,
            "--cluster-cidr {cluster} is too small for --max-pods {}: that takes a /{} ({needed} addresses: two for \
             each pod, and some to spare); give a larger range, or --max-pods {} at most",
            self.max_pods,
            u32::from(bits).saturating_sub(needed.trailing_zeros()),
            held.saturating_sub(SPARE) / 2
        );
        Ok(())
    }
}

fn read(path: &Path) -> Result<File> {
    let text = std::fs::read_to_string(path).with_context(|| format!("--config {}", path.display()))?;
    if text.trim().is_empty() {
        return Ok(File::default());
    }
    let show = path.display();
    let value: Value = serde_saphyr::from_str(&text)
        .map_err(|error| anyhow!("--config {show} is no YAML: {}", error.without_snippet()))?;
    let keys = match value {
        Value::Null => return Ok(File::default()),
        Value::Object(keys) => keys,
        _ => bail!("--config {show}: keys and values are wanted, such as maxPods: 2000"),
    };
    let mut file = File::default();
    for (key, value) in &keys {
        file.set(key, value).map_err(|error| anyhow!("--config {show}: {key}: {error}"))?;
    }
    Ok(file)
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
    fn ranges_that_others_use_are_refused() {
        let error = |text: &str| with_file(text).err().unwrap().to_string();
        for range in ["8.8.0.0/16", "10.0.0.0/7", "172.32.0.0/16", "169.254.0.0/16", "192.0.2.0/24"] {
            let error = error(&format!("serviceCidr: {range}\n"));
            assert!(error.starts_with("--service-cidr") && error.contains(range), "{error}");
        }
        for range in ["10.1.0.0/16", "172.31.0.0/16", "192.168.4.0/22", "100.127.0.0/16", "127.9.0.0/16"] {
            with_file(&format!("clusterCidr: {range}\n")).unwrap();
        }
    }

    #[test]
    fn a_range_has_room_for_the_nodes_pods() {
        let room = |pods: u32, range: &str| {
            with_file(&format!("maxPods: {pods}\n")).unwrap().check_room(range.parse().unwrap())
        };
        room(112, "10.1.0.0/24").unwrap();
        room(1000, "10.1.0.0/21").unwrap();
        room(30_000, "10.1.0.0/16").unwrap();
        let error = room(113, "10.1.0.0/24").err().unwrap().to_string();
        for part in ["--cluster-cidr 10.1.0.0/24", "--max-pods 113", "a /23", "512 addresses", "--max-pods 112 at most"]
        {
            assert!(error.contains(part), "{error}");
        }
        assert!(room(30_000, "10.1.0.0/17").is_err());
    }

    #[test]
    fn a_nodes_address_is_its_own() {
        assert_eq!(with_file("nodeIp: 127.0.0.1\n").unwrap().node_ip, Some(Ipv4Addr::LOCALHOST));
        for other in ["192.0.2.7", "0.0.0.0"] {
            let error = with_file(&format!("nodeIp: {other}\n")).err().unwrap().to_string();
            assert!(error.contains("--node-ip") && error.contains(other), "{error}");
        }
    }

    #[test]
    fn a_wrong_value_is_named_with_its_key() {
        let error = |text: &str| with_file(text).err().unwrap().to_string();
        for (text, parts) in [
            ("maxPods: many\n", ["maxPods: \"many\"", "a number from 1 to 30000"]),
            ("maxPods: -1\n", ["maxPods: -1", "a number from 1 to 30000"]),
            ("listen: here\n", ["listen: \"here\"", "127.0.0.1:6443"]),
            ("logFormat: xml\n", ["logFormat: \"xml\"", "text or json"]),
            ("clusterCidr: 10.1\n", ["clusterCidr: 10.1", "10.40.0.0/16"]),
            ("- a\n", ["keys and values", "maxPods: 2000"]),
            ("maxPods: [7\n", ["is no YAML", "line"]),
            ("maxPods: 7\nmaxPods: 8\n", ["maxPods", "uplicate"]),
        ] {
            let error = error(text);
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
            assert!(!error.contains("error:") && !error.contains('\n'), "{error}");
        }
        assert_eq!(with_file("maxPods:\n# nothing\n").unwrap().max_pods, DEFAULT_MAX_PODS);
        assert_eq!(with_file("imageGcHighThreshold: 90\n").unwrap().image_gc, Thresholds { high: 90, low: 80 });
        assert!(error("imageGcHighThreshold: 70\n").contains("imageGcLowThreshold is 80"));
        assert!(error("imageGcHighThreshold: 101\n").contains("100 at most"));
    }
}
