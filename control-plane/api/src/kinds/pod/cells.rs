//! A pod in a table.

use serde_json::{Value, json};

use crate::kinds::print;
use crate::validation::field::Field;

fn restarts_always(container: &Field<'_>) -> bool {
    container.child("restartPolicy").str() == "Always"
}

fn condition<'v>(pod: &Field<'v>, kind: &str) -> Option<Field<'v>> {
    pod.below(&["status", "conditions"]).items().find(|condition| condition.child("type").str() == kind)
}

fn is_true(pod: &Field<'_>, kind: &str) -> bool {
    condition(pod, kind).is_some_and(|condition| condition.child("status").str() == "True")
}

/// When a container ended last, in seconds since 1970.
fn ended(status: &Field<'_>) -> Option<i64> {
    print::seconds(status.below(&["lastState", "terminated", "finishedAt"]).value()?)
}

/// `Error`, `Signal:9` or `ExitCode:1`.
fn why_terminated(terminated: &Field<'_>) -> String {
    let reason = terminated.child("reason").str();
    if !reason.is_empty() {
        return reason.to_owned();
    }
    match terminated.child("signal").int() {
        0 => format!("ExitCode:{}", terminated.child("exitCode").int()),
        signal => format!("Signal:{signal}"),
    }
}

struct Summary {
    ready: usize,
    total: usize,
    reason: String,
    restarts: i64,
    last_restart: Option<i64>,
}

fn summary(pod: &Field<'_>) -> Summary {
    let (spec, status) = (pod.child("spec"), pod.child("status"));
    let init: Vec<Field<'_>> = spec.child("initContainers").items().collect();
    let sidecars = init.iter().filter(|container| restarts_always(container)).count();
    let mut all = Summary {
        ready: 0,
        total: spec.child("containers").len() + sidecars,
        reason: [status.child("reason").str(), status.child("phase").str()]
            .into_iter()
            .find(|text| !text.is_empty())
            .unwrap_or_default()
            .to_owned(),
        restarts: 0,
        last_restart: None,
    };
    if condition(pod, "PodScheduled").is_some_and(|condition| condition.child("reason").str() == "SchedulingGated") {
        "SchedulingGated".clone_into(&mut all.reason);
    }
    let (mut sidecar_restarts, mut sidecar_last, mut initializing) = (0, None, false);
    for (i, container) in status.child("initContainerStatuses").items().enumerate() {
        let count = container.child("restartCount").int();
        let name = container.child("name").str();
        let is_sidecar = init.iter().any(|one| one.child("name").str() == name && restarts_always(one));
        all.restarts += count;
        all.last_restart = all.last_restart.max(ended(&container));
        if is_sidecar {
            sidecar_restarts += count;
            sidecar_last = sidecar_last.max(ended(&container));
        }
        let (terminated, waiting) = (container.below(&["state", "terminated"]), container.below(&["state", "waiting"]));
        if terminated.is_set() && terminated.child("exitCode").int() == 0 {
            continue;
        }
        if is_sidecar && container.child("started").bool() {
            all.ready += usize::from(container.child("ready").bool());
            continue;
        }
        let why = waiting.child("reason").str();
        all.reason = if terminated.is_set() {
            format!("Init:{}", why_terminated(&terminated))
        } else if !why.is_empty() && why != "PodInitializing" {
            format!("Init:{why}")
        } else {
            format!("Init:{i}/{}", init.len())
        };
        initializing = true;
        break;
    }
    if !initializing || is_true(pod, "Initialized") {
        all.restarts = sidecar_restarts;
        all.last_restart = sidecar_last;
        let mut running = false;
        for container in status.child("containerStatuses").items().rev() {
            all.restarts += container.child("restartCount").int();
            all.last_restart = all.last_restart.max(ended(&container));
            let terminated = container.below(&["state", "terminated"]);
            let why = container.below(&["state", "waiting", "reason"]).str();
            if !why.is_empty() {
                why.clone_into(&mut all.reason);
            } else if terminated.is_set() {
                all.reason = why_terminated(&terminated);
            } else if container.child("ready").bool() && container.below(&["state", "running"]).is_set() {
                running = true;
                all.ready += 1;
            }
        }
        if running && all.reason == "Completed" {
            let reason = if is_true(pod, "Ready") { "Running" } else { "NotReady" };
            reason.clone_into(&mut all.reason);
        }
    }
    if pod.below(&["metadata", "deletionTimestamp"]).is_set() {
        if status.child("reason").str() == "NodeLost" {
            "Unknown".clone_into(&mut all.reason);
        } else if !matches!(status.child("phase").str(), "Succeeded" | "Failed") {
            "Terminating".clone_into(&mut all.reason);
        }
    }
    all
}

pub fn cells(object: &Value, now: i64) -> Vec<Value> {
    let pod = Field::root(object);
    let all = summary(&pod);
    let restarts = match all.last_restart {
        Some(then) if all.restarts != 0 => {
            format!("{} ({} ago)", all.restarts, print::duration(now - then))
        }
        _ => all.restarts.to_string(),
    };
    let or_none = |text: &str| {
        if text.is_empty() { "<none>".to_owned() } else { text.to_owned() }
    };
    let ip = pod.below(&["status", "podIPs"]).items().next().map_or("", |entry| entry.child("ip").str());
    let gates: Vec<&str> =
        pod.below(&["spec", "readinessGates"]).items().map(|gate| gate.child("conditionType").str()).collect();
    let gates_cell = if gates.is_empty() {
        "<none>".to_owned()
    } else {
        format!("{}/{}", gates.iter().filter(|gate| is_true(&pod, gate)).count(), gates.len())
    };
    vec![
        print::name(object),
        json!(format!("{}/{}", all.ready, all.total)),
        json!(all.reason),
        json!(restarts),
        print::age(object, now),
        json!(or_none(ip)),
        json!(or_none(pod.below(&["spec", "nodeName"]).str())),
        json!(or_none(pod.below(&["status", "nominatedNodeName"]).str())),
        json!(gates_cell),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::cells;

    fn shown(pod: &Value) -> (Value, Value, Value) {
        let cells = cells(pod, 1_000_000);
        (cells[1].clone(), cells[2].clone(), cells[3].clone())
    }

    fn pod(status: Value) -> Value {
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]}, "status": status})
    }

    #[test]
    fn states() {
        let back_off = json!({"phase": "Running", "containerStatuses": [{
            "name": "c", "restartCount": 3, "ready": false, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 1, "finishedAt": "1970-01-12T13:41:40Z"}},
        }]});
        assert_eq!(shown(&pod(back_off)), (json!("0/1"), json!("CrashLoopBackOff"), json!("3 (5m ago)")));
        let running = json!({"phase": "Running", "containerStatuses": [
            {"name": "c", "restartCount": 0, "ready": true, "state": {"running": {}}},
        ]});
        assert_eq!(shown(&pod(running.clone())), (json!("1/1"), json!("Running"), json!("0")));
        let mut going = pod(running);
        going["metadata"]["deletionTimestamp"] = json!("1970-01-01T00:00:00Z");
        assert_eq!(shown(&going).1, json!("Terminating"));
        let killed = json!({"phase": "Failed", "containerStatuses": [
            {"name": "c", "restartCount": 0, "state": {"terminated": {"exitCode": 137, "signal": 9}}},
        ]});
        assert_eq!(shown(&pod(killed)).1, json!("Signal:9"));
        let mut init = pod(json!({"phase": "Pending", "initContainerStatuses": [
            {"name": "i", "restartCount": 0, "state": {"running": {}}},
        ]}));
        init["spec"]["initContainers"] = json!([{"name": "i"}, {"name": "j"}]);
        assert_eq!(shown(&init).1, json!("Init:0/2"));
        assert_eq!(shown(&pod(json!({"phase": "Pending"}))), (json!("0/1"), json!("Pending"), json!("0")));
    }
}
