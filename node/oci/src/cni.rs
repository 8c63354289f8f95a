//! The network of OCI pods: one veth pair and one route a pod (`ptp`), addresses out of the node's range.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::installed::{Installed, executable};

/// What every plugin since CNI 0.9 and containerd 1.6 read.
const VERSION: &str = "0.4.0";
const VERSIONS: &[&str] = &["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
pub(crate) const FILE: &str = "10-sampan.conflist";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Of the cluster: letters, digits, `.`, `-`, `_`.
    pub name: String,
    /// The pods' addresses, one range a family. The first address is the machine's.
    pub ranges: Vec<IpNet>,
    /// Empty: everything goes to the machine.
    pub routes: Vec<IpNet>,
    /// Pods reach the outside with the machine's address. Needs iptables.
    pub masquerade: bool,
    /// Whether pods may ask for host ports. Needs iptables.
    pub port_mappings: bool,
    /// `None`: as the machine's.
    pub mtu: Option<u32>,
}

impl Network {
    pub fn new(name: impl Into<String>, ranges: impl Into<Vec<IpNet>>) -> Network {
        Network {
            name: name.into(),
            ranges: ranges.into(),
            routes: Vec::new(),
            masquerade: false,
            port_mappings: false,
            mtu: None,
        }
    }

    /// The configuration list; `state` is where host-local keeps what it has given away.
    pub fn conflist(&self, state: &Path) -> String {
        let default = |range: &IpNet| if range.addr().is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        let routes: Vec<Value> = if self.routes.is_empty() {
            self.ranges.iter().map(|range| json!({"dst": default(range)})).collect()
        } else {
            self.routes.iter().map(|route| json!({"dst": route})).collect()
        };
        let ranges: Vec<Value> = self.ranges.iter().map(|range| json!([{"subnet": range.trunc()}])).collect();
        let mut ptp = json!({
            "type": "ptp",
            "ipMasq": self.masquerade,
            "ipam": {"type": "host-local", "dataDir": state, "ranges": ranges, "routes": routes},
        });
        if let (Some(mtu), Some(ptp)) = (self.mtu, ptp.as_object_mut()) {
            ptp.insert("mtu".into(), mtu.into());
        }
        let mut plugins = vec![ptp];
        if self.port_mappings {
            plugins.push(json!({"type": "portmap", "capabilities": {"portMappings": true}}));
        }
        let list = json!({"cniVersion": VERSION, "name": self.name, "plugins": plugins});
        format!("{list:#}\n")
    }

    /// Puts it where containerd looks, which takes it up at once. A fault is an error, and changes nothing.
    pub(crate) fn write(&self, conf_dir: &Path, state: &Path, installed: &Installed) -> Result<()> {
        let file = conf_dir.join(FILE);
        if (self.masquerade || self.port_mappings) && !installed.iptables {
            let reason = "masquerade and host ports need iptables, which is not installed".into();
            return Err(Error::Network { file, reason });
        }
        let text = self.conflist(state);
        validate(&file, &text, &installed.cni_plugins)?;
        if std::fs::read_to_string(&file).is_ok_and(|before| before == text) {
            return Ok(());
        }
        // containerd reads names that end in .conflist only, so never half of one.
        let new = file.with_extension("new");
        std::fs::write(&new, text).map_err(Error::io(&new))?;
        std::fs::rename(&new, &file).map_err(Error::io(&file))
    }
}

/// The configuration that containerd would take of a directory (the first by name), checked.
pub fn load(conf_dir: &Path, plugins: &Path) -> Result<String> {
    let known = |path: &PathBuf| {
        path.extension().and_then(|e| e.to_str()).is_some_and(|e| matches!(e, "conf" | "conflist" | "json"))
    };
    let entries = std::fs::read_dir(conf_dir).map_err(Error::io(conf_dir))?;
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).filter(known).collect();
    files.sort();
    let Some(file) = files.into_iter().next() else {
        let reason = "no network configuration (*.conflist) in this directory: pods would get no address".into();
        return Err(Error::Network { file: conf_dir.into(), reason });
    };
    let text = std::fs::read_to_string(&file).map_err(Error::io(&file))?;
    validate(&file, &text, plugins)?;
    Ok(text)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct List {
    #[serde(default)]
    cni_version: String,
    #[serde(default)]
    name: String,
    plugins: Option<Vec<Plugin>>,
    r#type: Option<String>,
}

#[derive(Deserialize)]
struct Plugin {
    #[serde(default)]
    r#type: String,
    ipam: Option<Ipam>,
}

#[derive(Deserialize)]
struct Ipam {
    #[serde(default)]
    r#type: String,
    subnet: Option<String>,
    #[serde(default)]
    ranges: Vec<Vec<Range>>,
    #[serde(default)]
    routes: Vec<Route>,
}

#[derive(Deserialize)]
struct Range {
    subnet: String,
    gateway: Option<String>,
}

#[derive(Deserialize)]
struct Route {
    dst: String,
    gw: Option<String>,
}

/// Whether this text can work as a network configuration with the plugins that are installed.
pub fn validate(file: &Path, text: &str, plugins: &Path) -> Result<()> {
    check(text, plugins).map_err(|reason| Error::Network { file: file.to_owned(), reason })
}

fn check(text: &str, dir: &Path) -> std::result::Result<(), String> {
    let list: List = serde_json::from_str(text).map_err(|e| format!("not a CNI configuration: {e}"))?;
    if !VERSIONS.contains(&list.cni_version.as_str()) {
        return Err(format!("cniVersion: {:?} is none of {}", list.cni_version, VERSIONS.join(", ")));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if !list.name.starts_with(|c: char| c.is_ascii_alphanumeric()) || !list.name.chars().all(plain) {
        return Err(format!("name: {:?} is not letters, digits, '.', '-' and '_'", list.name));
    }
    let Some(all) = list.plugins else {
        return match list.r#type {
            Some(_) => Err("a single plugin: put it into a list, {\"plugins\": [...]}".into()),
            None => Err("plugins: missing".into()),
        };
    };
    if all.is_empty() {
        return Err("plugins: empty; ptp is what pods need first".into());
    }
    for (number, plugin) in all.iter().enumerate() {
        let field = format!("plugins[{number}]");
        installed(&format!("{field}.type"), &plugin.r#type, dir)?;
        if let Some(ipam) = &plugin.ipam {
            installed(&format!("{field}.ipam.type"), &ipam.r#type, dir)?;
            addresses(&format!("{field}.ipam"), ipam)?;
        }
    }
    Ok(())
}

fn installed(field: &str, name: &str, dir: &Path) -> std::result::Result<(), String> {
    if name.is_empty() || name.contains('/') {
        return Err(format!("{field}: {name:?} is not the name of a plugin"));
    }
    if !executable(&dir.join(name)) {
        return Err(format!("{field}: no plugin {name} in {}; install it, or name another", dir.display()));
    }
    Ok(())
}

fn addresses(field: &str, ipam: &Ipam) -> std::result::Result<(), String> {
    let net = |field: String, text: &str| {
        text.parse::<IpNet>().map_err(|_| format!("{field}: {text:?} is not a range such as 10.1.2.0/24"))
    };
    let mut ranges: Vec<IpNet> = Vec::new();
    if let Some(subnet) = &ipam.subnet {
        ranges.push(net(format!("{field}.subnet"), subnet)?);
    }
    for (set, range) in ipam.ranges.iter().enumerate().flat_map(|(set, ranges)| ranges.iter().map(move |r| (set, r))) {
        let subnet = net(format!("{field}.ranges[{set}].subnet"), &range.subnet)?;
        if let Some(gateway) = &range.gateway
            && !gateway.parse::<IpAddr>().is_ok_and(|gateway| subnet.contains(&gateway))
        {
            return Err(format!("{field}.ranges[{set}].gateway: {gateway:?} is not an address of {subnet}"));
        }
        ranges.push(subnet);
    }
    if ipam.r#type == "host-local" && ranges.is_empty() {
        return Err(format!("{field}.ranges: host-local has no range to give addresses of"));
    }
    for (number, range) in ranges.iter().enumerate() {
        if range.max_prefix_len() - range.prefix_len() < 2 {
            return Err(format!("{field}: {range} is too small: two addresses are never a pod's"));
        }
        if let Some(other) =
            ranges.iter().skip(number + 1).find(|o| o.contains(&range.addr()) || range.contains(&o.addr()))
        {
            return Err(format!("{field}: {range} and {other} overlap"));
        }
    }
    for (number, route) in ipam.routes.iter().enumerate() {
        net(format!("{field}.routes[{number}].dst"), &route.dst)?;
        if let Some(gateway) = route.gw.as_ref().filter(|gw| gw.parse::<IpAddr>().is_err()) {
            return Err(format!("{field}.routes[{number}].gw: {gateway:?} is not an address"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn plugins() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in ["ptp", "host-local", "portmap"] {
            std::fs::write(dir.path().join(name), "").unwrap();
            std::fs::set_permissions(dir.path().join(name), std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        dir
    }

    #[test]
    fn what_we_write_is_valid_and_whole() {
        let dir = plugins();
        let ranges: Vec<IpNet> = vec!["10.7.0.128/25".parse().unwrap(), "fd00:7::/112".parse().unwrap()];
        let mut network = Network::new("sampan-1a2b", ranges);
        (network.port_mappings, network.mtu) = (true, Some(1400));
        let text = network.conflist(Path::new("/state"));
        check(&text, dir.path()).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["plugins"][0]["ipam"]["ranges"][0][0]["subnet"], "10.7.0.128/25");
        assert_eq!(value["plugins"][0]["ipam"]["routes"], json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]));
        assert_eq!((&value["plugins"][0]["ipMasq"], &value["plugins"][0]["mtu"]), (&json!(false), &json!(1400)));
        assert_eq!(value["plugins"][1]["capabilities"]["portMappings"], true);
    }

    #[test]
    fn what_cannot_work_is_named() {
        let dir = plugins();
        let ipam =
            |ipam: &str| format!(r#"{{"cniVersion":"0.4.0","name":"n","plugins":[{{"type":"ptp","ipam":{ipam}}}]}}"#);
        for (text, words) in [
            ("{".to_owned(), "not a CNI configuration"),
            (r#"{"cniVersion":"9","name":"n","plugins":[]}"#.into(), "cniVersion"),
            (r#"{"cniVersion":"0.4.0","name":"a b","plugins":[]}"#.into(), "name:"),
            (r#"{"cniVersion":"0.4.0","name":"n"}"#.into(), "plugins: missing"),
            (r#"{"cniVersion":"0.4.0","name":"n","type":"ptp"}"#.into(), "put it into a list"),
            (r#"{"cniVersion":"0.4.0","name":"n","plugins":[]}"#.into(), "plugins: empty"),
            (r#"{"cniVersion":"0.4.0","name":"n","plugins":[{"type":"bridge"}]}"#.into(), "no plugin bridge"),
            (r#"{"cniVersion":"0.4.0","name":"n","plugins":[{"type":"../sh"}]}"#.into(), "not the name of a plugin"),
            (ipam(r#"{"type":"host-local"}"#), "no range"),
            (ipam(r#"{"type":"host-local","subnet":"10.0.0/24"}"#), "plugins[0].ipam.subnet"),
            (ipam(r#"{"type":"host-local","subnet":"10.0.0.0/31"}"#), "too small"),
            (
                ipam(r#"{"type":"host-local","ranges":[[{"subnet":"10.0.0.0/24"}],[{"subnet":"10.0.0.0/16"}]]}"#),
                "overlap",
            ),
            (ipam(r#"{"type":"host-local","ranges":[[{"subnet":"10.0.0.0/24","gateway":"10.1.0.1"}]]}"#), "gateway"),
            (ipam(r#"{"type":"host-local","subnet":"10.0.0.0/24","routes":[{"dst":"x"}]}"#), "routes[0].dst"),
        ] {
            let error = check(&text, dir.path()).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn the_first_of_a_directory_counts() {
        let (dir, conf) = (plugins(), tempfile::tempdir().unwrap());
        assert!(load(conf.path(), dir.path()).unwrap_err().to_string().contains("no network configuration"));
        let good = Network::new("n", ["10.7.0.0/24".parse().unwrap()]).conflist(Path::new("/state"));
        std::fs::write(conf.path().join("20-good.conflist"), &good).unwrap();
        assert_eq!(load(conf.path(), dir.path()).unwrap(), good);
        std::fs::write(conf.path().join("10-bad.conf"), "nonsense").unwrap();
        assert!(load(conf.path(), dir.path()).unwrap_err().to_string().contains("10-bad.conf"));
    }
}
