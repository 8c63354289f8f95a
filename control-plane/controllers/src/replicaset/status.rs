//! What a ReplicaSet says of its pods.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{Failure, available};

const REPLICA_FAILURE: &str = "ReplicaFailure";

pub struct Counted {
    replicas: usize,
    fully_labeled: usize,
    ready: usize,
    available: usize,
    terminating: usize,
    /// When the next pod will have been ready for long enough.
    pub next: Option<Duration>,
}

impl Counted {
    pub fn new(set: &ReplicaSet, active: &[Arc<Pod>], terminating: usize, now: Timestamp) -> Self {
        let spec = set.spec.as_ref();
        let labels = spec
            .and_then(|spec| spec.template.as_ref())
            .and_then(|template| template.metadata.as_ref())
            .and_then(|meta| meta.labels.as_ref());
        let labeled = |pod: &&Arc<Pod>| {
            labels
                .into_iter()
                .flatten()
                .all(|(key, value)| pod.metadata.labels.as_ref().and_then(|of| of.get(key)) == Some(value))
        };
        let min_ready = spec.and_then(|spec| spec.min_ready_seconds).unwrap_or_default();
        let (ready, available, next) = available(active, min_ready, now);
        let fully_labeled = active.iter().filter(labeled).count();
        Self { replicas: active.len(), fully_labeled, ready, available, terminating, next }
    }
}

pub fn status(set: &ReplicaSet, counted: &Counted, failure: Option<&Failure>, now: &Time) -> ReplicaSetStatus {
    let count = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
    let some = |number: usize| (number > 0).then(|| count(number));
    let old = set.status.clone().unwrap_or_default();
    let mut conditions = old.conditions.unwrap_or_default();
    let known = conditions.iter().any(|condition| condition.type_ == REPLICA_FAILURE);
    match failure {
        Some(failure) if !known => conditions.push(ReplicaSetCondition {
            type_: REPLICA_FAILURE.to_owned(),
            status: "True".to_owned(),
            reason: Some(failure.reason.to_owned()),
            message: Some(failure.error.text()),
            last_transition_time: Some(now.clone()),
        }),
        Some(_) => {}
        None => conditions.retain(|condition| condition.type_ != REPLICA_FAILURE),
    }
    ReplicaSetStatus {
        replicas: count(counted.replicas),
        fully_labeled_replicas: some(counted.fully_labeled),
        ready_replicas: some(counted.ready),
        available_replicas: some(counted.available),
        // A pointer in the API: none is said, too.
        terminating_replicas: Some(count(counted.terminating)),
        observed_generation: set.metadata.generation,
        conditions: (!conditions.is_empty()).then_some(conditions),
    }
}
