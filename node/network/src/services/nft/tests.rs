#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::services::model::Endpoint;

fn settings() -> Settings {
    Settings {
        tables: table_names("test", "node"),
        node_name: "node".to_owned(),
        pod_cidr: "10.244.0.0/24".parse().unwrap(),
        cluster_cidr: "10.244.0.0/16".parse().unwrap(),
        service_cidr: "10.96.0.0/16".parse().unwrap(),
        cluster_dns: Ipv4Addr::new(10, 96, 0, 10),
        tunnels: "v0a0b0c0d010203".to_owned(),
        node_addresses: vec![Ipv4Addr::new(192, 0, 2, 1)],
    }
}

impl Table {
    /// Every element that there should be, as `nft` would show it.
    pub(crate) fn shown(&self) -> BTreeSet<String> {
        let shown = |(place, value): &(Place, Value)| match value {
            Value::Nothing => format!("{} {place}", place.map.name()),
            value => format!("{} {place} : {value}", place.map.name()),
        };
        self.elements().come.iter().map(shown).collect()
    }
}

/// What `nft` would make of our scripts: strict about what is there and what is not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Kernel {
    elements: BTreeMap<String, BTreeMap<String, String>>,
    chains: BTreeMap<String, Vec<String>>,
    sets: BTreeSet<String>,
    node_addresses: String,
}

impl Kernel {
    fn run(&mut self, script: &str) {
        let mut in_table = false;
        for line in script.lines() {
            if line.starts_with("table ip") || in_table {
                in_table = line != "}";
                continue;
            }
            let words: Vec<&str> = line.split(' ').collect();
            let name = (*words.get(4).unwrap_or(&"")).to_owned();
            match words.as_slice() {
                ["add", "set", ..] => drop(self.sets.insert(name)),
                ["delete", "set", ..] => assert!(self.sets.remove(&name), "{line}"),
                ["add", "chain", ..] => drop(self.chains.entry(name).or_default()),
                ["flush", "chain", ..] => self.chains.get_mut(&name).unwrap().clear(),
                ["delete", "chain", ..] => {
                    assert_eq!(self.chains.remove(&name), Some(Vec::new()), "{line}");
                    self.assert_unused(&name, line);
                }
                ["add", "rule", _, _, _, rule @ ..] => self.chains.get_mut(&name).unwrap().push(rule.join(" ")),
                ["add", "element", _, _, "node-addresses", ..] => self.node_addresses = line.to_owned(),
                _ => panic!("{line}"),
            }
        }
    }

    fn change(&mut self, elements: &Elements) {
        for place in &elements.gone {
            let gone = self.elements.get_mut(place.map.name()).and_then(|map| map.remove(&place.to_string()));
            assert!(gone.is_some(), "{place}");
        }
        for (place, value) in &elements.come {
            if let Value::Goto(chain) = value {
                assert!(self.chains.contains_key(&chain.to_string()), "{value}");
            }
            let map = self.elements.entry(place.map.name().to_owned()).or_default();
            assert_eq!(map.insert(place.to_string(), value.to_string()), None, "{place}");
        }
        self.elements.retain(|_, map| !map.is_empty());
    }

    fn update(&mut self, update: Update) {
        self.run(&update.before);
        self.change(&update.elements);
        self.run(&update.after);
    }

    fn load(&mut self, table: &Table) {
        *self = Self::default();
        self.run(&table.chains("loaded"));
        self.change(&table.elements());
    }

    fn assert_unused(&self, chain: &str, line: &str) {
        let goto = format!("goto {chain}");
        let used = self.elements.values().flat_map(|map| map.values()).any(|value| *value == goto)
            || self
                .chains
                .values()
                .flatten()
                .any(|rule| rule.split(" goto ").skip(1).any(|it| it.split([' ', ',']).next() == Some(chain)));
        assert!(!used, "still used: {line}");
    }

    fn get(&self, map: &str, place: &str) -> Option<&String> {
        self.elements.get(map)?.get(place)
    }

    /// Where packets to this address and port may go.
    fn lead(&self, address: &str, protocol: &str, port: u16) -> Vec<String> {
        let place = format!("{address} . {protocol} . {port}");
        self.follow("services", "endpoints", &place)
    }

    fn follow(&self, services: &str, endpoints: &str, place: &str) -> Vec<String> {
        let Some(verdict) = self.get(services, place) else {
            return Vec::new();
        };
        let chain = verdict.strip_prefix("goto ").unwrap();
        let rules = &self.chains[chain];
        let masquerading = chain.contains("masq");
        assert_eq!(rules.iter().any(|rule| rule.contains("meta mark set")), masquerading);
        if let Some(name) = chain.strip_prefix("sticky-masq-").or(chain.strip_prefix("sticky-")) {
            let sticky = &self.chains[&format!("sticky-{name}")];
            let last = sticky.last().unwrap();
            return last
                .split("goto ")
                .skip(1)
                .map(|part| {
                    let chain = part.split([' ', ',']).next().unwrap();
                    let rule = &self.chains[chain][0];
                    rule.rsplit(' ').next().unwrap().replace(':', " . ")
                })
                .collect();
        }
        let count: usize = chain.rsplit('-').next().unwrap().parse().unwrap();
        assert!(rules[0].contains(&format!("random mod {count} ")));
        (0..count).map(|index| self.get(endpoints, &format!("{place} . {index}")).unwrap().clone()).collect()
    }
}

fn key(name: &str) -> Key {
    ("shop".to_owned(), name.to_owned())
}

fn port(address: u8, endpoints: &[u8]) -> Port {
    let endpoints: Vec<Endpoint> =
        endpoints.iter().map(|last| Endpoint { address: Ipv4Addr::new(10, 244, 0, *last), port: 8080 }).collect();
    Port {
        name: "http".to_owned(),
        protocol: Protocol::Tcp,
        cluster_ips: vec![Ipv4Addr::new(10, 96, 0, address)],
        external_ips: Vec::new(),
        port: 80,
        node_port: None,
        affinity: None,
        inside: endpoints.clone(),
        outside: endpoints,
        keep_source: false,
    }
}

fn loaded() -> (Table, Kernel) {
    let mut table = Table::new(settings());
    let mut kernel = Kernel::default();
    table.sizes.iter_mut().for_each(Size::make_room);
    kernel.load(&table);
    table.loaded = Some("loaded".to_owned());
    (table, kernel)
}

fn targets(port: &[Endpoint]) -> Vec<String> {
    port.iter().map(|endpoint| Value::Endpoint(*endpoint).to_string()).collect()
}

#[test]
fn an_address_leads_to_its_endpoints() {
    let (mut table, mut kernel) = loaded();
    assert_eq!(kernel.get("answered", "10.96.0.10 . udp . 53"), Some(&String::new()));
    let one = port(1, &[1, 2, 3]);
    kernel.update(table.update(&[(key("a"), vec![one.clone()])]));
    assert_eq!(kernel.lead("10.96.0.1", "tcp", 80), targets(&one.inside));
    assert_eq!(kernel.lead("10.96.0.1", "udp", 80), Vec::<String>::new());
    assert!(kernel.get("hairpin", "10.244.0.2 . 10.244.0.2").is_some());
    // A change of one Service touches that one.
    let update = table.update(&[(key("b"), vec![port(2, &[7, 8])])]);
    assert_eq!((update.elements.gone.len(), update.elements.come.len()), (0, 5), "{update:?}");
    kernel.update(update);
    kernel.update(table.update(&[(key("a"), vec![port(1, &[])])]));
    assert_eq!(kernel.lead("10.96.0.1", "tcp", 80), Vec::<String>::new());
    assert!(kernel.get("hairpin", "10.244.0.2 . 10.244.0.2").is_none());
    assert_eq!(table.update(&[(key("a"), vec![port(1, &[])])]), Update::default());
}

#[test]
fn only_pods_of_the_node_reach_themselves_through_it() {
    let (mut table, mut kernel) = loaded();
    let mut one = port(1, &[1]);
    one.inside.push(Endpoint { address: Ipv4Addr::new(10, 244, 7, 1), port: 8080 });
    one.inside.push(Endpoint { address: Ipv4Addr::new(192, 0, 2, 1), port: 8080 });
    kernel.update(table.update(&[(key("a"), vec![one])]));
    let masqueraded = |address: &str| kernel.get("hairpin", &format!("{address} . {address}")).is_some();
    assert!(masqueraded("10.244.0.1") && masqueraded("192.0.2.1") && !masqueraded("10.244.7.1"));
}

#[test]
fn node_ports_and_external_addresses() {
    let (mut table, mut kernel) = loaded();
    let mut service = port(1, &[1, 2]);
    service.node_port = Some(30080);
    service.external_ips = vec![Ipv4Addr::new(192, 0, 2, 9)];
    kernel.update(table.update(&[(key("a"), vec![service.clone()])]));
    assert_eq!(kernel.get("node-ports", "tcp . 30080").unwrap(), "goto node-masq-2");
    assert_eq!(kernel.follow("node-ports", "node-endpoints", "tcp . 30080"), targets(&service.outside));
    assert_eq!(kernel.get("services", "192.0.2.9 . tcp . 80").unwrap(), "goto pick-masq-2");
    service.keep_source = true;
    service.outside.pop();
    kernel.update(table.update(&[(key("a"), vec![service.clone()])]));
    assert_eq!(kernel.get("node-ports", "tcp . 30080").unwrap(), "goto node-1");
    assert_eq!(kernel.get("services", "192.0.2.9 . tcp . 80").unwrap(), "goto pick-1");
    assert_eq!(kernel.get("services", "10.96.0.1 . tcp . 80").unwrap(), "goto pick-2");
    service.outside.clear();
    kernel.update(table.update(&[(key("a"), vec![service])]));
    assert_eq!(kernel.get("node-ports", "tcp . 30080"), None);
    assert!(kernel.get("refused", "192.0.2.9 . tcp . 80").is_some());
}

#[test]
fn loopback_endpoints_are_left_to_the_proxy() {
    let (mut table, mut kernel) = loaded();
    let mut service = port(1, &[]);
    service.inside = vec![Endpoint { address: Ipv4Addr::LOCALHOST, port: 6443 }];
    kernel.update(table.update(&[(key("kubernetes"), vec![service])]));
    assert_eq!(kernel.get("services", "10.96.0.1 . tcp . 80"), None);
    assert!(kernel.get("answered", "10.96.0.1 . tcp . 80").is_some());
}

#[test]
fn an_address_claimed_twice_goes_to_the_next_when_the_first_lets_go() {
    let (mut table, mut kernel) = loaded();
    kernel.update(table.update(&[(key("b"), vec![port(1, &[5])])]));
    kernel.update(table.update(&[(key("a"), vec![port(1, &[6, 7])])]));
    assert_eq!(kernel.lead("10.96.0.1", "tcp", 80), ["10.244.0.6 . 8080", "10.244.0.7 . 8080"]);
    kernel.update(table.update(&[(key("a"), Vec::new())]));
    assert_eq!(kernel.lead("10.96.0.1", "tcp", 80), ["10.244.0.5 . 8080"]);
}

#[test]
fn sticky_clients_keep_their_endpoint_while_others_go() {
    let (mut table, mut kernel) = loaded();
    let sticky = |endpoints: &[u8]| Port { affinity: Some(60), ..port(1, endpoints) };
    kernel.update(table.update(&[(key("a"), vec![sticky(&[1, 2])])]));
    let before = kernel.sets.clone();
    assert_eq!(before.len(), 2);
    kernel.update(table.update(&[(key("a"), vec![sticky(&[2, 3])])]));
    assert_eq!(kernel.sets.intersection(&before).count(), 1);
    assert_eq!(kernel.sets.len(), 2);
    assert_eq!(kernel.lead("10.96.0.1", "tcp", 80), ["10.244.0.2 . 8080", "10.244.0.3 . 8080"]);
    kernel.update(table.update(&[(key("a"), vec![port(1, &[2, 3])])]));
    assert!(kernel.sets.is_empty() && !kernel.chains.keys().any(|name| name.contains("sticky")));
}

#[test]
fn more_endpoints_than_there_are_chains() {
    let (mut table, mut kernel) = loaded();
    let more = (1..=u8::try_from(ENDPOINTS + 1).unwrap()).collect::<Vec<_>>();
    table.update(&[(key("a"), vec![port(1, &more)])]);
    assert_eq!(table.loaded, None);
    kernel.load(&table);
    assert_eq!(kernel.lead("10.96.0.1", "tcp", 80).len(), more.len());
    assert!(kernel.chains.contains_key(&format!("node-masq-{}", 2 * ENDPOINTS)));
}

#[test]
fn more_elements_than_there_is_room_for() {
    let (mut table, _) = loaded();
    let many = |from: u16, to: u16| (from..to).map(|number| Port { port: number, ..port(1, &[1]) }).collect::<Vec<_>>();
    let room = u16::try_from(Size::LEAST - Size::OWN).unwrap();
    table.update(&[(key("a"), many(1, room))]);
    table.update(&[(key("b"), many(room, room + 1))]);
    assert!(table.loaded.is_some());
    table.update(&[(key("b"), Vec::new())]);
    table.update(&[(key("b"), many(room, room + 2))]);
    assert!(table.loaded.is_none());
    table.sizes.iter_mut().for_each(Size::make_room);
    assert!(
        table.chains("t").contains("map services { type ipv4_addr . inet_proto . inet_service : verdict; size 4096; }")
    );
}

fn any_port() -> impl Strategy<Value = Port> {
    (
        1..6u8,
        prop::collection::btree_set(1..8u8, 0..5),
        prop::option::of(30000..30003u16),
        prop::option::of(Just(60u32)),
        any::<bool>(),
        any::<bool>(),
        0..2usize,
    )
        .prop_map(|(address, endpoints, node_port, affinity, keep_source, external, drop)| {
            let mut service = port(address, &endpoints.into_iter().collect::<Vec<_>>());
            service.node_port = node_port;
            service.affinity = affinity;
            service.keep_source = keep_source;
            if keep_source {
                service.outside.truncate(service.outside.len().saturating_sub(drop));
            }
            if external {
                service.external_ips = vec![Ipv4Addr::new(192, 0, 2, address)];
            }
            service
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// Changes one by one lead where loading everything at once does, and packets to where the
    /// endpoints are.
    #[test]
    fn changes_add_up(steps in prop::collection::vec((0..4u8, prop::option::of(any_port())), 1..16)) {
        let (mut table, mut kernel) = loaded();
        let mut services: BTreeMap<Key, Port> = BTreeMap::new();
        for (number, service) in steps {
            let key = key(&format!("service-{number}"));
            kernel.update(table.update(&[(key.clone(), service.iter().cloned().collect())]));
            match service {
                Some(service) => drop(services.insert(key, service)),
                None => drop(services.remove(&key)),
            }
            let mut anew = Kernel::default();
            anew.load(&table);
            let mut changed = kernel.clone();
            changed.sets.clone_from(&anew.sets);
            prop_assert_eq!(&anew, &changed);
            for service in services.values() {
                // Among those with endpoints, the first that claims an address has it.
                let first = services
                    .values()
                    .find(|it| it.cluster_ips == service.cluster_ips && !it.inside.is_empty())
                    .map(|it| targets(&it.inside))
                    .unwrap_or_default();
                let mut led = kernel.lead(&service.cluster_ips[0].to_string(), "tcp", 80);
                led.sort();
                let mut first = first;
                first.sort();
                prop_assert_eq!(led, first);
            }
        }
    }
}
