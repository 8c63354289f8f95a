//! Services as nftables maps: one lookup says how many endpoints an address and port has, a second
//! one, with a random number below that count, which of them it is.
//!
//! Only Services that stick to a client's endpoint have chains of their own. A change of one
//! Service changes its elements and nothing else.

mod batch;
mod element;
mod program;
mod rules;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;
use sha2::{Digest, Sha256};

use super::model::{Key, Port, Protocol};
use crate::error::Result;
pub use batch::tables_in_force;
use batch::{Elements, delete_tables, tables};
use element::{Chain, Map, Place, Value};
use program::run;
pub(crate) use program::{delete_table, program};
use rules::{Rules, rules};

/// Set on a packet whose source is to become the machine's own.
const MASQUERADE: u32 = 0x1000_0000;
/// All but that mark: what a packet is put into on its way to another node inherits it, and is not meant.
const KEEP: u32 = !MASQUERADE;

/// For so many endpoints a port there are chains from the beginning: `nft` takes 0.4 ms for one.
const ENDPOINTS: usize = 8;

/// The names of a node's table, of which one at a time is in force: where all is loaded anew, the
/// other one is made first. Nodes and clusters on one machine have names of their own.
pub(crate) fn table_names(cluster_id: &str, node_name: &str) -> [String; 2] {
    let cluster: String = cluster_id.chars().filter(char::is_ascii_alphanumeric).collect();
    let node = digest(&[node_name]) >> 32;
    ["", "-2"].map(|which| format!("sampan-{cluster}-{node:08x}{which}"))
}

fn digest(parts: &[&str]) -> u64 {
    let digest = Sha256::digest(parts.join("/"));
    digest.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

/// What a table is about, besides Services.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) tables: [String; 2],
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
    services: HashMap<Arc<Key>, Rules>,
    claims: HashMap<Place, Claims>,
    sizes: [Size; Map::ALL.len()],
    /// There is a chain for every count of endpoints up to here.
    most_endpoints: usize,
    /// Which of its names is in force, if that is as we think.
    loaded: Option<String>,
    /// How often all of it was loaded.
    pub(crate) loads: usize,
}

/// How many elements a map holds, and for how many it was made: one that grows sorts all anew every time.
#[derive(Clone, Copy, Debug, Default)]
struct Size {
    held: usize,
    room: usize,
}

impl Size {
    const LEAST: usize = 1024;
    /// What is there besides what Services claim.
    const OWN: usize = 2;

    fn make_room(&mut self) {
        self.room = (2 * (self.held + Self::OWN)).next_power_of_two().max(Self::LEAST);
    }

    fn is_full(self) -> bool {
        self.held + Self::OWN > self.room
    }
}

/// Who claims a place, in order. Two Services may claim one (an external address): the first has it.
#[derive(Default)]
struct Claims(Vec<(Arc<Key>, Value)>);

impl Claims {
    fn winner(&self) -> Option<Value> {
        self.0.first().map(|claim| claim.1)
    }

    fn set(&mut self, key: &Arc<Key>, value: Value) {
        match self.0.binary_search_by(|claim| claim.0.cmp(key)) {
            Ok(index) => self.0.iter_mut().skip(index).take(1).for_each(|claim| claim.1 = value),
            Err(index) => self.0.insert(index, (key.clone(), value)),
        }
    }

    fn remove(&mut self, key: &Key) {
        self.0.retain(|claim| *claim.0 != *key);
    }
}

/// What leads from one state of the table to the next: chains that are needed first, the elements,
/// and an end to chains that nothing leads to any more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Update {
    before: String,
    elements: Elements,
    after: String,
}

impl Update {
    async fn apply(self, table: &str) -> Result<()> {
        if !self.before.is_empty() {
            run("chains of Services", &self.before).await?;
        }
        self.elements.apply(table).await?;
        if !self.after.is_empty() {
            run("chains of Services that are gone", &self.after).await?;
        }
        Ok(())
    }
}

impl Table {
    pub(crate) fn new(settings: Settings) -> Self {
        let (services, claims, sizes) = Default::default();
        Self { settings, services, claims, sizes, most_endpoints: ENDPOINTS, loaded: None, loads: 0 }
    }

    /// Applies what became of some Services; or loads all anew where the kernel may have another
    /// idea of the table than we.
    pub(crate) async fn apply(&mut self, changes: &[(Key, Vec<Port>)]) -> Result<()> {
        let update = self.update(changes);
        if let Some(table) = self.loaded.take() {
            match update.apply(&table).await {
                Ok(()) => {
                    self.loaded = Some(table);
                    return Ok(());
                }
                Err(error) => tracing::warn!(%error, "loading all Services anew"),
            }
        }
        self.load().await
    }

    /// Makes the table beside the one that is in force, if there is one, and puts it in its place.
    async fn load(&mut self) -> Result<()> {
        self.sizes.iter_mut().for_each(Size::make_room);
        let known = tables().await?;
        let [first, second] = &self.settings.tables;
        let active = known.iter().any(|it| it.in_force && it.name == *first);
        let (table, other) = if active { (second, first) } else { (first, second) };
        let there = |name: &String| known.iter().any(|it| it.name == *name).then_some(name).cloned();
        let (left, old) = (there(table), there(other));
        delete_tables(left.as_slice()).await?;
        run("the table of Services", &self.chains(table)).await?;
        self.elements().apply_instead_of(old.as_slice(), table).await?;
        self.loaded = Some(table.clone());
        self.loads += 1;
        Ok(())
    }

    /// Takes the changes in and tells what leads from the old state to the new, if the kernel has the old.
    fn update(&mut self, changes: &[(Key, Vec<Port>)]) -> Update {
        let mut update = Update::default();
        let mut touched: BTreeMap<Place, Option<Value>> = BTreeMap::new();
        for (key, ports) in changes {
            let Settings { pod_cidr, node_addresses, .. } = &self.settings;
            let new = rules(key, ports, |address| pod_cidr.contains(address) || node_addresses.contains(address));
            let (key, old) =
                self.services.remove_entry(key).unwrap_or_else(|| (Arc::new(key.clone()), Rules::default()));
            // Some versions of nft cannot add a rule with these maps to a table that is there.
            let most = new.most_endpoints();
            if most > self.most_endpoints {
                self.most_endpoints = most.next_power_of_two();
                self.loaded = None;
            }
            if let Some(table) = &self.loaded {
                sticky_chains(table, &old, &new, &mut update);
            }
            if self.loaded.is_some() {
                for (place, _) in old.elements.iter().chain(&new.elements) {
                    touched.entry(*place).or_insert_with(|| self.winner(place));
                }
            }
            for (place, _) in &old.elements {
                self.let_go(place, &key);
            }
            for (place, value) in &new.elements {
                let claims = self.claims.entry(*place).or_insert_with(|| {
                    self.sizes[place.map as usize].held += 1;
                    Claims::default()
                });
                claims.set(&key, *value);
            }
            if new != Rules::default() {
                self.services.insert(key, new);
            }
        }
        if self.sizes.iter().any(|size| size.is_full()) {
            self.loaded = None;
        }
        for (place, old) in touched {
            let new = self.winner(&place);
            if old != new {
                update.elements.gone.extend(old.map(|_| place));
                update.elements.come.extend(new.map(|value| (place, value)));
            }
        }
        update
    }

    fn winner(&self, place: &Place) -> Option<Value> {
        self.claims.get(place)?.winner()
    }

    fn let_go(&mut self, place: &Place, key: &Key) {
        if let Some(claims) = self.claims.get_mut(place) {
            claims.remove(key);
            if claims.0.is_empty() {
                self.claims.remove(place);
                self.sizes[place.map as usize].held -= 1;
            }
        }
    }

    /// All elements that there should be.
    fn elements(&self) -> Elements {
        let dns = self.settings.cluster_dns;
        let dns = [Protocol::Tcp, Protocol::Udp].map(|it| (Place::at(Map::Answered, dns, it, 53), Value::Nothing));
        let claimed = self.claims.iter().filter_map(|(place, claims)| Some((*place, claims.winner()?)));
        Elements { gone: Vec::new(), come: claimed.chain(dns).collect() }
    }

    /// The script that makes a table with all but elements, not in force yet.
    fn chains(&self, table: &str) -> String {
        let Settings { pod_cidr, cluster_cidr, service_cidr, tunnels, node_addresses, .. } = &self.settings;
        let mut text = String::new();
        let _ = writeln!(
            text,
            "table ip {table} {{\n  flags dormant\n  comment \"node {}\"",
            self.settings.node_name.replace(['"', '\\'], "")
        );
        for map in Map::ALL {
            let _ = writeln!(text, "  {} size {}; }}", map.declaration(), self.sizes[map as usize].room);
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
        for chain in Chain::SHARED.iter().flat_map(|kind| (1..=self.most_endpoints).map(kind)) {
            let _ = writeln!(text, "add chain ip {table} {chain}\nadd rule ip {table} {chain} {}", chain.rule());
        }
        for (name, sticky) in self.services.values().flat_map(|rules| &rules.sticky) {
            sticky.write(table, *name, &mut text);
        }
        if !node_addresses.is_empty() {
            let list: Vec<String> = node_addresses.iter().map(ToString::to_string).collect();
            let _ = writeln!(text, "add element ip {table} node-addresses {{ {} }}", list.join(", "));
        }
        text
    }
}

/// The chains that a Service's ports with sticking clients need, and those that they needed.
fn sticky_chains(table: &str, old: &Rules, new: &Rules, update: &mut Update) {
    let (before, after) = (&mut update.before, &mut update.after);
    for (name, sticky) in &new.sticky {
        if old.sticky.get(name) != Some(sticky) {
            sticky.write(table, *name, before);
        }
    }
    for (name, sticky) in &old.sticky {
        let stays = new.sticky.get(name);
        if stays.is_none() {
            for chain in [Chain::StickyMasqueraded(*name), Chain::Sticky(*name)] {
                let _ = writeln!(after, "flush chain ip {table} {chain}\ndelete chain ip {table} {chain}");
            }
        }
        let left: BTreeSet<String> = stays.map(|it| it.parts(*name)).unwrap_or_default();
        for part in sticky.parts(*name).difference(&left) {
            let _ = writeln!(after, "flush chain ip {table} to-{part}\ndelete chain ip {table} to-{part}");
            let _ = writeln!(after, "delete set ip {table} at-{part}");
        }
    }
}

#[cfg(test)]
mod tests;
