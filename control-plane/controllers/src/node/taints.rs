//! Taints: which a node has to have, and how long a pod puts up with them. No I/O.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
const NO_SCHEDULE: &str = "NoSchedule";
const NO_EXECUTE: &str = "NoExecute";
/// Condition, the status that matters, and the taint that goes with it.
const BY_CONDITION: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
];

/// The status of a node's condition.
pub fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a str> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|it| it.type_ == kind).map(|it| it.status.as_str())
}

pub fn is_ready(node: &Node) -> bool {
    condition(node, "Ready") == Some("True")
}

/// The taint that makes pods leave a node, if it is in such a state.
pub fn evicting(node: &Node) -> Option<&'static str> {
    match condition(node, "Ready") {
        Some("False") => Some(NOT_READY),
        Some("Unknown") => Some(UNREACHABLE),
        _ => None,
    }
}

pub fn is_evicting(node: &Node, key: &str) -> bool {
    all(node).any(|taint| taint.key == key && taint.effect == NO_EXECUTE)
}

pub fn all(node: &Node) -> impl Iterator<Item = &Taint> {
    node.spec.iter().flat_map(|spec| spec.taints.iter().flatten())
}

/// The taints a node has to have, where they are other than those it has. `evict` says whether its
/// pods may be made to leave.
pub fn wanted(node: &Node, evict: bool, now: &Time) -> Option<Vec<Taint>> {
    let mut keys: Vec<(&str, &str)> = BY_CONDITION
        .iter()
        .filter(|(kind, status, _)| condition(node, kind) == Some(status))
        .map(|(_, _, key)| (*key, NO_SCHEDULE))
        .collect();
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
        keys.push((UNSCHEDULABLE, NO_SCHEDULE));
    }
    if let Some(key) = evicting(node).filter(|_| evict) {
        keys.push((key, NO_EXECUTE));
    }
    let is_ours = |taint: &Taint| {
        let by_condition = BY_CONDITION.iter().any(|(_, _, key)| taint.key == *key);
        let evicts = matches!(taint.key.as_str(), NOT_READY | UNREACHABLE);
        match taint.effect.as_str() {
            NO_SCHEDULE => by_condition || taint.key == UNSCHEDULABLE,
            NO_EXECUTE => evicts,
            _ => false,
        }
    };
    let mut taints: Vec<Taint> = all(node).cloned().collect();
    let before = taints.len();
    taints.retain(|taint| !is_ours(taint) || keys.contains(&(taint.key.as_str(), taint.effect.as_str())));
    let mut changed = taints.len() != before;
    for (key, effect) in keys {
        if !taints.iter().any(|taint| taint.key == key && taint.effect == effect) {
            taints.push(Taint {
                key: key.to_owned(),
                effect: effect.to_owned(),
                time_added: Some(now.clone()),
                value: None,
            });
            changed = true;
        }
    }
    changed.then_some(taints)
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let fits = |of: &Option<String>, with: &str| of.as_deref().is_none_or(|of| of.is_empty() || of == with);
    if !fits(&toleration.effect, &taint.effect) || !fits(&toleration.key, &taint.key) {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or_default() {
        "Exists" => true,
        "" | "Equal" => toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default(),
        _ => false,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stay {
    Forever,
    Until(Timestamp),
}

/// How long a pod may stay on a node that came to have these taints.
pub fn stay(pod: &Pod, node: &Node, now: Timestamp) -> Stay {
    let taints: Vec<&Taint> = all(node).filter(|taint| taint.effect == NO_EXECUTE).collect();
    if taints.is_empty() {
        return Stay::Forever;
    }
    let tolerations = pod.spec.iter().flat_map(|spec| spec.tolerations.iter().flatten());
    let tolerations: Vec<&Toleration> = tolerations.collect();
    let mut shortest: Option<i64> = None;
    for taint in &taints {
        let Some(by) = tolerations.iter().find(|toleration| tolerates(toleration, taint)) else {
            return Stay::Until(now);
        };
        if let Some(seconds) = by.toleration_seconds {
            let seconds = seconds.max(0);
            shortest = Some(shortest.map_or(seconds, |of| of.min(seconds)));
        }
    }
    let Some(seconds) = shortest else { return Stay::Forever };
    let tainted = taints.iter().filter_map(|taint| taint.time_added.as_ref().map(|time| time.0)).max();
    // A pod that came later has its time from then.
    let came = pod
        .status
        .as_ref()
        .and_then(|status| status.start_time.as_ref())
        .or(pod.metadata.creation_timestamp.as_ref())
        .map(|time| time.0);
    let since = tainted.max(came).unwrap_or(now);
    let end = since.checked_add(Duration::from_secs(seconds.unsigned_abs()));
    Stay::Until(end.unwrap_or(Timestamp::MAX))
}

/// How the nodes are doing as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outage {
    /// Single nodes fail.
    No,
    /// More than half do: it may well be the network.
    Partial,
    /// All do: it is more likely this side that is cut off.
    Full,
}

pub fn outage(ready: usize, not_ready: usize) -> Outage {
    if ready == 0 && not_ready > 0 {
        return Outage::Full;
    }
    if not_ready > 2 && not_ready * 100 >= 55 * (ready + not_ready) {
        return Outage::Partial;
    }
    Outage::No
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::{Value, json};

    use super::*;

    fn node(ready: &str, taints: Value, unschedulable: bool) -> Node {
        serde_json::from_value(json!({
            "metadata": { "name": "n" },
            "spec": { "taints": taints, "unschedulable": unschedulable },
            "status": { "conditions": [{ "type": "Ready", "status": ready }] },
        }))
        .unwrap()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn keys(taints: &[Taint]) -> Vec<(String, String)> {
        taints.iter().map(|taint| (taint.key.clone(), taint.effect.clone())).collect()
    }

    #[test]
    fn taints_follow_the_conditions_and_leave_others_alone() {
        let now = Time(at(9));
        let own = json!([{ "key": "own", "effect": "NoExecute" }]);
        assert_eq!(wanted(&node("True", own.clone(), false), true, &now), None);
        let lost = wanted(&node("Unknown", own, false), true, &now).unwrap();
        let expected = [("own", "NoExecute"), (UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")];
        assert_eq!(keys(&lost), expected.map(|(key, effect)| (key.to_owned(), effect.to_owned())));
        let lost = json!(lost);
        assert_eq!(wanted(&node("Unknown", lost.clone(), false), true, &now), None);
        let calm = wanted(&node("Unknown", lost.clone(), false), false, &now).unwrap();
        assert_eq!(calm.len(), 2, "nobody is made to leave");
        let unready = wanted(&node("False", lost.clone(), false), true, &now).unwrap();
        assert!(unready.iter().all(|taint| taint.key == "own" || taint.key == NOT_READY));
        assert_eq!(wanted(&node("True", lost, false), true, &now).unwrap().len(), 1);
        let cordoned = wanted(&node("True", json!([]), true), true, &now).unwrap();
        assert_eq!(keys(&cordoned), [(UNSCHEDULABLE.to_owned(), "NoSchedule".to_owned())]);
    }

    fn pod(tolerations: Value, started: i64) -> Pod {
        serde_json::from_value(json!({
            "spec": { "containers": [], "tolerations": tolerations },
            "status": { "startTime": at(started).to_string() },
        }))
        .unwrap()
    }

    #[test]
    fn a_pod_stays_as_long_as_it_tolerates_every_taint() {
        let taints = json!([
            { "key": UNREACHABLE, "effect": "NoExecute", "timeAdded": at(100).to_string() },
            { "key": UNREACHABLE, "effect": "NoSchedule", "timeAdded": at(100).to_string() },
        ]);
        let lost = node("Unknown", taints, false);
        let now = at(120);
        let for_seconds = |seconds: Value| {
            json!([
                { "key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds }
            ])
        };
        assert_eq!(stay(&pod(json!([]), 0), &lost, now), Stay::Until(now));
        assert_eq!(stay(&pod(for_seconds(json!(300)), 0), &lost, now), Stay::Until(at(400)));
        assert_eq!(stay(&pod(for_seconds(json!(300)), 110), &lost, now), Stay::Until(at(410)));
        assert_eq!(stay(&pod(for_seconds(json!(-5)), 0), &lost, now), Stay::Until(at(100)));
        assert_eq!(stay(&pod(for_seconds(Value::Null), 0), &lost, now), Stay::Forever);
        assert_eq!(stay(&pod(json!([{ "operator": "Exists" }]), 0), &lost, now), Stay::Forever);
        let wrong = json!([{ "key": UNREACHABLE, "value": "x", "effect": "NoExecute" }]);
        assert_eq!(stay(&pod(wrong, 0), &lost, now), Stay::Until(now));
        assert_eq!(stay(&pod(json!([]), 0), &node("True", json!([]), false), now), Stay::Forever);
    }

    #[test]
    fn outages() {
        assert_eq!(outage(1, 0), Outage::No);
        assert_eq!(outage(0, 1), Outage::Full);
        assert_eq!(outage(1, 1), Outage::No);
        assert_eq!(outage(1, 2), Outage::No);
        assert_eq!(outage(2, 3), Outage::Partial);
        assert_eq!(outage(3, 3), Outage::No);
    }
}
