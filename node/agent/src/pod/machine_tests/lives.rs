//! From the first container to the last.

use super::*;

#[test]
fn a_pod_runs() {
    let mut world = World::new(one("Always"));
    assert_eq!(world.phase(), "Pending");
    assert_eq!(world.waiting("app").0, "ContainerCreating");
    assert_eq!(world.condition("PodReadyToStartContainers").0, "False");
    let mut world = world.begin();
    let status = world.status();
    assert_eq!(status.phase.as_deref(), Some("Running"));
    assert_eq!(status.pod_ip.as_deref(), Some("10.0.0.7"));
    assert_eq!(status.host_ip.as_deref(), Some("192.0.2.1"));
    assert_eq!(status.qos_class.as_deref(), Some("BestEffort"));
    for condition in ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"] {
        assert_eq!(world.condition(condition).0, "True", "{condition}");
    }
    assert_eq!(
        world.events,
        [
            (
                "Pulled",
                "Container image \"localhost/app:v1\" already present on machine and can be accessed by the pod"
            ),
            ("Created", "Container created"),
            ("Started", "Container started"),
        ]
        .map(|(reason, message)| (reason.to_owned(), message.to_owned()))
    );
    assert_eq!(world.machine.next_timer(), None);
}

#[test]
fn crashes_back_off() {
    let mut world = World::new(one("Always")).begin();
    for _ in 0..4 {
        world.ends("app", 1);
        world.wait(400);
    }
    let attempts: Vec<_> = world.starts.iter().map(|(_, attempt, at)| (*attempt, *at)).collect();
    // At once, then after 10, 20 and 40 s.
    assert_eq!(attempts, [(0, 0), (1, 0), (2, 410), (3, 820), (4, 1240)]);
    world.ends("app", 1);
    let (reason, message) = world.waiting("app");
    assert_eq!(reason, "CrashLoopBackOff");
    assert_eq!(message, "back-off 1m20s restarting failed container=app pod=web_shop(u1)");
    let status = world.container("app");
    assert_eq!(status.restart_count, 4);
    assert_eq!(status.last_state.unwrap().terminated.unwrap().exit_code, 1);
    assert_eq!(world.phase(), "Running");
    assert_eq!(world.condition("Ready").1, "ContainersNotReady");
    assert_eq!(world.condition("Ready").2, "containers with unready status: [app]");
    let last = world.events.last().unwrap();
    assert_eq!(last, &("BackOff".into(), "Back-off restarting failed container app in pod web_shop(u1)".into()));
}

#[test]
fn a_job_that_succeeds_and_one_that_fails() {
    for (policy, code, phase) in [("Never", 0, "Succeeded"), ("Never", 3, "Failed"), ("OnFailure", 0, "Succeeded")] {
        let mut world = World::new(one(policy)).begin();
        world.ends("app", code);
        assert_eq!(world.phase(), phase);
        assert_eq!(world.starts.len(), 1);
        let ready = world.condition("Ready");
        assert_eq!(ready.1, if code == 0 { "PodCompleted" } else { "PodFailed" });
        assert_eq!(world.condition("PodReadyToStartContainers").0, "False");
        let terminated = world.container("app").state.unwrap().terminated.unwrap();
        assert_eq!((terminated.exit_code, terminated.finished_at.is_some()), (code, true));
        assert_eq!(world.machine.next_timer(), None);
        assert!(!world.deleted);
        world.delete(30);
        assert!(world.deleted);
    }
    let mut world = World::new(one("OnFailure")).begin();
    world.ends("app", 1);
    assert_eq!(world.starts.len(), 2);
    assert_eq!(world.phase(), "Running");
}

#[test]
fn init_containers_in_order() {
    let spec = json!({
        "initContainers": [{ "name": "one" }, { "name": "side", "restartPolicy": "Always" }, { "name": "two" }],
        "containers": [{ "name": "app" }],
    });
    let mut world = World::new(pod(spec)).begin();
    assert_eq!(world.waiting("app").0, "PodInitializing");
    assert_eq!(world.condition("Initialized").2, "containers with incomplete status: [one side two]");
    world.ends("one", 1);
    assert_eq!(world.starts.last().unwrap(), &("one".into(), 1, 0));
    world.ends("one", 0);
    let started: Vec<_> = world.starts.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(started, ["one", "one", "side", "two"]);
    assert_eq!(world.phase(), "Pending");
    world.ends("two", 0);
    assert_eq!(world.phase(), "Running");
    assert_eq!(world.condition("Initialized").0, "True");
    assert_eq!(world.condition("Ready").0, "True");
    // Sidecars come back, and end after the others.
    world.ends("side", 0);
    assert_eq!(world.starts.last().unwrap(), &("side".into(), 1, 0));
    world.delete(30);
    let stops: Vec<_> = world.stops.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(stops, ["app", "side"]);
    assert!(world.deleted);
}

#[test]
fn a_failed_init_container_fails_the_pod() {
    let spec =
        json!({ "restartPolicy": "Never", "initContainers": [{ "name": "one" }], "containers": [{ "name": "app" }] });
    let mut world = World::new(pod(spec)).begin();
    world.ends("one", 2);
    assert_eq!(world.phase(), "Failed");
    assert_eq!(world.starts.len(), 1);
}

#[test]
fn sidecars_end_with_the_job() {
    let spec = json!({
        "restartPolicy": "Never",
        "initContainers": [{ "name": "side", "restartPolicy": "Always" }],
        "containers": [{ "name": "app" }],
    });
    let mut world = World::new(pod(spec)).begin();
    world.ends("app", 0);
    assert_eq!(world.stops.len(), 1);
    assert_eq!(world.starts.len(), 2);
    assert_eq!(world.phase(), "Succeeded");
}

#[test]
fn deletion_waits_for_the_containers() {
    let mut world = World::new(one("Always")).begin();
    world.stop_code = None;
    world.delete(30);
    assert_eq!(world.stops, [("app".into(), 0, 30)]);
    assert_eq!(world.events.last().unwrap(), &("Killing".into(), "Stopping container app".into()));
    assert!(!world.deleted);
    world.delete(5);
    assert_eq!(world.stops.last().unwrap(), &("app".into(), 0, 5));
    world.ends("app", 0);
    assert!(world.deleted);
    assert_eq!(world.phase(), "Succeeded");
    let pod = world.machine.pod().clone();
    world.input(Input::Removed(pod));
    assert!(world.forgotten);
    assert_eq!(world.starts.len(), 1);
}

#[test]
fn removed_without_a_word() {
    let mut world = World::new(one("Always")).begin();
    let pod = world.machine.pod().clone();
    world.input(Input::Removed(pod));
    assert_eq!(world.stops.len(), 1);
    assert!(world.forgotten);
    assert!(!world.deleted);
}

#[test]
fn an_image_that_is_not_there() {
    let mut world = World::new(one("Always"));
    world.failures.push((
        "app".into(),
        StartFailure::ImageAbsent { image: "localhost/app:v1".into(), message: "not on node".into() },
    ));
    let mut world = world.begin();
    assert_eq!(world.waiting("app"), ("ErrImagePull".into(), "not on node".into()));
    world.wait(3);
    let (reason, message) = world.waiting("app");
    assert_eq!(reason, "ImagePullBackOff");
    assert_eq!(message, "Back-off pulling image \"localhost/app:v1\": ErrImagePull: not on node");
    assert_eq!(world.reasons(), ["Failed", "Failed", "BackOff", "Failed"]);
    world.wait(60);
    let times: Vec<_> = world.starts.iter().map(|(.., at)| *at).collect();
    assert_eq!(times, [0, 10, 30]);
    // Imported: nobody waits for the back-off.
    world.failures.clear();
    world.input(Input::Retry);
    assert_eq!(world.phase(), "Running");
    assert_eq!(world.container("app").restart_count, 0);
}

#[test]
fn an_image_of_a_volume_that_is_not_there() {
    let mut world = World::new(one("Always"));
    let absent = StartFailure::ImageAbsent { image: "localhost/data:1".into(), message: "not on node".into() };
    world.failures.push(("app".into(), absent));
    let mut world = world.begin();
    world.wait(3);
    let (reason, message) = world.waiting("app");
    assert_eq!(reason, "ImagePullBackOff");
    assert_eq!(message, "Back-off pulling image \"localhost/data:1\": ErrImagePull: not on node");
}

#[test]
fn never_pulled() {
    let mut world = World::new(one("Always"));
    world.failures.push(("app".into(), StartFailure::ImageNever { image: "a".into() }));
    let mut world = world.begin();
    let expected = "Container image \"a\" is not present with pull policy of Never";
    assert_eq!(world.waiting("app"), ("ErrImageNeverPull".into(), expected.into()));
    assert_eq!(world.reasons(), ["ErrImageNeverPull", "Failed"]);
}

#[test]
fn configuration_errors_are_tried_again() {
    let mut world = World::new(one("Always"));
    world.failures.push(("app".into(), StartFailure::Config("configmap \"c\" not found".into())));
    let mut world = world.begin();
    assert_eq!(world.waiting("app"), ("CreateContainerConfigError".into(), "configmap \"c\" not found".into()));
    assert_eq!(world.events, [("Failed".to_owned(), "Error: configmap \"c\" not found".to_owned())]);
    world.failures.clear();
    world.wait(10);
    assert_eq!(world.phase(), "Running");
}

#[test]
fn a_port_that_is_taken_is_a_crash() {
    let mut world = World::new(one("Never"));
    world.failures.push(("app".into(), StartFailure::Run("port 8080 is taken".into())));
    let mut world = world.begin();
    assert_eq!(world.phase(), "Failed");
    let terminated = world.container("app").state.unwrap().terminated.unwrap();
    assert_eq!((terminated.reason.as_deref(), terminated.exit_code), (Some("StartError"), 128));
    assert_eq!(terminated.message.as_deref(), Some("port 8080 is taken"));
}

#[test]
fn mounts_that_fail_are_tried_again() {
    let mut world = World::new(one("Always"));
    world.set_up = Err(SetUpError { reason: "FailedMount", message: "MountVolume.SetUp failed".into() });
    let mut world = world.begin();
    assert_eq!(world.reasons(), ["FailedMount"]);
    assert_eq!(world.phase(), "Pending");
    world.wait(4);
    // After 0.5, 1 and 2 s.
    assert_eq!(world.reasons().len(), 4);
    world.set_up = Ok(());
    world.input(Input::Retry);
    assert_eq!(world.phase(), "Running");
}

#[test]
fn a_deadline() {
    let mut spec = one("Always");
    spec.spec.as_mut().unwrap().active_deadline_seconds = Some(20);
    let mut world = World::new(spec).begin();
    world.wait(19);
    assert_eq!(world.phase(), "Running");
    world.wait(1);
    let status = world.status();
    assert_eq!(status.phase.as_deref(), Some("Failed"));
    assert_eq!(status.reason.as_deref(), Some("DeadlineExceeded"));
    assert_eq!(status.message.as_deref(), Some("Pod was active on the node longer than the specified deadline"));
    assert_eq!(world.stops.len(), 1);
    assert_eq!(world.machine.next_timer(), None);
}

#[test]
fn evicted() {
    let evicted = |by_node| Input::Evicted(Evicted { message: "Too much. ".into(), by_node });
    for by_node in [false, true] {
        let mut world = World::new(one("Always")).begin();
        world.input(evicted(by_node));
        // Said again while it ends, it changes nothing.
        world.input(evicted(!by_node));
        let status = world.status();
        assert_eq!(status.phase.as_deref(), Some("Failed"));
        assert_eq!((status.reason.as_deref(), status.message.as_deref()), (Some("Evicted"), Some("Too much. ")));
        assert_eq!(world.stops, [("app".to_owned(), 0, 1)]);
        assert_eq!(world.events.iter().filter(|(reason, _)| reason == "Evicted").count(), 1);
        let conditions = status.conditions.unwrap();
        let disrupted = conditions.iter().find(|it| it.type_ == "DisruptionTarget");
        assert_eq!(disrupted.is_some(), by_node);
        assert!(disrupted.is_none_or(|it| it.reason.as_deref() == Some("TerminationByKubelet")));
        assert_eq!(world.machine.next_timer(), None, "it is not started again");
    }
    // One whose containers cannot start was not refused either.
    let mut world = World::new(one("Always"));
    world.failures.push(("app".into(), StartFailure::Config("no".into())));
    let mut world = world.begin();
    world.input(evicted(false));
    assert_eq!(world.status().message.as_deref(), Some("Too much. "));
    // One that has ended stays as it ended.
    let mut world = World::new(one("Never")).begin();
    world.ends("app", 0);
    world.input(evicted(false));
    assert_eq!(world.phase(), "Succeeded");
}

#[test]
fn who_ends_is_neither_evicted_nor_refreshed() {
    let is = |world: &World| (world.machine.can_be_evicted(), world.machine.keeps_volumes());
    let mut spec = one("Always");
    spec.spec.as_mut().unwrap().active_deadline_seconds = Some(20);
    let begun = || {
        let mut world = World::new(spec.clone());
        assert!(!world.machine.keeps_volumes(), "nothing was set up yet");
        world.stop_code = None;
        world.begin()
    };
    let mut world = begun();
    assert_eq!(is(&world), (true, true));
    // It ends by itself, however long it takes: another has to go for the sake of the disk.
    world.wait(20);
    assert_eq!(is(&world), (false, false));
    world.ends("app", 0);
    assert_eq!(is(&world), (false, false));
    let mut world = begun();
    world.delete(600);
    assert_eq!(is(&world), (true, false), "it can be hurried");
    world.input(Input::Evicted(Evicted { message: "Too much. ".into(), by_node: true }));
    assert_eq!(is(&world), (false, false));
    let mut world = begun();
    world.input(Input::Rejected { reason: "OutOfpods".into(), message: "no room".into() });
    assert_eq!(is(&world), (false, false));
}

#[test]
fn rejected() {
    let mut world = World::new(one("Always"));
    world.input(Input::Rejected { reason: "OutOfpods".into(), message: "no room".into() });
    let status = world.status();
    assert_eq!(status.phase.as_deref(), Some("Failed"));
    assert_eq!(status.reason.as_deref(), Some("OutOfpods"));
    assert_eq!(status.message.as_deref(), Some("Pod was rejected: no room"));
    assert!(world.starts.is_empty());
    world.delete(30);
    assert!(world.deleted);
}

#[test]
fn readiness_gates() {
    let mut spec = one("Always");
    spec.spec.as_mut().unwrap().readiness_gates =
        Some(vec![core::PodReadinessGate { condition_type: "example.com/lb".into() }]);
    let mut world = World::new(spec).begin();
    let ready = world.condition("Ready");
    assert_eq!(ready.1, "ReadinessGatesNotReady");
    assert_eq!(ready.2, "corresponding condition of pod readiness gate \"example.com/lb\" does not exist.");
    assert_eq!(world.condition("ContainersReady").0, "True");
}

/// The pod as the API has it after `world`.
#[test]
fn another_image_restarts() {
    let mut world = World::new(one("Always")).begin();
    let mut pod = core::Pod::clone(world.machine.pod());
    pod.spec.as_mut().unwrap().containers[0].image = Some("localhost/app:v2".into());
    world.input(Input::Spec(Arc::new(pod)));
    assert_eq!(
        world.events.iter().find(|(reason, _)| reason == "Killing").unwrap().1,
        "Container app definition changed, will be restarted"
    );
    assert_eq!(world.starts.len(), 2);
}

#[derive(Clone, Debug)]
enum Move {
    Wait(i64),
    End(i32),
    Health(bool),
    Fail(bool),
    Delete(i64),
    Retry,
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        (0_i64..400).prop_map(Move::Wait),
        (0_i32..2).prop_map(Move::End),
        any::<bool>().prop_map(Move::Health),
        any::<bool>().prop_map(Move::Fail),
        (0_i64..40).prop_map(Move::Delete),
        Just(Move::Retry),
    ];
    proptest::collection::vec(one, 0..25)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Whatever happens: attempts count up one by one, no two runs of a container overlap, readiness
    /// needs a running container, a pod that is over stays over, and a deleted pod goes.
    #[test]
    fn laws(policy in prop_oneof!["Always", "OnFailure", "Never"], moves in moves()) {
        let mut spec = probed(json!({ "livenessProbe": { "httpGet": { "port": 80 } }, "readinessProbe": { "httpGet": { "port": 80 } } }));
        spec.spec.as_mut().unwrap().restart_policy = Some(policy);
        let mut world = World::new(spec).begin();
        let mut over: Option<String> = None;
        for one in moves {
            match one {
                Move::Wait(seconds) => world.wait(seconds),
                Move::End(code) if world.machine.containers()[0].is_running() => world.ends("app", code),
                Move::End(_) => {}
                Move::Health(healthy) => world.healthy = healthy,
                Move::Fail(true) => world.failures = vec![("app".into(), StartFailure::Create("no".into()))],
                Move::Fail(false) => world.failures.clear(),
                Move::Delete(grace) => world.delete(grace),
                Move::Retry => world.input(Input::Retry),
            }
            let status = world.status();
            let phase = status.phase.unwrap();
            if let Some(over) = &over {
                prop_assert_eq!(over, &phase);
            }
            if phase == "Succeeded" || phase == "Failed" {
                over = Some(phase);
            }
            let container = &status.container_statuses.unwrap()[0];
            prop_assert!(!container.ready || container.state.as_ref().unwrap().running.is_some());
        }
        let mut last = None;
        for (_, attempt, _) in &world.starts {
            prop_assert!(last.is_none_or(|last| *attempt == last || *attempt == last + 1));
            last = Some(*attempt);
        }
        world.delete(0);
        prop_assert!(world.deleted);
        let pod = world.machine.pod().clone();
        world.input(Input::Removed(pod));
        prop_assert!(world.forgotten);
    }
}
