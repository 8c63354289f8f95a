//! Services as nftables maps: one lookup says how many endpoints an address and port has, a second
//! one, with a random number below that count, which of them it is.
//!
//! Only Services that stick to a client's endpoint have chains of their own. A change of one
//! Service changes its elements and nothing else.

mod rules;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Stdio;

use ipnet::Ipv4Net;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::model::{Key, Port};
use crate::error::{Error, Result};
use rules::{Chain, Map, Place, Rules, element, rules};

/// Set on a packet whose source is to become the machine's own.
const MASQUERADE: u32 = 0x1000_0000;
/// All but that mark: what a packet is put into on its way to another node inherits it, and is not meant.
const KEEP: u32 = !MASQUERADE;

/// For so many endpoints a port there are chains from the beginning.
const ENDPOINTS: usize = 32;

/// Where the `nft` program is, if it is installed.
pub(crate) fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join("nft"))
        .find(|file| file.is_file())
}

/// The name of a node's table; nodes and clusters on one machine have one each.
pub(crate) fn table_name(cluster_id: &str, node_name: &str) -> String {
    let cluster: String = cluster_id.chars().filter(char::is_ascii_alphanumeric).collect();
    format!("sampan-{cluster}-{}", hash(&[node_name], 4))
}

fn hash(parts: &[&str], bytes: usize) -> String {
    let digest = Sha256::digest(parts.join("/"));
    digest.iter().take(bytes).fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Runs a script; all of it or nothing takes effect.
async fn run(doing: &'static str, script: &str) -> Result<()> {
    let failed = |message: String| Error::Nft { doing, message };
    let program = program().ok_or_else(|| failed("the program is not installed".to_owned()))?;
    let mut child = Command::new(program)
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let mut stdin = child.stdin.take();
    let feed = async {
        if let Some(stdin) = &mut stdin {
            // It may end before it has read all: what it says then is what matters.
            let _ = stdin.write_all(script.as_bytes()).await;
        }
        drop(stdin);
    };
    let ((), output) = tokio::join!(feed, child.wait_with_output());
    let output = output.map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let message: String = String::from_utf8_lossy(&output.stderr).chars().take(2000).collect();
    Err(failed(message))
}

/// Removes a table; false if there was none.
pub(crate) async fn delete_table(name: &str) -> Result<bool> {
    match run("to remove a table", &format!("delete table ip {name}\n")).await {
        Ok(()) => Ok(true),
        Err(Error::Nft { message, .. }) if message.contains("No such file") => Ok(false),
        Err(error) => Err(error),
    }
}

/// What a table is about, besides Services.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) table: String,
    pub(crate) node_name: String,
    pub(crate) pod_cidr: Ipv4Net,
    pub(crate) cluster_cidr: Ipv4Net,
    pub(crate) service_cidr: Ipv4Net,
    pub(crate) cluster_dns: Ipv4Addr,
    /// The device of the tunnels to other nodes, also while there is none.
    pub(crate) tunnels: String,
    /// Where node ports are; without loopback, which cannot be led elsewhere.
    pub(crate) node_addresses: Vec<Ipv4Addr>,
}

/// The table as the kernel has it, or should.
pub(crate) struct Table {
    settings: Settings,
    services: BTreeMap<Key, Rules>,
    /// Who claims a place; two Services may claim one (an external address): the first has it.
    claims: BTreeMap<Place, BTreeMap<Key, String>>,
    /// There is a chain for every count of endpoints up to here.
    most_endpoints: usize,
    loaded: bool,
    /// How often all of it was loaded.
    pub(crate) loads: usize,
}

impl Table {
    pub(crate) fn new(settings: Settings) -> Self {
        let (services, claims) = Default::default();
        Self { settings, services, claims, most_endpoints: ENDPOINTS, loaded: false, loads: 0 }
    }

    /// Applies what became of some Services: in one piece, or the whole table anew where the
    /// kernel may have another idea of it than we.
    pub(crate) async fn apply(&mut self, changes: &[(Key, Vec<Port>)]) -> Result<()> {
        let script = self.update(changes);
        if self.loaded {
            if script.is_empty() {
                return Ok(());
            }
            self.loaded = false;
            match run("a change of Services", &script).await {
                Ok(()) => {
                    self.loaded = true;
                    return Ok(());
                }
                Err(error) => tracing::warn!(%error, "loading all Services anew"),
            }
        }
        run("the table of Services", &self.whole()).await?;
        self.loaded = true;
        self.loads += 1;
        Ok(())
    }

    /// Takes the changes in and tells the script that leads from the old state to the new, if the kernel has the old.
    fn update(&mut self, changes: &[(Key, Vec<Port>)]) -> String {
        let table = self.settings.table.clone();
        let (mut before, mut script, mut after) = (String::new(), String::new(), String::new());
        let mut touched: BTreeMap<Place, Option<String>> = BTreeMap::new();
        for (key, ports) in changes {
            let Settings { pod_cidr, node_addresses, .. } = &self.settings;
            let new = rules(key, ports, |address| pod_cidr.contains(address) || node_addresses.contains(address));
            let old = self.services.remove(key).unwrap_or_default();
            // Some versions of nft cannot add a rule with these maps to a table that is there.
            let most = new.chains.iter().map(|chain| chain.count()).max().unwrap_or(0);
            if most > self.most_endpoints {
                self.most_endpoints = most.next_power_of_two();
                self.loaded = false;
            }
            for (name, sticky) in &new.sticky {
                if old.sticky.get(name) != Some(sticky) {
                    sticky.write(&table, name, &mut before);
                }
            }
            for (name, sticky) in &old.sticky {
                let stays = new.sticky.get(name);
                if stays.is_none() {
                    for chain in [format!("sticky-masq-{name}"), format!("sticky-{name}")] {
                        let _ = writeln!(after, "flush chain ip {table} {chain}\ndelete chain ip {table} {chain}");
                    }
                }
                let left = stays.map(|it| it.parts(name)).unwrap_or_default();
                for part in sticky.parts(name).difference(&left) {
                    let _ = writeln!(after, "flush chain ip {table} to-{part}\ndelete chain ip {table} to-{part}");
                    let _ = writeln!(after, "delete set ip {table} at-{part}");
                }
            }
            for place in old.elements.keys().chain(new.elements.keys()).filter(|_| self.loaded) {
                if !touched.contains_key(place) {
                    touched.insert(place.clone(), self.winner(place).cloned());
                }
            }
            for place in old.elements.keys().filter(|place| !new.elements.contains_key(*place)) {
                if let Some(claims) = self.claims.get_mut(place) {
                    claims.remove(key);
                    if claims.is_empty() {
                        self.claims.remove(place);
                    }
                }
            }
            for (place, value) in &new.elements {
                self.claims.entry(place.clone()).or_default().insert(key.clone(), value.clone());
            }
            if new != Rules::default() {
                self.services.insert(key.clone(), new);
            }
        }
        let (mut gone, mut come) = (BTreeMap::<Map, Vec<String>>::new(), BTreeMap::<Map, Vec<String>>::new());
        for ((map, place), old) in &touched {
            let new = self.winner(&(*map, place.clone()));
            if old.as_ref() == new {
                continue;
            }
            if old.is_some() {
                gone.entry(*map).or_default().push(place.clone());
            }
            if let Some(value) = new {
                come.entry(*map).or_default().push(element(place, value));
            }
        }
        for (verb, elements) in [("delete", gone), ("add", come)] {
            for (map, list) in elements {
                let _ = writeln!(script, "{verb} element ip {table} {} {{ {} }}", map.name(), list.join(", "));
            }
        }
        before + &script + &after
    }

    fn winner(&self, place: &Place) -> Option<&String> {
        self.claims.get(place)?.first_key_value().map(|(_, value)| value)
    }

    /// The script that replaces whatever table there is.
    fn whole(&self) -> String {
        let Settings { table, pod_cidr, cluster_cidr, service_cidr, cluster_dns, tunnels, node_addresses, .. } =
            &self.settings;
        let mut text = format!("add table ip {table}\ndelete table ip {table}\n");
        let _ = writeln!(
            text,
            "table ip {table} {{\n  comment \"node {}\"",
            self.settings.node_name.replace(['"', '\\'], "")
        );
        for map in Map::ALL {
            let _ = writeln!(text, "  {}", map.declaration());
        }
        let _ = write!(
            text,
            r"  set node-addresses {{ type ipv4_addr; }}
  chain translate {{
    meta l4proto {{ tcp, udp }} ip daddr . meta l4proto . th dport vmap @services
    meta l4proto {{ tcp, udp }} ip daddr @node-addresses meta l4proto . th dport vmap @node-ports
  }}
  chain prerouting {{ type nat hook prerouting priority dstnat; jump translate; }}
  chain output {{ type nat hook output priority -100; jump translate; }}
  chain postrouting {{
    type nat hook postrouting priority srcnat;
    oifname lo return
    meta mark and {MASQUERADE:#x} != 0 meta mark set meta mark and {KEEP:#x} masquerade
    oifname {tunnels} ip saddr != {cluster_cidr} masquerade
    ct status dnat ip saddr . ip daddr @hairpin masquerade
    ip saddr {service_cidr} masquerade
    ip saddr {pod_cidr} ip daddr != {cluster_cidr} masquerade
  }}
  chain from-tunnels {{
    type filter hook prerouting priority raw
    iifname {tunnels} ip saddr != {cluster_cidr} drop
    iifname {tunnels} ip daddr != {pod_cidr} drop
  }}
  chain refuse {{
    ct state established,related return
    meta l4proto {{ tcp, udp }} ip daddr . meta l4proto . th dport @answered return
    meta l4proto tcp reject with tcp reset
    reject
  }}
  chain refuse-external {{
    meta l4proto {{ tcp, udp }} ip daddr . meta l4proto . th dport @refused goto refuse
  }}
  chain input {{ type filter hook input priority filter; ip daddr {service_cidr} goto refuse; jump refuse-external; }}
  chain forward {{ type filter hook forward priority filter; ip daddr {service_cidr} goto refuse; jump refuse-external; }}
  chain local-output {{ type filter hook output priority filter; jump refuse-external; }}
"
        );
        text.push_str("}\n");
        for chain in Chain::ALL.iter().flat_map(|kind| (1..=self.most_endpoints).map(kind)) {
            let name = chain.name();
            let _ = writeln!(text, "add chain ip {table} {name}\nadd rule ip {table} {name} {}", chain.rules());
        }
        for (name, sticky) in self.services.values().flat_map(|rules| &rules.sticky) {
            sticky.write(table, name, &mut text);
        }
        let mut elements: BTreeMap<Map, Vec<String>> = BTreeMap::new();
        for ((map, place), claims) in &self.claims {
            if let Some((_, value)) = claims.first_key_value() {
                elements.entry(*map).or_default().push(element(place, value));
            }
        }
        let dns = ["tcp", "udp"].map(|protocol| format!("{cluster_dns} . {protocol} . 53"));
        elements.entry(Map::Answered).or_default().extend(dns);
        for (map, list) in elements {
            let _ = writeln!(text, "add element ip {table} {} {{ {} }}", map.name(), list.join(", "));
        }
        if !node_addresses.is_empty() {
            let list: Vec<String> = node_addresses.iter().map(ToString::to_string).collect();
            let _ = writeln!(text, "add element ip {table} node-addresses {{ {} }}", list.join(", "));
        }
        text
    }
}

#[cfg(test)]
mod tests;
