//! Which nodes a pod fits on, and in kube-scheduler's words why not on the others.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration};
use kube::ResourceExt as _;

use crate::resources::Resources;
use crate::snapshot::{Demand, NodeInfo};

/// Why a pod does not fit on a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    OtherNode,
    Unschedulable,
    Taint,
    Affinity,
    HostPorts,
    TooManyPods,
    Insufficient(Cow<'static, str>),
    Spread,
    SpreadLabel,
    PodAffinity,
    PodAntiAffinity,
    OthersAntiAffinity,
}

impl Reason {
    /// Whether other pods may change it by coming.
    fn is_about_pods(&self) -> bool {
        matches!(self, Self::Spread | Self::PodAffinity)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherNode => out.write_str("node(s) didn't match the requested node name"),
            Self::Unschedulable => out.write_str("node(s) were unschedulable"),
            Self::Taint => out.write_str("node(s) had untolerated taint(s)"),
            Self::Affinity => out.write_str("node(s) didn't match Pod's node affinity/selector"),
            Self::HostPorts => out.write_str("node(s) didn't have free ports for the requested pod ports"),
            Self::TooManyPods => out.write_str("Too many pods"),
            Self::Insufficient(resource) => write!(out, "Insufficient {resource}"),
            Self::Spread => out.write_str("node(s) didn't match pod topology spread constraints"),
            Self::SpreadLabel => {
                out.write_str("node(s) didn't match pod topology spread constraints (missing required label)")
            }
            Self::PodAffinity => out.write_str("node(s) didn't match pod affinity rules"),
            Self::PodAntiAffinity => out.write_str("node(s) didn't match pod anti-affinity rules"),
            Self::OthersAntiAffinity => out.write_str("node(s) didn't satisfy existing pods anti-affinity rules"),
        }
    }
}

/// Why a pod fits nowhere: reasons, gathered over nodes.
#[derive(Default)]
pub struct Diagnosis {
    nodes: usize,
    reasons: BTreeMap<Reason, usize>,
}

impl Diagnosis {
    pub(crate) fn add(&mut self, reasons: impl IntoIterator<Item = Reason>) {
        self.nodes += 1;
        for reason in reasons {
            *self.reasons.entry(reason).or_default() += 1;
        }
    }

    /// Whether a pod that comes somewhere may make a node fit.
    pub fn waits_for_pods(&self) -> bool {
        self.reasons.keys().any(Reason::is_about_pods)
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == 0 {
            return out.write_str("no nodes available to schedule pods");
        }
        let mut reasons: Vec<String> = self.reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        reasons.sort();
        write!(out, "0/{} nodes are available: {}.", self.nodes, reasons.join(", "))
    }
}

/// What the pod's spec and the node's description say, whatever runs there.
pub fn mismatch(spec: &PodSpec, node: &Node) -> Option<Reason> {
    if spec.node_name.as_deref().is_some_and(|name| !name.is_empty() && name != node.name_any()) {
        return Some(Reason::OtherNode);
    }
    if is_unschedulable(node) && !tolerates(tolerations(spec), &unschedulable_taint()) {
        return Some(Reason::Unschedulable);
    }
    if !tolerates_taints(spec, node) {
        return Some(Reason::Taint);
    }
    (!matches_affinity(spec, node)).then_some(Reason::Affinity)
}

/// What is missing of that which pods share on a node; empty when there is room.
pub fn missing(demand: &Demand, info: &NodeInfo) -> Vec<Reason> {
    if demand.host_ports.iter().any(|port| info.host_ports.iter().any(|held| held.conflicts(port))) {
        return vec![Reason::HostPorts];
    }
    insufficient(&demand.requests, info)
}

fn tolerations(spec: &PodSpec) -> &[Toleration] {
    spec.tolerations.as_deref().unwrap_or_default()
}

/// Whether it tolerates all taints that keep pods away.
pub fn tolerates_taints(spec: &PodSpec, node: &Node) -> bool {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let mut hard = taints.filter(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute"));
    hard.all(|taint| tolerates(tolerations(spec), taint))
}

fn is_unschedulable(node: &Node) -> bool {
    node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true))
}

fn unschedulable_taint() -> Taint {
    Taint { key: "node.kubernetes.io/unschedulable".to_owned(), effect: "NoSchedule".to_owned(), ..Default::default() }
}

fn insufficient(requests: &Resources, info: &NodeInfo) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if info.pods + 1 > info.max_pods {
        reasons.push(Reason::TooManyPods);
    }
    // What is not asked for cannot be missing, even on a node that is over-committed.
    let lacks = |asked: i64, used: i64, allocatable: i64| asked > 0 && asked > allocatable - used;
    let (used, has) = (&info.used, &info.allocatable);
    let known = [
        ("cpu", requests.cpu, used.cpu, has.cpu),
        ("memory", requests.memory, used.memory, has.memory),
        ("ephemeral-storage", requests.ephemeral_storage, used.ephemeral_storage, has.ephemeral_storage),
    ];
    for (name, asked, used, allocatable) in known {
        if lacks(asked, used, allocatable) {
            reasons.push(Reason::Insufficient(name.into()));
        }
    }
    for (name, asked) in &requests.extended {
        let of = |resources: &Resources| resources.extended.get(name).copied().unwrap_or(0);
        if lacks(*asked, of(used), of(has)) {
            reasons.push(Reason::Insufficient(name.clone().into()));
        }
    }
    reasons
}

/// Whether one of the tolerations tolerates the taint.
pub fn tolerates(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|toleration| {
        let effect = toleration.effect.as_deref().unwrap_or_default();
        let key = toleration.key.as_deref().unwrap_or_default();
        if !effect.is_empty() && effect != taint.effect || !key.is_empty() && key != taint.key {
            return false;
        }
        let asked = toleration.value.as_deref().unwrap_or_default();
        let value = taint.value.as_deref().unwrap_or_default();
        match toleration.operator.as_deref().unwrap_or_default() {
            "" | "Equal" => asked == value,
            "Exists" => true,
            operator @ ("Gt" | "Lt") => match (value.parse::<i64>(), asked.parse::<i64>()) {
                (Ok(value), Ok(asked)) if operator == "Gt" => value > asked,
                (Ok(value), Ok(asked)) => value < asked,
                _ => false,
            },
            _ => false,
        }
    })
}

/// `nodeSelector` and the required node affinity.
pub fn matches_affinity(spec: &PodSpec, node: &Node) -> bool {
    let labels = node.labels();
    if spec.node_selector.iter().flatten().any(|(key, value)| labels.get(key) != Some(value)) {
        return false;
    }
    let required = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    required.is_none_or(|selector| selector.node_selector_terms.iter().any(|term| matches_term(term, node)))
}

/// A term without any requirement matches nothing.
pub fn matches_term(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let name = node.name_any();
    expressions.iter().all(|it| matches(it, node.labels().get(&it.key).map(String::as_str)))
        && fields.iter().all(|it| matches(it, (it.key == "metadata.name").then_some(name.as_str())))
}

fn matches(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = |value: &str| values.iter().any(|one| one == value);
    match requirement.operator.as_str() {
        "In" => value.is_some_and(listed),
        "NotIn" => !value.is_some_and(listed),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        operator @ ("Gt" | "Lt") => {
            let number = |text: Option<&str>| text.and_then(|text| text.parse::<i64>().ok());
            match (number(value), number(values.first().map(String::as_str))) {
                (Some(value), Some(bound)) if operator == "Gt" => value > bound,
                (Some(value), Some(bound)) => value < bound,
                _ => false,
            }
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use k8s_openapi::api::core::v1::Pod;
    use serde_json::{Value, json};

    use super::*;
    use crate::Decisions;
    use crate::neighbours::Identity;
    use crate::snapshot::Snapshot;

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({ "metadata": { "name": "p" }, "spec": spec })).unwrap()
    }

    /// What is wrong with each of these nodes, as a user reads it.
    fn diagnose(pod: &Pod, nodes: &[Value]) -> String {
        let mut decisions = Decisions::default();
        for node in nodes {
            decisions.set_node(Arc::new(serde_json::from_value(node.clone()).unwrap()));
        }
        decisions.schedule(pod).map_or_else(|diagnosis| diagnosis.to_string(), |_| "fits".to_owned())
    }

    fn node(name: &str, spec: Value, labels: Value) -> Value {
        json!({
            "metadata": { "name": name, "labels": labels }, "spec": spec,
            "status": { "allocatable": { "cpu": "1", "memory": "1Gi", "pods": "10" } },
        })
    }

    fn asks(cpu: &str, memory: &str) -> Value {
        json!([{ "name": "c", "resources": { "requests": { "cpu": cpu, "memory": memory } } }])
    }

    #[test]
    fn says_node_by_node_why_not() {
        let pod = pod(json!({ "containers": asks("2", "2Gi"), "nodeSelector": { "disk": "ssd" } }));
        let ssd = json!({ "disk": "ssd" });
        let taint = json!({ "taints": [{ "key": "k", "value": "v", "effect": "NoSchedule" }] });
        let nodes = [
            node("a", json!({}), ssd.clone()),
            node("b", json!({}), ssd.clone()),
            node("c", json!({}), json!({})),
            node("d", taint, ssd.clone()),
            node("e", json!({ "unschedulable": true }), ssd),
        ];
        assert_eq!(
            diagnose(&pod, &nodes),
            "0/5 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, \
             1 node(s) had untolerated taint(s), 1 node(s) were unschedulable, 2 Insufficient cpu, 2 Insufficient memory."
        );
        assert_eq!(diagnose(&pod, &[]), "no nodes available to schedule pods");
    }

    #[test]
    fn tolerations() {
        let taint = |value: &str, effect: &str| -> Taint {
            serde_json::from_value(json!({ "key": "k", "value": value, "effect": effect })).unwrap()
        };
        let tolerates =
            |toleration: Value, taint: &Taint| super::tolerates(&[serde_json::from_value(toleration).unwrap()], taint);
        let hard = taint("v", "NoSchedule");
        assert!(tolerates(json!({ "operator": "Exists" }), &hard));
        assert!(tolerates(json!({ "key": "k", "operator": "Exists" }), &hard));
        assert!(tolerates(json!({ "key": "k", "value": "v" }), &hard));
        assert!(!tolerates(json!({ "key": "k", "value": "w" }), &hard));
        assert!(!tolerates(json!({ "key": "k", "value": "v", "effect": "NoExecute" }), &hard));
        assert!(tolerates(json!({ "key": "k", "operator": "Gt", "value": "5" }), &taint("6", "NoSchedule")));
        assert!(!tolerates(json!({ "key": "k", "operator": "Lt", "value": "5" }), &taint("6", "NoSchedule")));
    }

    #[test]
    fn affinity_terms_are_alternatives() {
        let term = |operator: &str, values: Value| json!({ "matchExpressions": [{ "key": "zone", "operator": operator, "values": values }] });
        let pod = |terms: Value| {
            pod(json!({ "containers": asks("0", "0"), "affinity": { "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": terms } } } }))
        };
        let nodes = [node("a", json!({}), json!({ "zone": "7" }))];
        let fits = |terms: Value| diagnose(&pod(terms), &nodes) == "fits";
        assert!(fits(json!([term("In", json!(["1"])), term("Gt", json!(["6"]))])));
        assert!(!fits(json!([term("NotIn", json!(["7"])), term("DoesNotExist", json!([]))])));
        assert!(!fits(json!([{}])));
        assert!(fits(json!([{ "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["a"] }] }])));
    }

    #[test]
    fn pods_and_ports_run_out() {
        let mut snapshot = Snapshot::default();
        let mut small = node("a", json!({}), json!({}));
        small["status"]["allocatable"]["pods"] = "1".into();
        snapshot.set_node(Arc::new(serde_json::from_value(small).unwrap()));
        let pod = pod(json!({ "containers": [{ "name": "c", "ports": [{ "containerPort": 1, "hostPort": 80 }] }] }));
        let demand = Demand::of(&pod);
        let group = snapshot.groups_mut().enter(Identity::of(&pod), pod.spec.as_ref().unwrap());
        snapshot.place("u", "a", Arc::new(demand.clone()), group, false);
        let info = &snapshot.nodes()["a"];
        assert_eq!(missing(&demand, info), [Reason::HostPorts]);
        let without = Demand { host_ports: Vec::new(), ..demand };
        assert_eq!(missing(&without, info), [Reason::TooManyPods]);
    }
}
