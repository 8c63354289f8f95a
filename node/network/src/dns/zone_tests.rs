#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use proptest::prelude::*;
use sampan_client::Change;
use serde_json::{Value, json};

use super::*;

fn zone() -> Zone {
    let ranges = ["10.96.0.0/16".parse().unwrap(), "10.244.0.0/16".parse().unwrap()];
    Zone::new("cluster.local", Ipv4Addr::new(10, 96, 0, 10), ranges).unwrap()
}

fn state() -> State {
    let mut state = State::default();
    let mut service = |name: &str, spec: Value| {
        let object = json!({ "metadata": { "name": name, "namespace": "shop" }, "spec": spec });
        state.apply_service(&Change::Added(Arc::new(serde_json::from_value(object).unwrap())));
    };
    let ports = json!([
        { "name": "http", "port": 80, "protocol": "TCP" },
        { "name": "dns", "port": 53, "protocol": "UDP" },
    ]);
    service("web", json!({ "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"], "ports": ports }));
    service("db", json!({ "clusterIP": "None", "clusterIPs": ["None"], "ports": ports }));
    service("empty", json!({ "clusterIP": "None", "clusterIPs": ["None"] }));
    service("world", json!({ "type": "ExternalName", "externalName": "www.example.com" }));
    service("other", json!({ "type": "ExternalName", "externalName": "web.shop.svc.cluster.local" }));
    let slice = json!({
        "metadata": { "name": "db-1", "namespace": "shop", "labels": { "kubernetes.io/service-name": "db" } },
        "addressType": "IPv4",
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
        "endpoints": [
            { "addresses": ["10.244.0.1"], "hostname": "db-0", "conditions": { "ready": true } },
            { "addresses": ["10.244.0.2"], "conditions": { "ready": true } },
            { "addresses": ["10.244.0.3"], "hostname": "db-2", "conditions": { "ready": false } },
        ],
    });
    state.apply_slice(&Change::Added(Arc::new(serde_json::from_value(slice).unwrap())));
    state
}

fn ask(name: &str, kind: RecordType) -> Answer {
    zone().answer(&state(), &Name::from_ascii(name).unwrap(), kind)
}

/// The answers' data, sorted; panics if there is no such name.
fn data(name: &str, kind: RecordType) -> Vec<String> {
    match ask(name, kind) {
        Answer::Records(records) => {
            let mut all: Vec<String> = records.answers.iter().map(|record| record.data.to_string()).collect();
            all.sort();
            all
        }
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn services() {
    assert_eq!(data("web.shop.svc.cluster.local.", RecordType::A), ["10.96.0.7"]);
    assert_eq!(data("WEB.Shop.svc.Cluster.LOCAL.", RecordType::A), ["10.96.0.7"]);
    assert_eq!(data("web.shop.svc.cluster.local.", RecordType::AAAA), Vec::<String>::new());
    assert_eq!(data("shop.svc.cluster.local.", RecordType::A), Vec::<String>::new());
    assert_eq!(data("svc.cluster.local.", RecordType::A), Vec::<String>::new());
    assert_eq!(data("_tcp.web.shop.svc.cluster.local.", RecordType::A), Vec::<String>::new());
    for unknown in [
        "none.shop.svc.cluster.local.",
        "web.none.svc.cluster.local.",
        "none.svc.cluster.local.",
        "x.web.shop.svc.cluster.local.",
        "a.b.c.web.shop.svc.cluster.local.",
        "web.shop.cluster.local.",
        "web.cluster.local.",
    ] {
        assert_eq!(ask(unknown, RecordType::A), Answer::NotFound, "{unknown}");
    }
    assert_eq!(ask("example.com.", RecordType::A), Answer::Elsewhere);
    assert_eq!(ask("local.", RecordType::A), Answer::Elsewhere);
    assert_eq!(ask("xcluster.local.", RecordType::A), Answer::Elsewhere);
}

#[test]
fn headless_services_are_their_ready_endpoints() {
    assert_eq!(data("db.shop.svc.cluster.local.", RecordType::A), ["10.244.0.1", "10.244.0.2"]);
    assert_eq!(data("db-0.db.shop.svc.cluster.local.", RecordType::A), ["10.244.0.1"]);
    assert_eq!(data("10-244-0-2.db.shop.svc.cluster.local.", RecordType::A), ["10.244.0.2"]);
    assert_eq!(ask("db-2.db.shop.svc.cluster.local.", RecordType::A), Answer::NotFound);
    assert_eq!(data("empty.shop.svc.cluster.local.", RecordType::A), Vec::<String>::new());
}

#[test]
fn ports() {
    assert_eq!(
        data("_http._tcp.web.shop.svc.cluster.local.", RecordType::SRV),
        ["0 100 80 web.shop.svc.cluster.local."]
    );
    assert_eq!(data("_dns._udp.web.shop.svc.cluster.local.", RecordType::SRV).len(), 1);
    assert_eq!(data("web.shop.svc.cluster.local.", RecordType::SRV).len(), 2);
    assert_eq!(ask("_http._udp.web.shop.svc.cluster.local.", RecordType::SRV), Answer::NotFound);
    assert_eq!(
        data("_http._tcp.db.shop.svc.cluster.local.", RecordType::SRV),
        ["0 50 8080 10-244-0-2.db.shop.svc.cluster.local.", "0 50 8080 db-0.db.shop.svc.cluster.local."]
    );
    let Answer::Records(records) = ask("_http._tcp.db.shop.svc.cluster.local.", RecordType::SRV) else { panic!() };
    assert_eq!(records.additionals.len(), 2);
}

#[test]
fn other_names() {
    let target = Name::from_ascii("www.example.com.").unwrap();
    assert_eq!(ask("world.shop.svc.cluster.local.", RecordType::A), Answer::Alias(target));
    assert_eq!(ask("x.world.shop.svc.cluster.local.", RecordType::A), Answer::NotFound);
    assert_eq!(data("10-1-2-3.shop.pod.cluster.local.", RecordType::A), ["10.1.2.3"]);
    assert_eq!(ask("nonsense.shop.pod.cluster.local.", RecordType::A), Answer::NotFound);
    assert_eq!(data("dns-version.cluster.local.", RecordType::TXT), ["1.1.0"]);
    assert_eq!(data("ns.dns.cluster.local.", RecordType::A), ["10.96.0.10"]);
    assert_eq!(data("cluster.local.", RecordType::NS), ["ns.dns.cluster.local."]);
    assert_eq!(data("cluster.local.", RecordType::SOA).len(), 1);
}

#[test]
fn addresses_have_names() {
    assert_eq!(data("7.0.96.10.in-addr.arpa.", RecordType::PTR), ["web.shop.svc.cluster.local."]);
    assert_eq!(data("1.0.244.10.in-addr.arpa.", RecordType::PTR), ["db-0.db.shop.svc.cluster.local."]);
    assert_eq!(data("2.0.244.10.in-addr.arpa.", RecordType::PTR), ["10-244-0-2.db.shop.svc.cluster.local."]);
    assert_eq!(ask("3.0.244.10.in-addr.arpa.", RecordType::PTR), Answer::NotFound);
    assert_eq!(ask("9.9.96.10.in-addr.arpa.", RecordType::PTR), Answer::NotFound);
    assert_eq!(ask("1.2.0.192.in-addr.arpa.", RecordType::PTR), Answer::Elsewhere);
}

proptest! {
    /// Whatever is asked, there is an answer, and one about the zone never goes elsewhere.
    #[test]
    fn answers_anything(
        labels in prop::collection::vec("[a-zA-Z0-9_-]{1,12}", 0..6),
        inside in any::<bool>(),
        kind in prop_oneof![Just(RecordType::A), Just(RecordType::SRV), Just(RecordType::PTR), Just(RecordType::ANY)],
    ) {
        let mut text = labels.join(".");
        if inside {
            text = format!("{text}{}cluster.local.", if text.is_empty() { "" } else { "." });
        }
        if let Ok(name) = Name::from_ascii(&text) {
            let zone = zone();
            let answer = zone.answer(&state(), &name, kind);
            prop_assert_eq!(answer == Answer::Elsewhere, !zone.holds(&name));
            prop_assert!(!inside || answer != Answer::Elsewhere);
        }
    }
}
