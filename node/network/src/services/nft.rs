//! Services as nftables maps: one lookup says how many endpoints an address and port has, a second
//! one, with a random number below that count, which of them it is.
//!
//! Only Services that stick to a client's endpoint have chains of their own. A change of one
//! Service changes its elements and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Stdio;

use ipnet::Ipv4Net;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::model::{Endpoint, Key, Port, Protocol};
use crate::error::{Error, Result};

/// Set on a packet whose source is to become the machine's own.
const MASQUERADE: u32 = 0x1000_0000;

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
    let cluster: String = cluster_id
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .collect();
    format!("sampan-{cluster}-{}", hash(&[node_name], 4))
}

fn hash(parts: &[&str], bytes: usize) -> String {
    let digest = Sha256::digest(parts.join("/"));
    digest
        .iter()
        .take(bytes)
        .fold(String::new(), |mut text, byte| {
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
    let message: String = String::from_utf8_lossy(&output.stderr)
        .chars()
        .take(2000)
        .collect();
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
    /// Where node ports are; without loopback, which cannot be led elsewhere.
    pub(crate) node_addresses: Vec<Ipv4Addr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Map {
    Services,
    Endpoints,
    NodePorts,
    NodeEndpoints,
    /// Addresses outside of the Service range that have no endpoint now.
    Refused,
    /// What a program of the machine answers itself.
    Answered,
    Hairpin,
}

impl Map {
    const ALL: [Self; 7] = [
        Self::Services,
        Self::Endpoints,
        Self::NodePorts,
        Self::NodeEndpoints,
        Self::Refused,
        Self::Answered,
        Self::Hairpin,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::Endpoints => "endpoints",
            Self::NodePorts => "node-ports",
            Self::NodeEndpoints => "node-endpoints",
            Self::Refused => "refused",
            Self::Answered => "answered",
            Self::Hairpin => "hairpin",
        }
    }

    fn declaration(self) -> &'static str {
        match self {
            Self::Services => {
                "map services { type ipv4_addr . inet_proto . inet_service : verdict; }"
            }
            Self::Endpoints => {
                "map endpoints { typeof ip daddr . meta l4proto . th dport . numgen random mod 65536 : ip daddr . th dport; }"
            }
            Self::NodePorts => "map node-ports { type inet_proto . inet_service : verdict; }",
            Self::NodeEndpoints => {
                "map node-endpoints { typeof meta l4proto . th dport . numgen random mod 65536 : ip daddr . th dport; }"
            }
            Self::Refused => "set refused { type ipv4_addr . inet_proto . inet_service; }",
            Self::Answered => "set answered { type ipv4_addr . inet_proto . inet_service; }",
            Self::Hairpin => "set hairpin { type ipv4_addr . ipv4_addr; }",
        }
    }
}

/// An element's place; its value is empty in a set.
type Place = (Map, String);

/// The chains of a port that sticks to a client's endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sticky {
    protocol: Protocol,
    seconds: u32,
    endpoints: Vec<Endpoint>,
}

/// All that one Service needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Rules {
    elements: BTreeMap<Place, String>,
    sticky: BTreeMap<String, Sticky>,
    chains: BTreeSet<Chain>,
}

/// Chains that all Services share; there is one of a kind for each count of endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Chain {
    /// By cluster or external address, keeping the client's.
    Pick(usize),
    PickMasqueraded(usize),
    /// By node port.
    Node(usize),
    NodeMasqueraded(usize),
}

impl Chain {
    const ALL: [fn(usize) -> Self; 4] = [
        Self::Pick,
        Self::PickMasqueraded,
        Self::Node,
        Self::NodeMasqueraded,
    ];

    fn count(self) -> usize {
        let (Self::Pick(count)
        | Self::PickMasqueraded(count)
        | Self::Node(count)
        | Self::NodeMasqueraded(count)) = self;
        count
    }

    fn name(self) -> String {
        match self {
            Self::Pick(count) => format!("pick-{count}"),
            Self::PickMasqueraded(count) => format!("pick-masq-{count}"),
            Self::Node(count) => format!("node-{count}"),
            Self::NodeMasqueraded(count) => format!("node-masq-{count}"),
        }
    }

    fn rules(self) -> String {
        let mark = format!("meta mark set meta mark or {MASQUERADE:#x}");
        match self {
            Self::Pick(count) => format!(
                "dnat ip to ip daddr . meta l4proto . th dport . numgen random mod {count} map @endpoints"
            ),
            Self::Node(count) => format!(
                "dnat ip to meta l4proto . th dport . numgen random mod {count} map @node-endpoints"
            ),
            Self::PickMasqueraded(count) => format!("{mark} {}", Self::Pick(count).rules()),
            Self::NodeMasqueraded(count) => format!("{mark} {}", Self::Node(count).rules()),
        }
    }
}

fn rules(key: &Key, ports: &[Port]) -> Rules {
    let mut rules = Rules::default();
    for port in ports {
        let (protocol, number) = (port.protocol.lower(), port.port);
        if port.needs_proxy() {
            for address in &port.cluster_ips {
                rules.set(
                    Map::Answered,
                    format!("{address} . {protocol} . {number}"),
                    String::new(),
                );
            }
            continue;
        }
        for endpoint in port.inside.iter().chain(&port.outside) {
            let address = endpoint.address;
            rules.set(
                Map::Hairpin,
                format!("{address} . {address}"),
                String::new(),
            );
        }
        let inside = rules.target(key, port, &port.inside, false);
        let outside = rules.target(key, port, &port.outside, !port.keep_source);
        for address in &port.cluster_ips {
            rules.address(port, *address, &port.inside, inside.as_deref(), Chain::Pick);
        }
        for address in &port.external_ips {
            let chain = if port.keep_source {
                Chain::Pick
            } else {
                Chain::PickMasqueraded
            };
            rules.address(port, *address, &port.outside, outside.as_deref(), chain);
            if port.outside.is_empty() {
                rules.set(
                    Map::Refused,
                    format!("{address} . {protocol} . {number}"),
                    String::new(),
                );
            }
        }
        if let Some(node_port) = port.node_port.filter(|_| !port.outside.is_empty()) {
            let verdict = outside.unwrap_or_else(|| {
                for (index, endpoint) in port.outside.iter().enumerate() {
                    let place = format!("{protocol} . {node_port} . {index}");
                    rules.set(Map::NodeEndpoints, place, target(endpoint));
                }
                let count = port.outside.len();
                rules.chain(if port.keep_source {
                    Chain::Node(count)
                } else {
                    Chain::NodeMasqueraded(count)
                })
            });
            rules.set(
                Map::NodePorts,
                format!("{protocol} . {node_port}"),
                format!("goto {verdict}"),
            );
        }
    }
    rules
}

fn target(endpoint: &Endpoint) -> String {
    format!("{} . {}", endpoint.address, endpoint.port)
}

impl Rules {
    fn set(&mut self, map: Map, place: String, value: String) {
        self.elements.insert((map, place), value);
    }

    fn chain(&mut self, chain: Chain) -> String {
        self.chains.insert(chain);
        chain.name()
    }

    /// The chain of a port that sticks to a client's endpoint, or none.
    fn target(
        &mut self,
        key: &Key,
        port: &Port,
        endpoints: &[Endpoint],
        masquerade: bool,
    ) -> Option<String> {
        let seconds = port.affinity.filter(|_| !endpoints.is_empty())?;
        let side = if port.inside == *endpoints {
            "in"
        } else {
            "out"
        };
        let name = hash(
            &[&key.0, &key.1, &port.name, port.protocol.lower(), side],
            8,
        );
        let chain = format!(
            "{}{name}",
            if masquerade {
                "sticky-masq-"
            } else {
                "sticky-"
            }
        );
        let sticky = Sticky {
            protocol: port.protocol,
            seconds,
            endpoints: endpoints.to_vec(),
        };
        self.sticky.insert(name, sticky);
        Some(chain)
    }

    fn address(
        &mut self,
        port: &Port,
        address: Ipv4Addr,
        endpoints: &[Endpoint],
        sticky: Option<&str>,
        chain: fn(usize) -> Chain,
    ) {
        if endpoints.is_empty() {
            return;
        }
        let place = format!("{address} . {} . {}", port.protocol.lower(), port.port);
        let verdict = match sticky {
            Some(chain) => chain.to_owned(),
            None => {
                for (index, endpoint) in endpoints.iter().enumerate() {
                    self.set(
                        Map::Endpoints,
                        format!("{place} . {index}"),
                        target(endpoint),
                    );
                }
                self.chain(chain(endpoints.len()))
            }
        };
        self.set(Map::Services, place, format!("goto {verdict}"));
    }
}

impl Port {
    /// Whether packets cannot simply be led to its endpoints: loopback is out of reach for them.
    pub(crate) fn needs_proxy(&self) -> bool {
        self.inside
            .iter()
            .chain(&self.outside)
            .any(|endpoint| endpoint.address.is_loopback())
    }
}

impl Sticky {
    /// An endpoint's chain, and the set of the clients that are at it.
    fn endpoint(name: &str, endpoint: &Endpoint) -> String {
        format!("{name}-{}-{}", endpoint.address, endpoint.port).replace('.', "-")
    }

    fn parts(&self, name: &str) -> BTreeSet<String> {
        self.endpoints
            .iter()
            .map(|endpoint| Self::endpoint(name, endpoint))
            .collect()
    }

    /// (Re)writes the chains; the clients of an endpoint that stays stay with it.
    fn write(&self, table: &str, name: &str, script: &mut String) {
        let seconds = self.seconds;
        for endpoint in &self.endpoints {
            let part = Self::endpoint(name, endpoint);
            let _ = writeln!(
                script,
                "add set ip {table} at-{part} {{ type ipv4_addr; flags dynamic, timeout; size 65536; }}"
            );
            let _ = writeln!(script, "add chain ip {table} to-{part}");
            let _ = writeln!(script, "flush chain ip {table} to-{part}");
            let _ = writeln!(
                script,
                "add rule ip {table} to-{part} update @at-{part} {{ ip saddr timeout {seconds}s }} meta l4proto {} dnat to {}:{}",
                self.protocol.lower(),
                endpoint.address,
                endpoint.port
            );
        }
        for chain in [format!("sticky-{name}"), format!("sticky-masq-{name}")] {
            let _ = writeln!(
                script,
                "add chain ip {table} {chain}\nflush chain ip {table} {chain}"
            );
        }
        for part in self.parts(name) {
            let _ = writeln!(
                script,
                "add rule ip {table} sticky-{name} ip saddr @at-{part} goto to-{part}"
            );
        }
        let choices: Vec<String> = self
            .parts(name)
            .iter()
            .enumerate()
            .map(|(index, part)| format!("{index} : goto to-{part}"))
            .collect();
        let _ = writeln!(
            script,
            "add rule ip {table} sticky-{name} numgen random mod {} vmap {{ {} }}",
            choices.len(),
            choices.join(", ")
        );
        let _ = writeln!(
            script,
            "add rule ip {table} sticky-masq-{name} meta mark set meta mark or {MASQUERADE:#x} goto sticky-{name}"
        );
    }
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
        Self {
            settings,
            services,
            claims,
            most_endpoints: ENDPOINTS,
            loaded: false,
            loads: 0,
        }
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

    /// Takes the changes in and tells the script that leads from the old state to the new.
    fn update(&mut self, changes: &[(Key, Vec<Port>)]) -> String {
        let table = self.settings.table.clone();
        let (mut before, mut script, mut after) = (String::new(), String::new(), String::new());
        let mut touched: BTreeMap<Place, Option<String>> = BTreeMap::new();
        for (key, ports) in changes {
            let new = rules(key, ports);
            let old = self.services.remove(key).unwrap_or_default();
            // Some versions of nft cannot add a rule with these maps to a table that is there.
            let most = new
                .chains
                .iter()
                .map(|chain| chain.count())
                .max()
                .unwrap_or(0);
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
                        let _ = writeln!(
                            after,
                            "flush chain ip {table} {chain}\ndelete chain ip {table} {chain}"
                        );
                    }
                }
                let left = stays.map(|it| it.parts(name)).unwrap_or_default();
                for part in sticky.parts(name).difference(&left) {
                    let _ = writeln!(
                        after,
                        "flush chain ip {table} to-{part}\ndelete chain ip {table} to-{part}"
                    );
                    let _ = writeln!(after, "delete set ip {table} at-{part}");
                }
            }
            for place in old.elements.keys().chain(new.elements.keys()) {
                if !touched.contains_key(place) {
                    touched.insert(place.clone(), self.winner(place).cloned());
                }
            }
            for place in old
                .elements
                .keys()
                .filter(|place| !new.elements.contains_key(*place))
            {
                if let Some(claims) = self.claims.get_mut(place) {
                    claims.remove(key);
                    if claims.is_empty() {
                        self.claims.remove(place);
                    }
                }
            }
            for (place, value) in &new.elements {
                self.claims
                    .entry(place.clone())
                    .or_default()
                    .insert(key.clone(), value.clone());
            }
            if new != Rules::default() {
                self.services.insert(key.clone(), new);
            }
        }
        let (mut gone, mut come) = (
            BTreeMap::<Map, Vec<String>>::new(),
            BTreeMap::<Map, Vec<String>>::new(),
        );
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
                let _ = writeln!(
                    script,
                    "{verb} element ip {table} {} {{ {} }}",
                    map.name(),
                    list.join(", ")
                );
            }
        }
        before + &script + &after
    }

    fn winner(&self, place: &Place) -> Option<&String> {
        self.claims
            .get(place)?
            .first_key_value()
            .map(|(_, value)| value)
    }

    /// The script that replaces whatever table there is.
    fn whole(&self) -> String {
        let Settings {
            table,
            node_name,
            pod_cidr,
            cluster_cidr,
            service_cidr,
            cluster_dns,
            node_addresses,
        } = &self.settings;
        let mut text = format!("add table ip {table}\ndelete table ip {table}\n");
        let _ = writeln!(
            text,
            "table ip {table} {{\n  comment \"node {}\"",
            node_name.replace(['"', '\\'], "")
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
    meta mark and {MASQUERADE:#x} != 0 masquerade
    ct status dnat ip saddr . ip daddr @hairpin masquerade
    ip saddr {service_cidr} masquerade
    ip saddr {pod_cidr} ip daddr != {cluster_cidr} masquerade
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
        for chain in Chain::ALL
            .iter()
            .flat_map(|kind| (1..=self.most_endpoints).map(kind))
        {
            let name = chain.name();
            let _ = writeln!(
                text,
                "add chain ip {table} {name}\nadd rule ip {table} {name} {}",
                chain.rules()
            );
        }
        for (name, sticky) in self.services.values().flat_map(|rules| &rules.sticky) {
            sticky.write(table, name, &mut text);
        }
        let mut elements: BTreeMap<Map, Vec<String>> = BTreeMap::new();
        for ((map, place), claims) in &self.claims {
            if let Some((_, value)) = claims.first_key_value() {
                elements
                    .entry(*map)
                    .or_default()
                    .push(element(place, value));
            }
        }
        let dns = ["tcp", "udp"].map(|protocol| format!("{cluster_dns} . {protocol} . 53"));
        elements.entry(Map::Answered).or_default().extend(dns);
        for (map, list) in elements {
            let _ = writeln!(
                text,
                "add element ip {table} {} {{ {} }}",
                map.name(),
                list.join(", ")
            );
        }
        if !node_addresses.is_empty() {
            let list: Vec<String> = node_addresses.iter().map(ToString::to_string).collect();
            let _ = writeln!(
                text,
                "add element ip {table} node-addresses {{ {} }}",
                list.join(", ")
            );
        }
        text
    }
}

fn element(place: &str, value: &str) -> String {
    if value.is_empty() {
        place.to_owned()
    } else {
        format!("{place} : {value}")
    }
}

#[cfg(test)]
#[path = "nft_tests.rs"]
mod tests;
