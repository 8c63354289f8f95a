//! Agents and hosts that come and go.

use super::*;

fn told(world: &mut World) -> core::Pod {
    let status = world.status();
    core::Pod { status: Some(status), ..core::Pod::clone(world.machine.pod()) }
}

#[test]
fn a_new_agent_adopts() {
    let mut world = World::new(one("Always")).begin();
    world.ends("app", 1);
    let pod = told(&mut world);
    let running = RunState::Running { started_at: world.now };
    let mut next = World::adopting(pod.clone(), vec![("app".into(), 1, running)]).begin();
    assert!(next.starts.is_empty());
    assert_eq!(next.condition("Ready").0, "True");
    assert_eq!(next.container("app").restart_count, 1);
    assert_eq!(next.container("app").last_state.unwrap().terminated.unwrap().exit_code, 1);
    // It ended while nobody looked, and left a record.
    let exited = RunState::Exited(world.exit(7));
    let mut next = World::adopting(pod.clone(), vec![("app".into(), 1, exited)]).begin();
    assert_eq!(next.starts, [("app".into(), 2, 0)]);
    assert_eq!(next.container("app").last_state.unwrap().terminated.unwrap().exit_code, 7);
    // It is gone without a trace.
    let mut next = World::adopting(pod, Vec::new()).begin();
    assert_eq!(next.starts, [("app".into(), 2, 0)]);
    let last = next.container("app").last_state.unwrap().terminated.unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (137, Some("ContainerStatusUnknown")));
}

#[test]
fn what_ended_for_good_is_not_started_again() {
    let mut world = World::new(one("Never")).begin();
    world.ends("app", 0);
    let pod = told(&mut world);
    let mut next = World::adopting(pod, Vec::new()).begin();
    assert!(next.starts.is_empty());
    assert!(!next.machine.tells_status());
    next.delete(0);
    assert!(next.deleted);
}

#[test]
fn a_lost_host_restarts_its_containers() {
    let mut world = World::new(one("Always")).begin();
    world.input(Input::Lost { container: "app".into(), attempt: 0 });
    assert_eq!(world.starts.len(), 2);
    assert_eq!(world.container("app").restart_count, 1);
}

#[test]
fn an_end_that_overtakes_the_answer_to_the_start() {
    let mut world = World::new(one("Never"));
    let now = world.now;
    world.machine.handle(now, Input::Timer);
    let addresses = vec!["10.0.0.7".parse().unwrap()];
    world.machine.handle(now, Input::SetUp(Ok(addresses)));
    let exit = world.exit(4);
    world.machine.handle(now, Input::Changed { container: "app".into(), attempt: 0, state: RunState::Exited(exit) });
    let started = Started {
        image: "a".into(),
        image_id: "a".into(),
        id: None,
        size: 1,
        took: None,
        state: RunState::Running { started_at: now },
    };
    world.machine.handle(now, Input::Started { index: 0, attempt: 0, result: Ok(started) });
    assert_eq!(world.phase(), "Failed");
}
