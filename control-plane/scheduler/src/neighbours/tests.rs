#![allow(clippy::unwrap_used)]

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt as _;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::terms::{Asks, Who};
use super::*;
use crate::Decisions;
use crate::filter;
use crate::fit::Kinds;
use crate::snapshot::Demand;

const ZONE: &str = "topology.kubernetes.io/zone";
const HOST: &str = "kubernetes.io/hostname";

fn node(name: &str, labels: Value) -> Arc<Node> {
    let allocatable = json!({ "cpu": "16", "memory": "16Gi", "pods": "100" });
    let node = json!({ "metadata": { "name": name, "labels": labels }, "status": { "allocatable": allocatable } });
    Arc::new(serde_json::from_value(node).unwrap())
}

fn zoned(name: &str, zone: Option<u8>) -> Arc<Node> {
    let mut labels = json!({ HOST: name });
    if let Some(zone) = zone {
        labels[ZONE] = zone.to_string().into();
    }
    node(name, labels)
}

fn pod(uid: &str, namespace: &str, app: &str, spec: Value) -> Pod {
    let mut pod = json!({
        "metadata": { "name": uid, "uid": uid, "namespace": namespace, "labels": { "app": app } },
        "spec": { "containers": [] },
    });
    pod["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    serde_json::from_value(pod).unwrap()
}

fn term(app: &str, key: &str) -> Value {
    json!({ "labelSelector": { "matchLabels": { "app": app } }, "topologyKey": key })
}

fn affinity(kind: &str, terms: &[Value]) -> Value {
    json!({ "affinity": { kind: { "requiredDuringSchedulingIgnoredDuringExecution": terms } } })
}

fn spread(app: &str, key: &str, skew: i32, when: &str) -> Value {
    json!({ "topologySpreadConstraints": [{
        "maxSkew": skew, "topologyKey": key, "whenUnsatisfiable": when,
        "labelSelector": { "matchLabels": { "app": app } },
    }] })
}

/// Nodes `a` to `d`, two in each of two zones.
fn four_nodes() -> Decisions {
    let mut decisions = Decisions::default();
    for (name, zone) in [("a", 0), ("b", 0), ("c", 1), ("d", 1)] {
        decisions.set_node(zoned(name, Some(zone)));
    }
    decisions
}

fn why(decisions: &mut Decisions, pod: &Pod) -> String {
    decisions.schedule(pod).map_or_else(|diagnosis| diagnosis.to_string(), |node| format!("on {node}"))
}

#[test]
fn pods_are_put_beside_those_they_need() {
    let mut decisions = four_nodes();
    let front = |uid: &str| pod(uid, "shop", "front", affinity("podAffinity", &[term("store", ZONE)]));
    let none = "0/4 nodes are available: 4 node(s) didn't match pod affinity rules.";
    assert_eq!(why(&mut decisions, &front("1")), none);
    decisions.place(&pod("s", "shop", "store", json!({})), "c");
    for uid in ["1", "2", "3"] {
        assert!(["on c", "on d"].contains(&why(&mut decisions, &front(uid)).as_str()));
    }
    // Those of another namespace are meant where the term says so.
    assert_eq!(why(&mut decisions, &pod("4", "bank", "front", affinity("podAffinity", &[term("store", ZONE)]))), none);
    let mut there = term("store", ZONE);
    there["namespaces"] = json!(["shop"]);
    assert!(
        why(&mut decisions, &pod("5", "bank", "front", affinity("podAffinity", &[there.clone()]))).starts_with("on")
    );
    there.as_object_mut().unwrap().remove("namespaces");
    there["namespaceSelector"] = json!({ "matchLabels": { "team": "x" } });
    let by_label = pod("6", "bank", "front", affinity("podAffinity", &[there]));
    assert_eq!(why(&mut decisions, &by_label), none);
    decisions.set_namespace("shop".into(), [("team".to_owned(), "x".to_owned())].into());
    assert!(why(&mut decisions, &by_label).starts_with("on"));
}

#[test]
fn the_first_of_those_that_want_to_be_together_is_anywhere() {
    let mut decisions = four_nodes();
    let own = |uid: &str| pod(uid, "shop", "db", affinity("podAffinity", &[term("db", HOST)]));
    let first = why(&mut decisions, &own("1"));
    assert!(first.starts_with("on "));
    assert_eq!(why(&mut decisions, &own("2")), first);
    assert_eq!(why(&mut decisions, &own("3")), first);
}

#[test]
fn anti_affinity_holds_both_ways() {
    let mut decisions = four_nodes();
    let alone = |uid: &str| pod(uid, "shop", "db", affinity("podAntiAffinity", &[term("db", ZONE)]));
    let (one, two) = (why(&mut decisions, &alone("1")), why(&mut decisions, &alone("2")));
    let zone = |placed: &str| ["on a", "on b"].contains(&placed);
    assert!(zone(&one) != zone(&two), "{one}, {two}");
    let full = "0/4 nodes are available: 4 node(s) didn't match pod anti-affinity rules.";
    assert_eq!(why(&mut decisions, &alone("3")), full);
    let unaware = pod("4", "shop", "db", json!({}));
    let shunned = "0/4 nodes are available: 4 node(s) didn't satisfy existing pods anti-affinity rules.";
    assert_eq!(why(&mut decisions, &unaware), shunned);
    decisions.remove_pod("1");
    assert!(why(&mut decisions, &alone("3")).starts_with("on "));
}

#[test]
fn pods_are_spread_evenly() {
    let mut decisions = four_nodes();
    let one = |uid: usize| pod(&uid.to_string(), "shop", "web", spread("web", ZONE, 1, "DoNotSchedule"));
    let mut zones = [0_usize, 0];
    for uid in 0..8 {
        let placed = why(&mut decisions, &one(uid));
        zones[usize::from(!["on a", "on b"].contains(&placed.as_str()))] += 1;
        assert!(zones[0].abs_diff(zones[1]) <= 1, "{zones:?}");
    }
    decisions.remove_node("c");
    decisions.remove_node("d");
    // One zone alone is even, whatever is in it; a node without the label is nowhere.
    decisions.set_node(node("e", json!({})));
    assert!(["on a", "on b"].contains(&why(&mut decisions, &one(8)).as_str()));
    decisions.remove_node("a");
    decisions.remove_node("b");
    let message =
        "0/1 nodes are available: 1 node(s) didn't match pod topology spread constraints (missing required label).";
    assert_eq!(why(&mut decisions, &one(9)), message);
}

#[test]
fn pods_on_their_way_out_do_not_count_where_others_are_spread() {
    let mut decisions = four_nodes();
    let mut leaving = pod("0", "shop", "web", json!({}));
    decisions.place(&leaving, "a");
    let even = |uid: &str| pod(uid, "shop", "web", spread("web", ZONE, 1, "DoNotSchedule"));
    assert!(["on c", "on d"].contains(&why(&mut decisions, &even("1")).as_str()));
    decisions.remove_pod("1");
    leaving.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
    assert!(decisions.place(&leaving, "a"));
    assert!(!decisions.place(&leaving, "a"));
    decisions.place(&pod("2", "shop", "web", json!({})), "c");
    assert!(["on a", "on b"].contains(&why(&mut decisions, &even("3")).as_str()));
}

#[test]
fn wishes_for_neighbours_count() {
    let wish = |kind: &str, app: &str| {
        json!({ "affinity": { kind: { "preferredDuringSchedulingIgnoredDuringExecution": [
            { "weight": 100, "podAffinityTerm": term(app, HOST) },
        ] } } })
    };
    let mut decisions = four_nodes();
    decisions.place(&pod("s", "shop", "store", json!({})), "c");
    assert_eq!(why(&mut decisions, &pod("1", "shop", "front", wish("podAffinity", "store"))), "on c");
    // A placed pod's wish counts for those that it means: all but its own node are as good.
    decisions.place(&pod("2", "shop", "shy", wish("podAntiAffinity", "loud")), "a");
    for (uid, _) in (10..40).zip(0..) {
        assert_ne!(why(&mut decisions, &pod(&uid.to_string(), "shop", "loud", json!({}))), "on a");
    }
    let mut decisions = four_nodes();
    let even = |uid: usize| pod(&uid.to_string(), "shop", "web", spread("web", HOST, 1, "ScheduleAnyway"));
    let placed: std::collections::HashSet<_> = (0..4).map(|uid| why(&mut decisions, &even(uid))).collect();
    assert_eq!(placed.len(), 4);
}

/// Pods of many sorts, by number.
fn sort(number: u8, uid: &str) -> Pod {
    let app = ["web", "db"][usize::from(number % 2)];
    let namespace = ["shop", "bank"][usize::from(number / 2 % 2)];
    let mut everywhere = term("web", ZONE);
    everywhere["namespaceSelector"] = json!({ "matchLabels": { "open": "yes" } });
    let mut on_zones = spread("web", HOST, 1, "DoNotSchedule");
    on_zones["nodeSelector"] = json!({ ZONE: "1" });
    let mut two = spread("db", ZONE, 2, "DoNotSchedule");
    two["topologySpreadConstraints"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "maxSkew": 1, "topologyKey": HOST, "whenUnsatisfiable": "DoNotSchedule", "minDomains": 4,
                "labelSelector": { "matchExpressions": [{ "key": "app", "operator": "Exists" }] } }));
    let spec = match number / 4 {
        0 => json!({}),
        1 => affinity("podAffinity", &[term("web", ZONE)]),
        2 => affinity("podAffinity", &[term("web", ZONE), term("web", HOST)]),
        3 => affinity("podAntiAffinity", &[term("db", HOST)]),
        4 => affinity("podAntiAffinity", &[everywhere]),
        5 => spread("web", ZONE, 1, "DoNotSchedule"),
        6 => on_zones,
        _ => two,
    };
    pod(uid, namespace, app, spec)
}
const SORTS: u8 = 32;

/// The same by looking at every pod and node.
struct Naive {
    nodes: Vec<Arc<Node>>,
    placed: Vec<(Pod, String)>,
    namespaces: terms::Namespaces,
}

impl Naive {
    fn asks(pod: &Pod) -> Asks {
        Asks::of(&pod.namespace().unwrap(), pod.spec.as_ref().unwrap())
    }

    fn means(&self, who: &Who, pod: &Pod) -> bool {
        who.matches(&self.namespaces, &pod.namespace().unwrap(), pod.labels())
    }

    /// The value of a label where a pod is.
    fn place(&self, node: &str, key: &str) -> Option<String> {
        self.nodes.iter().find(|it| it.name_any() == node)?.labels().get(key).cloned()
    }

    fn objection(&self, pod: &Pod, node: &Node) -> Option<Reason> {
        let (asks, spec) = (Self::asks(pod), pod.spec.as_ref().unwrap());
        for constraint in &asks.spread {
            let counts = |node: &Node| {
                asks.spread.iter().all(|it| node.labels().contains_key(&it.key)) && filter::matches_affinity(spec, node)
            };
            let mut domains = std::collections::HashMap::<String, i64>::new();
            for node in self.nodes.iter().filter(|node| counts(node)) {
                let here = self.placed.iter().filter(|(it, on)| {
                    *on == node.name_any()
                        && it.metadata.deletion_timestamp.is_none()
                        && self.means(&constraint.who, it)
                });
                *domains.entry(node.labels()[&constraint.key].clone()).or_default() += here.count() as i64;
            }
            let least = if domains.len() < constraint.min_domains { 0 } else { *domains.values().min().unwrap_or(&0) };
            let Some(there) = node.labels().get(&constraint.key).filter(|_| counts(node)) else {
                return Some(Reason::SpreadLabel);
            };
            let own = i64::from(self.means(&constraint.who, pod));
            if domains[there] + own - least > constraint.max_skew {
                return Some(Reason::Spread);
            }
        }
        let same = |on: &str, key: &str| self.place(on, key).is_some_and(|it| node.labels().get(key) == Some(&it));
        let needed = |it: &Pod| asks.affinity.iter().all(|term| self.means(&term.who, it));
        let needed: Vec<_> = self.placed.iter().filter(|(it, _)| needed(it)).collect();
        let nowhere =
            !needed.iter().any(|(_, on)| asks.affinity.iter().any(|term| self.place(on, &term.key).is_some()));
        let first = nowhere && asks.affinity.iter().all(|term| self.means(&term.who, pod));
        let with = |term: &Term| match first {
            true => node.labels().contains_key(&term.key),
            false => needed.iter().any(|(_, on)| same(on, &term.key)),
        };
        if !asks.affinity.iter().all(with) {
            return Some(Reason::PodAffinity);
        }
        let near = |term: &Term| self.placed.iter().any(|(it, on)| self.means(&term.who, it) && same(on, &term.key));
        if asks.anti_affinity.iter().any(near) {
            return Some(Reason::PodAntiAffinity);
        }
        let shuns = |(it, on): &(Pod, String)| {
            Self::asks(it).anti_affinity.iter().any(|term| self.means(&term.who, pod) && same(on, &term.key))
        };
        self.placed.iter().any(shuns).then_some(Reason::OthersAntiAffinity)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// Whatever comes, goes and changes, what is counted is what counting anew would say.
    #[test]
    fn what_is_kept_is_what_there_is(
        steps in prop::collection::vec((0..8_u8, 0..10_u8, 0..SORTS, 0..5_u8), 1..50),
    ) {
        let (mut snapshot, mut kinds, mut all) = (Snapshot::default(), Kinds::default(), OfAll::default());
        let mut naive = Naive { nodes: Vec::new(), placed: Vec::new(), namespaces: Default::default() };
        for (what, number, kind, on) in steps {
            let (uid, name) = (format!("p{number}"), format!("n{on}"));
            match what {
                0 => {
                    let node = zoned(&name, (number < 6).then_some(number % 3));
                    naive.nodes.retain(|it| it.name_any() != name);
                    naive.nodes.push(node.clone());
                    snapshot.set_node(node);
                }
                1 if number == 0 => {
                    naive.nodes.retain(|it| it.name_any() != name);
                    snapshot.remove_node(&name);
                }
                1 => {
                    let labels = Labels::from([("open".to_owned(), if kind % 2 == 0 { "yes" } else { "no" }.to_owned())]);
                    let namespace = if on % 2 == 0 { "shop" } else { "bank" };
                    naive.namespaces.insert(namespace.to_owned(), labels.clone());
                    snapshot.groups_mut().set_namespace(namespace.to_owned(), labels);
                }
                2 => {
                    naive.placed.retain(|(pod, _)| pod.name_any() != uid);
                    snapshot.remove_pod(&uid);
                }
                3..6 => {
                    let mut pod = sort(kind, &uid);
                    if what == 3 {
                        pod.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
                    }
                    naive.placed.retain(|(pod, _)| pod.name_any() != uid);
                    let group = snapshot.groups_mut().enter(Identity::of(&pod), pod.spec.as_ref().unwrap());
                    snapshot.place(&uid, &name, Arc::new(Demand::of(&pod)), group, what == 3);
                    prop_assert!(snapshot.is_placed(&pod, &name));
                    naive.placed.push((pod, name));
                }
                _ => {
                    let pod = sort(kind, "new");
                    let spec = pod.spec.as_ref().unwrap();
                    let group = snapshot.groups_mut().enter(Identity::of(&pod), spec);
                    let fits = kinds.of(spec);
                    let neighbours = Neighbours::of(&mut snapshot, group, spec, &mut all, &mut fits.domains);
                    for (index, info) in snapshot.nodes().values().enumerate() {
                        let fresh = naive.objection(&pod, &info.node);
                        prop_assert_eq!(neighbours.objection(index), fresh, "{} on {}", kind, info.node.name_any());
                    }
                    snapshot.groups_mut().leave(group);
                }
            }
        }
        for number in 0..10 {
            snapshot.remove_pod(&format!("p{number}"));
        }
        prop_assert!(snapshot.groups().is_empty());
    }
}
