//! What probes decide.

use super::*;

#[test]
fn readiness_follows_its_probe() {
    let mut world = World::new(probed(
        json!({ "readinessProbe": { "httpGet": { "port": 80 }, "periodSeconds": 5, "failureThreshold": 2 } }),
    ))
    .begin();
    assert_eq!(world.condition("Ready").0, "True");
    world.healthy = false;
    world.wait(5);
    assert_eq!(world.condition("Ready").0, "True");
    assert_eq!(world.events.last().unwrap().1, "Readiness probe failed: HTTP probe failed with statuscode: 500");
    world.wait(5);
    assert_eq!(world.condition("Ready").1, "ContainersNotReady");
    assert!(world.container("app").started.unwrap());
    world.healthy = true;
    world.wait(5);
    assert_eq!(world.condition("Ready").0, "True");
    assert_eq!(world.starts.len(), 1);
}

#[test]
fn liveness_restarts() {
    let mut world =
        World::new(probed(json!({ "livenessProbe": { "tcpSocket": { "port": 80 }, "initialDelaySeconds": 3 } })))
            .begin();
    world.healthy = false;
    world.wait(22);
    assert_eq!(world.starts.len(), 1);
    world.wait(1);
    assert_eq!(world.stops, [("app".into(), 0, 30)]);
    assert_eq!(world.starts.last().unwrap(), &("app".into(), 1, 23));
    let killing = world.events.iter().find(|(reason, _)| reason == "Killing").unwrap();
    assert_eq!(killing.1, "Container app failed liveness probe, will be restarted");
    assert_eq!(world.reasons().iter().filter(|it| **it == "Unhealthy").count(), 3);
    assert_eq!(world.container("app").restart_count, 1);
}

#[test]
fn startup_holds_the_others_back() {
    let probes = json!({
        "startupProbe": { "httpGet": { "port": 80 }, "periodSeconds": 2, "failureThreshold": 30 },
        "livenessProbe": { "httpGet": { "port": 80 } },
        "readinessProbe": { "httpGet": { "port": 80 } },
    });
    let mut world = World::new(probed(probes));
    world.healthy = false;
    let mut world = world.begin();
    world.wait(9);
    assert!(world.probes.iter().all(|(kind, _)| *kind == ProbeKind::Startup));
    assert_eq!(world.container("app").started, Some(false));
    world.healthy = true;
    world.wait(2);
    assert_eq!(world.container("app").started, Some(true));
    assert!(world.container("app").ready);
}
