//! What a pod asks of the pods around it: affinity, anti-affinity and spreading, as its spec has them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, PodAffinityTerm, PodSpec, TopologySpreadConstraint, WeightedPodAffinityTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::ResourceExt as _;
use kube::core::{Selector, SelectorExt as _};

pub type Labels = BTreeMap<String, String>;

/// Labels of namespaces by name.
pub type Namespaces = std::collections::HashMap<String, Labels>;

/// Which pods are meant.
#[derive(Debug)]
pub struct Who {
    namespaces: Vec<String>,
    namespace_selector: Option<Selector>,
    /// None: nobody.
    selector: Option<Selector>,
}

impl Who {
    fn of(own_namespace: &str, term: &PodAffinityTerm) -> Self {
        let mut namespaces = term.namespaces.clone().unwrap_or_default();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.push(own_namespace.to_owned());
        }
        Self {
            namespaces,
            namespace_selector: term.namespace_selector.as_ref().and_then(selector),
            selector: term.label_selector.as_ref().and_then(selector),
        }
    }

    pub fn matches(&self, namespaces: &Namespaces, namespace: &str, labels: &Labels) -> bool {
        let in_namespace = || {
            let no_labels = Labels::new();
            self.namespaces.iter().any(|one| one == namespace)
                || self
                    .namespace_selector
                    .as_ref()
                    .is_some_and(|it| it.matches(namespaces.get(namespace).unwrap_or(&no_labels)))
        };
        self.selector.as_ref().is_some_and(|selector| selector.matches(labels)) && in_namespace()
    }
}

/// The API lets only well-formed ones in.
fn selector(selector: &LabelSelector) -> Option<Selector> {
    Selector::try_from(selector.clone()).ok()
}

/// Pods, and the label of nodes that says what "the same place" is.
#[derive(Debug)]
pub struct Term {
    pub key: String,
    pub who: Who,
}

impl Term {
    fn of(own_namespace: &str, term: &PodAffinityTerm) -> Self {
        Self { key: term.topology_key.clone(), who: Who::of(own_namespace, term) }
    }
}

/// Over the places that a label of nodes names, counts of pods differ by no more than so much.
#[derive(Debug)]
pub struct Spread {
    pub key: String,
    pub who: Who,
    pub max_skew: i64,
    pub min_domains: usize,
    /// Nodes that the pod's node affinity rules out do not count.
    pub honors_affinity: bool,
    /// Nor those with taints that it does not tolerate.
    pub honors_taints: bool,
}

#[derive(Debug, Default)]
pub struct Asks {
    pub affinity: Vec<Term>,
    pub anti_affinity: Vec<Term>,
    /// By weight; less than nothing: better elsewhere.
    pub preferred: Vec<(i64, Term)>,
    pub spread: Vec<Spread>,
    pub preferred_spread: Vec<Spread>,
}

impl Asks {
    pub fn of(namespace: &str, spec: &PodSpec) -> Self {
        let affinity = spec.affinity.as_ref();
        let with = affinity.and_then(|affinity| affinity.pod_affinity.as_ref());
        let without = affinity.and_then(|affinity| affinity.pod_anti_affinity.as_ref());
        let terms = |terms: Option<&Vec<PodAffinityTerm>>| {
            terms.into_iter().flatten().map(|term| Term::of(namespace, term)).collect::<Vec<_>>()
        };
        let weighted = |terms: Option<&Vec<WeightedPodAffinityTerm>>, sign: i64| {
            let weigh = |it: &WeightedPodAffinityTerm| {
                (sign * i64::from(it.weight), Term::of(namespace, &it.pod_affinity_term))
            };
            terms.into_iter().flatten().map(weigh).collect::<Vec<_>>()
        };
        let mut preferred =
            weighted(with.and_then(|it| it.preferred_during_scheduling_ignored_during_execution.as_ref()), 1);
        preferred.extend(weighted(
            without.and_then(|it| it.preferred_during_scheduling_ignored_during_execution.as_ref()),
            -1,
        ));
        let spread = |hard: bool| {
            let constraints = spec.topology_spread_constraints.iter().flatten();
            let wanted = constraints.filter(|it| (it.when_unsatisfiable != "ScheduleAnyway") == hard);
            wanted.map(|constraint| Spread::of(namespace, constraint)).collect::<Vec<_>>()
        };
        Self {
            affinity: terms(with.and_then(|it| it.required_during_scheduling_ignored_during_execution.as_ref())),
            anti_affinity: terms(
                without.and_then(|it| it.required_during_scheduling_ignored_during_execution.as_ref()),
            ),
            preferred,
            spread: spread(true),
            preferred_spread: spread(false),
        }
    }

    /// Whether others are to heed it once it is placed.
    pub fn concerns_others(&self) -> bool {
        !(self.affinity.is_empty() && self.anti_affinity.is_empty() && self.preferred.is_empty())
    }

    /// Whether it says itself how it is to be spread.
    pub fn spreads(&self) -> bool {
        !(self.spread.is_empty() && self.preferred_spread.is_empty())
    }
}

impl Spread {
    fn of(namespace: &str, constraint: &TopologySpreadConstraint) -> Self {
        let who = Who {
            namespaces: vec![namespace.to_owned()],
            namespace_selector: None,
            selector: constraint.label_selector.as_ref().and_then(selector),
        };
        Self {
            key: constraint.topology_key.clone(),
            who,
            max_skew: i64::from(constraint.max_skew),
            min_domains: constraint.min_domains.and_then(|it| it.try_into().ok()).unwrap_or(1),
            honors_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
            honors_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
        }
    }
}

/// All of a pod by which others know it and it knows others. Pods made from one template are alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    pub namespace: String,
    pub labels: Labels,
    /// As JSON; empty where it asks nothing of others.
    asks: Vec<u8>,
}

impl Identity {
    pub fn of(pod: &Pod) -> Self {
        let spec = pod.spec.as_ref();
        let affinity = spec.and_then(|spec| spec.affinity.as_ref());
        let with = affinity.and_then(|affinity| affinity.pod_affinity.as_ref());
        let without = affinity.and_then(|affinity| affinity.pod_anti_affinity.as_ref());
        let spread = spec.and_then(|spec| spec.topology_spread_constraints.as_ref());
        let asks = match (with, without, spread) {
            (None, None, None) => Vec::new(),
            // These types have nothing that JSON could not say.
            asks => serde_json::to_vec(&asks).unwrap_or_default(),
        };
        Self { namespace: pod.namespace().unwrap_or_default(), labels: pod.labels().clone(), asks }
    }

    /// Whether a pod, whose spec does not change, is still known by this.
    pub fn is_of(&self, pod: &Pod) -> bool {
        self.labels == *pod.labels()
    }
}
