//! What a Deployment says of its rollout.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use super::arithmetic::Bounds;

pub const PROGRESSING: &str = "Progressing";
pub const NEW_SET_CREATED: &str = "NewReplicaSetCreated";
pub const NEW_SET_FOUND: &str = "FoundNewReplicaSet";
pub const NEW_SET_FAILED: &str = "ReplicaSetCreateError";
const AVAILABLE: &str = "Available";
const REPLICA_FAILURE: &str = "ReplicaFailure";
const NEW_SET_AVAILABLE: &str = "NewReplicaSetAvailable";
const UPDATED: &str = "ReplicaSetUpdated";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";
const RESUMED: &str = "DeploymentResumed";

pub type Conditions = Vec<DeploymentCondition>;

pub fn get<'a>(conditions: &'a Conditions, kind: &str) -> Option<&'a DeploymentCondition> {
    conditions.iter().find(|condition| condition.type_ == kind)
}

pub fn remove(conditions: &mut Conditions, kind: &str) {
    conditions.retain(|condition| condition.type_ != kind);
}

/// Sets a condition unless it says the same for the same reason already; the transition time moves
/// only with the status.
pub fn set(conditions: &mut Conditions, kind: &str, status: &str, reason: &str, message: String, now: &Time) {
    let mut transition = Some(now.clone());
    if let Some(current) = get(conditions, kind)
        && current.status == status
    {
        if current.reason.as_deref() == Some(reason) {
            return;
        }
        transition.clone_from(&current.last_transition_time);
    }
    remove(conditions, kind);
    conditions.push(DeploymentCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_update_time: Some(now.clone()),
        last_transition_time: transition,
    });
}

/// The deadline, where there is one.
pub fn deadline(deployment: &Deployment) -> Option<Duration> {
    let seconds = deployment.spec.as_ref()?.progress_deadline_seconds?;
    if seconds == i32::MAX {
        return None;
    }
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or_default()))
}

pub fn is_paused(deployment: &Deployment) -> bool {
    deployment.spec.as_ref().and_then(|spec| spec.paused).unwrap_or_default()
}

/// Notes that the Deployment was paused or resumed, so that the deadline does not run meanwhile.
pub fn note_pause(deployment: &Deployment, conditions: &mut Conditions, now: &Time) {
    if deadline(deployment).is_none() {
        return;
    }
    let reason = get(conditions, PROGRESSING).and_then(|condition| condition.reason.as_deref());
    match (is_paused(deployment), reason) {
        (_, Some(TIMED_OUT)) | (true, Some(PAUSED)) => {}
        (true, _) => {
            set(conditions, PROGRESSING, "Unknown", PAUSED, "Deployment is paused".to_owned(), now);
        }
        (false, Some(PAUSED)) => {
            set(conditions, PROGRESSING, "Unknown", RESUMED, "Deployment is resumed".to_owned(), now);
        }
        (false, _) => {}
    }
}

/// Counts and availability. `all` includes `new`.
pub fn count(
    deployment: &Deployment,
    mut conditions: Conditions,
    all: &[&ReplicaSet],
    new: Option<&ReplicaSet>,
    now: &Time,
) -> DeploymentStatus {
    let sum = |of: fn(&ReplicaSet) -> i32| all.iter().fold(0_i32, |sum, set| sum.saturating_add(of(set)));
    let wanted = sum(wanted);
    let replicas = sum(|set| set.status.as_ref().map_or(0, |status| status.replicas));
    let ready = sum(|set| set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0));
    let available = sum(available);
    let updated = new.and_then(|set| set.status.as_ref()).map_or(0, |status| status.replicas);
    let bounds = Bounds::of(deployment);
    let (status, reason, message) = if available >= bounds.fewest() {
        ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    };
    set(&mut conditions, AVAILABLE, status, reason, message.to_owned(), now);
    let some = |count: i32| (count != 0).then_some(count);
    DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: some(replicas),
        updated_replicas: some(updated),
        ready_replicas: some(ready),
        available_replicas: some(available),
        unavailable_replicas: some((wanted - available).max(0)),
        terminating_replicas: terminating(all),
        collision_count: deployment.status.as_ref().and_then(|status| status.collision_count),
        conditions: (!conditions.is_empty()).then_some(conditions),
    }
}

pub fn wanted(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

pub fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or_default()
}

/// `None` while one of the sets does not say.
fn terminating(all: &[&ReplicaSet]) -> Option<i32> {
    let mut sum = 0_i32;
    for status in all.iter().filter_map(|set| set.status.as_ref()) {
        match status.terminating_replicas {
            Some(count) => sum = sum.saturating_add(count),
            None if status.observed_generation.unwrap_or_default() == 0 => {}
            None => return None,
        }
    }
    Some(sum)
}

pub fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let replicas = Bounds::of(deployment).replicas;
    status.updated_replicas.unwrap_or_default() == replicas
        && status.replicas.unwrap_or_default() == replicas
        && status.available_replicas.unwrap_or_default() == replicas
        && status.observed_generation >= deployment.metadata.generation
}

fn is_progressing(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let old_ones =
        |status: &DeploymentStatus| status.replicas.unwrap_or_default() - status.updated_replicas.unwrap_or_default();
    new.updated_replicas > old.updated_replicas
        || old_ones(new) < old_ones(old)
        || new.ready_replicas > old.ready_replicas
        || new.available_replicas > old.available_replicas
}

fn timed_out(deployment: &Deployment, conditions: &Conditions, now: Timestamp) -> bool {
    let (Some(deadline), Some(condition)) = (deadline(deployment), get(conditions, PROGRESSING)) else {
        return false;
    };
    match condition.reason.as_deref() {
        Some(NEW_SET_AVAILABLE) => false,
        Some(TIMED_OUT) => true,
        _ => condition.last_update_time.as_ref().is_some_and(|since| since.0 + deadline < now),
    }
}

/// Says in `status` how far the rollout has come, given what was said before.
pub fn note_progress(
    deployment: &Deployment,
    before: &DeploymentStatus,
    status: &mut DeploymentStatus,
    all: &[&ReplicaSet],
    new: Option<&ReplicaSet>,
    now: &Time,
) {
    let mut conditions = status.conditions.take().unwrap_or_default();
    let subject = match new {
        Some(set) => format!("ReplicaSet \"{}\"", set.name_any()),
        None => format!("Deployment \"{}\"", deployment.name_any()),
    };
    if deadline(deployment).is_none() {
        remove(&mut conditions, PROGRESSING);
    } else {
        let current = get(&conditions, PROGRESSING).cloned();
        let ended = status.replicas == status.updated_replicas
            && current.as_ref().and_then(|it| it.reason.as_deref()) == Some(NEW_SET_AVAILABLE);
        if ended {
            // A pod that fails later is no matter of the rollout.
        } else if is_complete(deployment, status) {
            let message = format!("{subject} has successfully progressed.");
            set(&mut conditions, PROGRESSING, "True", NEW_SET_AVAILABLE, message, now);
        } else if is_progressing(before, status) {
            // Said anew each time: the deadline counts from here.
            remove(&mut conditions, PROGRESSING);
            let message = format!("{subject} is progressing.");
            set(&mut conditions, PROGRESSING, "True", UPDATED, message, now);
            if let Some(current) = current.filter(|current| current.status == "True")
                && let Some(condition) = conditions.last_mut()
            {
                condition.last_transition_time = current.last_transition_time;
            }
        } else if timed_out(deployment, &conditions, now.0) {
            let message = format!("{subject} has timed out progressing.");
            set(&mut conditions, PROGRESSING, "False", TIMED_OUT, message, now);
        }
    }
    let failure = new.into_iter().chain(all.iter().copied()).find_map(|set| {
        let conditions = set.status.as_ref()?.conditions.as_ref()?;
        conditions.iter().find(|condition| condition.type_ == REPLICA_FAILURE)
    });
    match failure {
        Some(failure) => {
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            let (reason, message) = (text(&failure.reason), text(&failure.message));
            set(&mut conditions, REPLICA_FAILURE, &failure.status, &reason, message, now);
        }
        None => remove(&mut conditions, REPLICA_FAILURE),
    }
    status.conditions = (!conditions.is_empty()).then_some(conditions);
}

/// When to look whether the deadline has passed, if nothing else happens.
pub fn next_check(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> Option<Duration> {
    let deadline = deadline(deployment)?;
    let condition = get(status.conditions.as_ref()?, PROGRESSING)?;
    if is_complete(deployment, status)
        || matches!(condition.reason.as_deref(), Some(NEW_SET_AVAILABLE | TIMED_OUT | PAUSED))
    {
        return None;
    }
    let since = condition.last_update_time.as_ref()?.0;
    let left = (since + deadline).duration_since(now);
    // A second more: times in the API are whole seconds.
    Some(Duration::try_from(left).unwrap_or_default() + Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    fn at(second: i64) -> Time {
        Time(Timestamp::from_second(second).unwrap())
    }

    fn deployment(replicas: i32) -> Deployment {
        serde_json::from_value(json!({
            "metadata": { "name": "web", "generation": 1 },
            "spec": {
                "replicas": replicas, "progressDeadlineSeconds": 60, "selector": {}, "template": {},
                "strategy": { "type": "RollingUpdate" },
            },
        }))
        .unwrap()
    }

    fn set_with(wanted: i32, ready: i32) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": { "name": "web-abc" },
            "spec": { "replicas": wanted, "selector": {} },
            "status": { "replicas": wanted, "readyReplicas": ready, "availableReplicas": ready,
                        "observedGeneration": 1, "terminatingReplicas": 0 },
        }))
        .unwrap()
    }

    fn step(deployment: &mut Deployment, set: &ReplicaSet, second: i64) -> (String, String) {
        let before = deployment.status.clone().unwrap_or_default();
        let conditions = before.conditions.clone().unwrap_or_default();
        let mut status = count(deployment, conditions, &[set], Some(set), &at(second));
        note_progress(deployment, &before, &mut status, &[set], Some(set), &at(second));
        let condition = get(status.conditions.as_ref().unwrap(), PROGRESSING).cloned().unwrap();
        deployment.status = Some(status);
        (condition.status, condition.reason.unwrap())
    }

    #[test]
    fn a_rollout_progresses_completes_and_stays_complete() {
        let mut deployment = deployment(2);
        let mut conditions = Conditions::new();
        set(&mut conditions, PROGRESSING, "True", NEW_SET_CREATED, String::new(), &at(0));
        deployment.status = Some(DeploymentStatus { conditions: Some(conditions), ..Default::default() });
        assert_eq!(step(&mut deployment, &set_with(2, 0), 1), ("True".into(), UPDATED.into()));
        assert_eq!(step(&mut deployment, &set_with(2, 1), 2), ("True".into(), UPDATED.into()));
        assert_eq!(step(&mut deployment, &set_with(2, 2), 3), ("True".into(), NEW_SET_AVAILABLE.into()));
        assert_eq!(step(&mut deployment, &set_with(2, 0), 500), ("True".into(), NEW_SET_AVAILABLE.into()));
        let conditions = deployment.status.unwrap().conditions.unwrap();
        assert_eq!(get(&conditions, AVAILABLE).unwrap().status, "False");
        assert_eq!(get(&conditions, PROGRESSING).unwrap().last_transition_time, Some(at(0)));
    }

    #[test]
    fn a_rollout_that_stands_still_times_out_and_recovers() {
        let mut deployment = deployment(2);
        let mut conditions = Conditions::new();
        set(&mut conditions, PROGRESSING, "True", NEW_SET_CREATED, String::new(), &at(0));
        deployment.status = Some(DeploymentStatus { conditions: Some(conditions), ..Default::default() });
        step(&mut deployment, &set_with(2, 1), 1);
        let status = deployment.status.clone().unwrap();
        assert_eq!(next_check(&deployment, &status, at(1).0), Some(Duration::from_secs(61)));
        assert_eq!(step(&mut deployment, &set_with(2, 1), 61), ("True".into(), UPDATED.into()));
        assert_eq!(step(&mut deployment, &set_with(2, 1), 62), ("False".into(), TIMED_OUT.into()));
        assert_eq!(step(&mut deployment, &set_with(2, 2), 90), ("True".into(), NEW_SET_AVAILABLE.into()));
    }

    #[test]
    fn a_pause_is_noted_and_its_end_too() {
        let mut deployment = deployment(1);
        let mut conditions = Conditions::new();
        deployment.spec.as_mut().unwrap().paused = Some(true);
        note_pause(&deployment, &mut conditions, &at(1));
        assert_eq!(get(&conditions, PROGRESSING).unwrap().reason.as_deref(), Some(PAUSED));
        deployment.spec.as_mut().unwrap().paused = None;
        note_pause(&deployment, &mut conditions, &at(2));
        let condition = get(&conditions, PROGRESSING).unwrap();
        assert_eq!(condition.reason.as_deref(), Some(RESUMED));
        assert_eq!((condition.status.as_str(), &condition.last_transition_time), ("Unknown", &Some(at(1))));
    }
}
