//! Which pods go first when there are too many.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::pod;

const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// The `count` of `pods` to delete. `related` are the pods of all replica sets of one owner: those
/// on a node with many of them go first.
pub fn to_delete(pods: &[Arc<Pod>], related: &[Arc<Pod>], count: usize, now: Timestamp) -> Vec<Arc<Pod>> {
    if count >= pods.len() {
        return pods.to_vec();
    }
    let mut on_node: HashMap<&str, usize> = HashMap::new();
    for pod in related.iter().filter(|pod| pod::is_active(pod)) {
        if let Some(node) = node(pod) {
            *on_node.entry(node).or_default() += 1;
        }
    }
    let mut ranked: Vec<(Rank, &Arc<Pod>)> = pods.iter().map(|pod| (Rank::new(pod, &on_node, now), pod)).collect();
    ranked.sort_by(|(a, _), (b, _)| a.cmp(b));
    ranked.into_iter().take(count).map(|(_, pod)| pod.clone()).collect()
}

fn node(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).filter(|node| !node.is_empty())
}

/// Fields in the order in which they decide; the smallest goes first.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    assigned: bool,
    phase: u8,
    ready: bool,
    cost: i32,
    /// Negative: the fuller node first.
    neighbours: i64,
    /// Ready for a shorter time first, in powers of two; not ready at all counts as longest.
    ready_for: Age,
    /// Negative: more restarts first.
    restarts: (i64, i64),
    /// Younger first, in powers of two.
    age: Age,
    uid: String,
}

impl Rank {
    fn new(pod: &Pod, on_node: &HashMap<&str, usize>, now: Timestamp) -> Self {
        let node = node(pod);
        let (usual, sidecar) = restarts(pod);
        Self {
            assigned: node.is_some(),
            phase: match pod::phase(pod) {
                "Pending" => 0,
                "Running" => 2,
                _ => 1,
            },
            ready: pod::is_ready(pod),
            cost: deletion_cost(pod),
            neighbours: -node
                .and_then(|node| on_node.get(node))
                .and_then(|count| i64::try_from(*count).ok())
                .unwrap_or_default(),
            ready_for: if pod::is_ready(pod) { Age::of(pod::ready_since(pod), now) } else { Age(None) },
            restarts: (-usual, -sidecar),
            age: Age::of(pod.metadata.creation_timestamp.as_ref().map(|time| time.0), now),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
        }
    }
}

/// The power of two of the seconds something has lasted; an unknown beginning is before all others.
#[derive(Debug, PartialEq, Eq)]
struct Age(Option<i64>);

impl Age {
    fn of(since: Option<Timestamp>, now: Timestamp) -> Self {
        Self(since.map(|since| {
            let seconds = now.as_second() - since.as_second();
            if seconds <= 0 { 0 } else { i64::from(seconds.ilog2()) }
        }))
    }
}

impl PartialOrd for Age {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Age {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self.0, other.0) {
            (Some(a), Some(b)) => a.cmp(&b),
            (None, None) => Ordering::Equal,
            (None, Some(_)) => Ordering::Less,
            (Some(_), None) => Ordering::Greater,
        }
    }
}

fn deletion_cost(pod: &Pod) -> i32 {
    let annotations = pod.metadata.annotations.as_ref();
    annotations
        .and_then(|annotations| annotations.get(DELETION_COST))
        .filter(|text| !text.starts_with('+'))
        .and_then(|text| text.parse().ok())
        .unwrap_or_default()
}

/// The most restarts of a container, and of a sidecar.
fn restarts(pod: &Pod) -> (i64, i64) {
    let Some(status) = &pod.status else { return (0, 0) };
    let most = |statuses: &Option<Vec<k8s_openapi::api::core::v1::ContainerStatus>>| {
        statuses.iter().flatten().map(|it| i64::from(it.restart_count)).max().unwrap_or_default()
    };
    (most(&status.container_statuses), most(&status.init_container_statuses))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition, PodSpec, PodStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
    use proptest::prelude::*;

    use super::*;

    const NOW: i64 = 1_000_000;

    #[derive(Clone, Debug)]
    struct Shape {
        node: Option<u8>,
        phase: &'static str,
        ready: Option<i64>,
        cost: Option<i32>,
        restarts: i32,
        created: i64,
    }

    impl Default for Shape {
        fn default() -> Self {
            Self { node: Some(0), phase: "Running", ready: Some(1000), cost: None, restarts: 0, created: 2000 }
        }
    }

    fn pod(name: &str, shape: &Shape) -> Arc<Pod> {
        let time = |ago: i64| Time(Timestamp::from_second(NOW - ago).unwrap());
        Arc::new(Pod {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                uid: Some(name.to_owned()),
                creation_timestamp: Some(time(shape.created)),
                annotations: shape.cost.map(|cost| [(DELETION_COST.to_owned(), cost.to_string())].into()),
                ..Default::default()
            },
            spec: Some(PodSpec { node_name: shape.node.map(|node| node.to_string()), ..Default::default() }),
            status: Some(PodStatus {
                phase: Some(shape.phase.to_owned()),
                conditions: shape.ready.map(|ago| {
                    vec![PodCondition {
                        type_: "Ready".to_owned(),
                        status: "True".to_owned(),
                        last_transition_time: Some(time(ago)),
                        ..Default::default()
                    }]
                }),
                container_statuses: Some(vec![ContainerStatus { restart_count: shape.restarts, ..Default::default() }]),
                ..Default::default()
            }),
        })
    }

    fn first(shapes: &[Shape]) -> String {
        let pods: Vec<_> = shapes.iter().enumerate().map(|(n, it)| pod(&n.to_string(), it)).collect();
        let now = Timestamp::from_second(NOW).unwrap();
        to_delete(&pods, &pods, 1, now)[0].metadata.name.clone().unwrap()
    }

    #[test]
    fn each_rule_comes_before_the_next() {
        let usual = Shape::default();
        let cases = [
            ("unassigned", Shape { node: None, cost: Some(100), ..usual.clone() }),
            ("pending", Shape { phase: "Pending", cost: Some(100), ..usual.clone() }),
            ("not ready", Shape { ready: None, cost: Some(100), ..usual.clone() }),
            ("cheaper", Shape { cost: Some(-5), ready: Some(100_000), ..usual.clone() }),
            ("ready for a shorter time", Shape { ready: Some(10), restarts: 0, ..usual.clone() }),
            ("more restarts", Shape { restarts: 3, created: 100_000, ..usual.clone() }),
            ("younger", Shape { created: 500, ..usual.clone() }),
        ];
        for (rule, shape) in cases {
            let pods = [usual.clone(), shape, usual.clone()];
            assert_eq!(first(&pods), "1", "{rule}");
        }
        let crowded = [Shape { node: Some(1), ..usual.clone() }, usual.clone(), usual];
        assert_eq!(first(&crowded), "1", "the fuller node");
    }

    #[test]
    fn a_cost_that_is_no_number_is_none() {
        let mut odd = (*pod("a", &Shape::default())).clone();
        for (text, cost) in [("5", 5), ("-5", -5), ("+5", 0), ("x", 0), ("", 0), ("99999999999", 0)] {
            odd.metadata.annotations = Some([(DELETION_COST.to_owned(), text.to_owned())].into());
            assert_eq!(deletion_cost(&odd), cost, "{text}");
        }
    }

    fn shapes() -> impl Strategy<Value = Vec<Shape>> {
        let shape = (
            prop::option::of(0_u8..3),
            prop::sample::select(vec!["Pending", "Running", "Unknown"]),
            prop::option::of(0_i64..5000),
            prop::option::of(-3_i32..3),
            0_i32..3,
            0_i64..9000,
        )
            .prop_map(|(node, phase, ready, cost, restarts, created)| Shape {
                node,
                phase,
                ready,
                cost,
                restarts,
                created,
            });
        prop::collection::vec(shape, 1..12)
    }

    proptest! {
        #[test]
        fn more_to_delete_only_adds(shapes in shapes(), count in 0_usize..12) {
            let pods: Vec<_> = shapes.iter().enumerate().map(|(n, it)| pod(&n.to_string(), it)).collect();
            let now = Timestamp::from_second(NOW).unwrap();
            let names = |count| -> Vec<_> {
                let mut names: Vec<_> = to_delete(&pods, &pods, count, now)
                    .iter().map(|pod| pod.metadata.name.clone().unwrap()).collect();
                names.sort();
                names
            };
            let (fewer, more) = (names(count), names(count + 1));
            prop_assert_eq!(fewer.len(), count.min(pods.len()));
            prop_assert!(fewer.iter().all(|name| more.contains(name)));
            let mut turned = pods.clone();
            turned.reverse();
            let mut other: Vec<_> = to_delete(&turned, &pods, count, now)
                .iter().map(|pod| pod.metadata.name.clone().unwrap()).collect();
            other.sort();
            prop_assert_eq!(fewer, other, "the order they come in does not matter");
        }
    }
}
