//! A containerd that comes, goes, is killed, and leaves nothing behind.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::time::Duration;

use common::{LIMIT, Pod, events, exit, next, node, sandbox, shell, until};
use sampan_oci::{ContainerState, Containerd, Daemon, DaemonOptions, Error, Event, SandboxFilter};

#[tokio::test]
async fn pods_outlive_a_killed_containerd() {
    let Some(mut node) = node().await else { return };
    let client = node.daemon.client().clone();
    let pod = Pod::run(&node, sandbox(&node, "lasting")).await;
    let go = node.base().join("go");
    std::fs::create_dir(&go).unwrap();
    let mut container =
        shell("main", "n=0; while [ ! -e /go/now ]; do n=$((n+1)); echo line $n; sleep 0.01; done; echo end; exit 9");
    container.mounts = vec![sampan_oci::Mount {
        container_path: "/go".into(),
        host_path: go.to_str().unwrap().into(),
        ..Default::default()
    }];
    let id = pod.start(&container).await;
    let before = client.container_status(&id).await.unwrap();
    let mut events = events(&client).await;

    let killed = node.daemon.identity();
    killed.signal(rustix::process::Signal::KILL);
    tokio::time::timeout(LIMIT, node.daemon.ended()).await.unwrap();
    assert!(client.container_status(&id).await.unwrap_err().is_unavailable());
    node.restart().await.unwrap();
    assert_ne!(node.daemon.identity(), killed);

    // The old connection and the old stream go on by themselves.
    assert_eq!(next(&mut events).await, Event::Resync);
    let status = client.container_status(&id).await.unwrap();
    assert_eq!((status.state, status.pid), (ContainerState::Running, before.pid));
    let sandboxes = client.list_sandboxes(&SandboxFilter::default()).await.unwrap();
    assert_eq!(sandboxes.into_iter().map(|s| s.id).collect::<Vec<_>>(), std::slice::from_ref(&pod.id));
    std::fs::write(go.join("now"), "").unwrap();
    assert_eq!(exit(&mut events, &id).await, 9);
    let log = pod.log(&container);
    let expected: Vec<_> = (1..log.lines().count()).map(|n| format!("line {n}")).chain(["end".into()]).collect();
    assert_eq!(log.lines().collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn an_end_while_containerd_is_away_is_found() {
    let Some(mut node) = node().await else { return };
    let client = node.daemon.client().clone();
    let pod = Pod::run(&node, sandbox(&node, "unseen")).await;
    let id = pod.start(&shell("main", "sleep 1000")).await;
    let pid = client.container_status(&id).await.unwrap().pid.unwrap();
    node.daemon.identity().signal(rustix::process::Signal::KILL);
    node.daemon.ended().await;
    let process = sampan_process::Identity::of(pid).unwrap();
    process.signal(rustix::process::Signal::KILL);
    assert!(process.gone(LIMIT).await);
    node.restart().await.unwrap();
    let status = until("exited", || async {
        let status = client.container_status(&id).await.ok()?;
        (status.state == ContainerState::Exited).then_some(status)
    })
    .await;
    assert_eq!(status.exit_code, 137);
}

#[tokio::test]
async fn the_one_that_runs_is_adopted_unless_it_should_be_another() {
    let Some(mut node) = node().await else { return };
    let pod = Pod::run(&node, sandbox(&node, "kept")).await;
    let first = node.daemon.identity();
    node.restart().await.unwrap();
    assert_eq!(node.daemon.identity(), first);
    node.options.debug = true;
    node.restart().await.unwrap();
    assert_ne!(node.daemon.identity(), first);
    assert!(!first.is_alive());
    let status = node.daemon.client().sandbox_status(&pod.id).await.unwrap();
    assert_eq!(status.sandbox.state, sampan_oci::SandboxState::Ready);
    // A start that was not written down is found as well: two would fight for one directory.
    let second = node.daemon.identity();
    std::fs::remove_file(node.dir.join("containerd.json")).unwrap();
    node.restart().await.unwrap();
    assert!(!second.is_alive() && node.daemon.identity().is_alive());
}

#[tokio::test]
async fn nothing_stays_behind_also_after_a_panic() {
    let Some(node) = node().await else { return };
    let pod = Pod::run(&node, sandbox(&node, "left")).await;
    let mut host = sandbox(&node, "host");
    host.namespaces.pid = sampan_oci::PidMode::Node;
    let host = Pod::run(&node, host).await;
    let mut container = shell("main", "sleep 1000 & sleep 1000");
    let first = pod.start(&container).await;
    container.namespaces.pid = sampan_oci::PidMode::Node;
    let second = host.start(&container).await;
    let client = node.daemon.client().clone();
    let mut pids = vec![node.daemon.identity()];
    for id in [&first, &second] {
        let pid = client.container_status(id).await.unwrap().pid.unwrap();
        pids.push(sampan_process::Identity::of(pid).unwrap());
    }
    let run = client.socket().parent().unwrap().to_owned();
    let (base, group, range) = (node.base().to_owned(), node.cgroup("left"), node.range.to_string());
    let range = range.split(".0/").next().unwrap().to_owned() + ".";
    let routes = || {
        let fib = std::fs::read_to_string("/proc/net/fib_trie").unwrap();
        fib.lines().filter(|line| line.contains(&range)).count()
    };
    assert!(mounts(&run) > 0 && routes() > 0);
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _node = node;
        panic!("a test fails");
    }));
    assert!(panicked.is_err());
    assert!(pids.iter().all(|identity| !identity.is_alive()));
    assert_eq!((mounts(&run), mounts(&base)), (0, 0));
    assert!(!run.exists() && !base.exists());
    let group = group.trim_start_matches('/').split('/').next().unwrap().to_owned();
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        assert!(!hierarchy.path().join(&group).exists(), "{hierarchy:?}");
    }
    // The kernel takes a namespace down in its own time.
    until("routes gone", || async { (routes() == 0).then_some(()) }).await;
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&line).contains(run.to_str().unwrap()), "{entry:?}");
    }
}

/// Runs itself once more, kills that with a pod in it, and starts a node, which finds what is left.
#[tokio::test]
async fn what_a_killed_test_left_is_swept_up() {
    const INNER: &str = "SAMPAN_OCI_KILLED_TEST";
    if std::env::var_os(INNER).is_some() {
        let node = node().await.unwrap();
        let pod = Pod::run(&node, sandbox(&node, "left")).await;
        pod.start(&shell("main", "sleep 1000")).await;
        println!("left {} {}", node.base().display(), pod.client.socket().parent().unwrap().display());
        std::future::pending::<()>().await;
    }
    if sampan_oci::testing::unavailable().is_some() {
        return drop(node().await);
    }
    let mut inner = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "what_a_killed_test_left_is_swept_up", "--nocapture"])
        .env(INNER, "1")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(inner.stdout.take().unwrap()));
    let left = lines.map_while(Result::ok).find_map(|line| line.strip_prefix("left ").map(str::to_owned));
    inner.kill().unwrap();
    inner.wait().unwrap();
    let left = left.expect("the inner test has not come so far");
    let (base, run) = left.split_once(' ').map(|(base, run)| (Path::new(base), Path::new(run))).unwrap();
    assert!(base.exists() && run.exists() && mounts(run) > 0);
    // Another test may sweep at the same time, and not be done when we are.
    let _node = node().await;
    until("swept", || async { (!base.exists() && !run.exists() && mounts(run) == 0).then_some(()) }).await;
}

fn mounts(dir: &Path) -> usize {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().filter(|line| line.contains(dir.to_str().unwrap())).count()
}

#[tokio::test]
async fn what_is_no_containerd_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s.sock");
    let error = Containerd::connect(&socket).await.unwrap_err();
    assert!(matches!(error, Error::Missing { .. }) && error.is_unavailable(), "{error}");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    drop(listener);
    let error = Containerd::connect(&socket).await.unwrap_err();
    assert!(error.to_string().contains("nobody listens"), "{error}");
    std::fs::remove_file(&socket).unwrap();
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let other = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"220 mail.example ESMTP\r\n").await;
        }
    });
    let error = tokio::time::timeout(LIMIT, Containerd::connect(&socket)).await.unwrap().unwrap_err();
    other.abort();
    assert!(error.to_string().contains("not containerd's socket"), "{error}");
}

#[tokio::test]
async fn a_configuration_that_cannot_work_stops_the_start() {
    if let Some(why) = sampan_oci::testing::unavailable() {
        eprintln!("skipped: {why}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let network = sampan_oci::cni::Network::new("a b", ["10.254.254.0/24".parse().unwrap()]);
    let options = DaemonOptions { network: Some(network), ..Default::default() };
    let started = tokio::time::timeout(Duration::from_secs(30), Daemon::start(&dir.path().join("d"), &options)).await;
    let error = started.unwrap().unwrap_err().to_string();
    Daemon::purge(&dir.path().join("d")).unwrap();
    assert!(error.contains("name:"), "{error}");
}
