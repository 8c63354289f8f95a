//! Containers added to a running pod.

use super::*;

fn added(world: &World, containers: Value) -> core::Pod {
    let mut pod = core::Pod::clone(world.machine.pod());
    pod.spec.as_mut().unwrap().ephemeral_containers = serde_json::from_value(containers).unwrap();
    pod
}

fn add(world: &mut World, containers: Value) {
    let pod = added(world, containers);
    world.input(Input::Spec(Arc::new(pod)));
}

fn debugger(world: &mut World) -> core::ContainerStatus {
    world.status().ephemeral_container_statuses.unwrap().remove(0)
}

#[test]
fn one_that_is_added_runs_once() {
    let mut world = World::new(one("Always")).begin();
    assert_eq!(world.status().ephemeral_container_statuses, None);
    add(&mut world, json!([{ "name": "debugger", "image": "localhost/tools:v1" }]));
    assert_eq!(world.starts.last().unwrap(), &("debugger".into(), 0, 0));
    let status = debugger(&mut world);
    assert!(status.state.unwrap().running.is_some());
    // As the kubelet has it: nobody asks whether it is ready.
    assert_eq!((status.ready, status.started), (false, None));
    assert_eq!(world.condition("Ready").0, "True");
    world.ends("debugger", 3);
    world.wait(600);
    assert_eq!(debugger(&mut world).state.unwrap().terminated.unwrap().exit_code, 3);
    assert_eq!(world.starts.len(), 2);
    assert_eq!(world.phase(), "Running");
    // The next one leaves the first alone.
    add(&mut world, json!([{ "name": "debugger" }, { "name": "another" }]));
    assert_eq!(world.starts.last().unwrap(), &("another".into(), 0, 600));
    world.delete(30);
    let stops: Vec<_> = world.stops.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(stops, ["app", "another"]);
    assert!(world.deleted);
}

#[test]
fn it_does_not_keep_a_pod_that_is_done() {
    let mut world = World::new(one("Never")).begin();
    add(&mut world, json!([{ "name": "debugger" }]));
    world.ends("app", 0);
    let stops: Vec<_> = world.stops.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(stops, ["debugger"]);
    assert_eq!(world.phase(), "Succeeded");
}

#[test]
fn one_that_cannot_start_holds_nobody_up() {
    let spec = json!({ "initContainers": [{ "name": "one" }], "containers": [{ "name": "app" }] });
    let mut world = World::new(pod(spec)).begin();
    world.failures.push(("debugger".into(), StartFailure::ImageNever { image: "i".into() }));
    add(&mut world, json!([{ "name": "debugger" }]));
    assert_eq!(debugger(&mut world).state.unwrap().waiting.unwrap().reason.unwrap(), "ErrImageNeverPull");
    world.ends("one", 0);
    assert_eq!(world.condition("Ready").0, "True");
}

#[test]
fn a_new_agent_finds_it() {
    let mut world = World::new(one("Always")).begin();
    add(&mut world, json!([{ "name": "debugger" }]));
    let mut pod = core::Pod::clone(world.machine.pod());
    pod.status = Some(world.status());
    let running = || RunState::Running { started_at: world.now };
    let known = vec![("app".into(), 0, running()), ("debugger".into(), 0, running())];
    let mut again = World::adopting(pod.clone(), known).begin();
    assert!(again.starts.is_empty() && again.stops.is_empty());
    assert!(debugger(&mut again).state.unwrap().running.is_some());
    // One that ended unseen is lost, and stays so.
    let mut again = World::adopting(pod, vec![("app".into(), 0, running())]).begin();
    assert!(again.starts.is_empty());
    assert_eq!(debugger(&mut again).state.unwrap().terminated.unwrap().reason.unwrap(), "ContainerStatusUnknown");
}
