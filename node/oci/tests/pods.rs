//! Pods under a real containerd.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use common::{Pod, events, exit, next, node, sandbox, shell, until};
use sampan_oci::cgroup::{self, Limits};
use sampan_oci::{
    Capabilities, ContainerFilter, ContainerState, Dns, Event, ExecStreams, Mount, Namespaces, NetworkMode, PidMode,
    Profile, Resources, SandboxFilter, SandboxState, Security,
};

#[tokio::test]
async fn a_pod_runs_writes_its_log_and_exits() {
    let Some(node) = node().await else { return };
    let client = node.daemon.client().clone();
    for condition in client.conditions().await.unwrap() {
        assert!(condition.status, "{condition:?}");
    }
    let settings = client.settings().await.unwrap();
    assert_eq!((settings.sandbox_image.as_deref(), settings.cni_error), (Some(sampan_oci::PAUSE_IMAGE), None));
    assert_eq!(settings.cni_conf_dir, Some(node.daemon.cni_conf_dir()));
    sampan_oci::cni::load(&node.daemon.cni_conf_dir(), &settings.cni_plugins[0]).unwrap();
    let handlers: Vec<_> = settings.handlers.keys().map(String::as_str).collect();
    assert!(node.daemon.runtime_handlers().iter().all(|handler| handlers.contains(handler)), "{handlers:?}");
    assert_eq!(settings.default_handler, node.daemon.runtime_handlers()[0]);
    let mut config = sandbox(&node, "first");
    config.labels = [("app".to_owned(), "first".to_owned())].into();
    let pod = Pod::run(&node, config).await;
    let status = client.sandbox_status(&pod.id).await.unwrap();
    assert_eq!(status.sandbox.state, SandboxState::Ready);
    assert_eq!((status.sandbox.uid.as_str(), status.sandbox.namespace.as_str()), ("uid-first", "default"));
    assert_eq!(status.ips.len(), 1);
    assert!(ipnet::IpNet::V4(node.range).contains(&status.ips[0]), "{:?}", status.ips);
    let netns = status.netns.unwrap();
    assert!(netns.exists() && status.pid.is_some());

    let mut events = events(&client).await;
    let mut container = shell("main", "echo out $WHO; echo err >&2; printf unfinished; exit $CODE");
    container.envs = vec![("WHO".into(), "me".into()), ("CODE".into(), "7".into())];
    let before = std::time::SystemTime::now();
    let id = pod.start(&container).await;
    assert_eq!(exit(&mut events, &id).await, 7);
    let status = until("exited", || async {
        let status = client.container_status(&id).await.unwrap();
        (status.state == ContainerState::Exited).then_some(status)
    })
    .await;
    assert_eq!((status.exit_code, status.reason.as_str()), (7, "Error"));
    assert!(status.started_at.unwrap() >= before && status.finished_at.unwrap() >= before);
    let log = std::fs::read_to_string(&status.log_path).unwrap();
    for (stream, tag, text) in [("stdout", "F", "out me"), ("stderr", "F", "err"), ("stdout", "P", "unfinished")] {
        let line = log.lines().find(|line| line.ends_with(&format!(" {stream} {tag} {text}")));
        let time = line.unwrap_or_else(|| panic!("{text} in {log}")).split(' ').next().unwrap();
        assert!(time.parse::<prost_types::Timestamp>().is_ok(), "{time}");
    }

    let mut second = shell("main", "true");
    second.attempt = 1;
    let id = pod.start(&second).await;
    assert_eq!(exit(&mut events, &id).await, 0);
    until("completed", || async { (client.container_status(&id).await.unwrap().reason == "Completed").then_some(()) })
        .await;
    let filter = ContainerFilter { sandbox_id: pod.id.clone(), ..Default::default() };
    let mut attempts: Vec<_> =
        client.list_containers(&filter).await.unwrap().into_iter().map(|c| (c.name, c.attempt)).collect();
    attempts.sort();
    assert_eq!(attempts, [("main".to_owned(), 0), ("main".to_owned(), 1)]);

    let other = SandboxFilter { labels: [("app".to_owned(), "other".to_owned())].into(), ..Default::default() };
    assert_eq!(client.list_sandboxes(&other).await.unwrap(), []);
    for _ in 0..2 {
        client.stop_sandbox(&pod.id).await.unwrap();
        client.remove_container(&id).await.unwrap();
    }
    assert!(!netns.exists());
    for _ in 0..2 {
        client.remove_sandbox(&pod.id).await.unwrap();
    }
    assert!(client.sandbox_status(&pod.id).await.unwrap_err().is_not_found());
    cgroup::remove(&pod.config.cgroup_parent).await.unwrap();
}

#[tokio::test]
async fn too_much_memory_is_oom_killed() {
    let Some(node) = node().await else { return };
    let client = node.daemon.client().clone();
    let pod = Pod::run(&node, sandbox(&node, "oom")).await;
    let mut events = events(&client).await;
    // tail keeps all of a line that does not end. containerd listens for an OOM once the start is done.
    let mut container = shell("hungry", "until [ -e /tmp/go ]; do sleep 0.01; done; exec tail -c 200000000 /dev/zero");
    container.resources = Resources { memory_limit: 16 << 20, memory_swap_limit: 16 << 20, ..Default::default() };
    let id = pod.start(&container).await;
    assert_eq!(client.exec_sync(&id, &["touch".into(), "/tmp/go".into()], None).await.unwrap().exit_code, 0);
    let (mut oom, mut code) = (false, None);
    while !oom || code.is_none() {
        match next(&mut events).await {
            Event::Oom { id: of } => oom |= of == id,
            Event::Exit { id: of, exec_id: None, exit_code, .. } if of == id => code = Some(exit_code),
            _ => {}
        }
    }
    assert_eq!(code, Some(137));
    until("OOMKilled", || async { (client.container_status(&id).await.unwrap().reason == "OOMKilled").then_some(()) })
        .await;
}

fn control_file(pid: i32, controller: &str, v1: &str, v2: &str) -> String {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let find = |wanted: &str| {
        groups
            .lines()
            .find_map(|l| l.split_once(':')?.1.split_once(':').filter(|(c, _)| c.split(',').any(|c| c == wanted)))
    };
    let file = match find(controller) {
        Some((names, path)) => format!("/sys/fs/cgroup/{names}{path}/{v1}"),
        None => format!("/sys/fs/cgroup{}/{v2}", find("").unwrap().1),
    };
    std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{file}: {e}")).trim().to_owned()
}

#[tokio::test]
async fn limits_are_in_the_control_group_and_can_change() {
    let Some(node) = node().await else { return };
    let client = node.daemon.client();
    let pod = Pod::run(&node, sandbox(&node, "limits")).await;
    let mut container = shell("main", "sleep 1000");
    container.resources = Resources {
        cpu_period: 100_000,
        cpu_quota: 25_000,
        cpu_shares: 256,
        memory_limit: 32 << 20,
        oom_score_adj: 900,
        ..Default::default()
    };
    let id = pod.start(&container).await;
    let pid = client.container_status(&id).await.unwrap().pid.unwrap();
    assert!(std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap().contains(&pod.config.cgroup_parent));
    let quota = control_file(pid, "cpu", "cpu.cfs_quota_us", "cpu.max");
    assert!(["25000", "25000 100000"].contains(&quota.as_str()), "{quota}");
    assert_eq!(control_file(pid, "memory", "memory.limit_in_bytes", "memory.max"), (32 << 20).to_string());
    assert_eq!(std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim(), "900");
    let more = Resources { cpu_quota: 50_000, memory_limit: 64 << 20, ..container.resources };
    client.update_resources(&id, &more).await.unwrap();
    let quota = control_file(pid, "cpu", "cpu.cfs_quota_us", "cpu.max");
    assert!(["50000", "50000 100000"].contains(&quota.as_str()), "{quota}");
    let stats = until("stats", || async {
        let stats = client.container_stats(&id).await.unwrap();
        stats.memory_working_set.is_some_and(|bytes| bytes > 0).then_some(stats)
    })
    .await;
    assert_eq!((stats.id.as_str(), stats.name.as_str()), (id.as_str(), "main"));
    assert!(stats.cpu_nanoseconds.is_some());
    assert_eq!(client.list_stats(Some(&pod.id)).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_pods_own_limits_hold_what_forks_without_end() {
    let Some(node) = node().await else { return };
    let config = sandbox(&node, "forks");
    let limits = Limits { cpu_shares: Some(512), cpu_quota: Some(150_000), memory: Some(64 << 20), pids: Some(64) };
    let missing = cgroup::set(&config.cgroup_parent, &limits).unwrap();
    if !missing.is_empty() {
        return eprintln!("skipped: this machine has no control groups for {missing:?}");
    }
    let pod = Pod::run(&node, config).await;
    let mut events = events(&pod.client).await;
    let id = pod.start(&shell("main", "while :; do sleep 1000 & done")).await;
    // The shell ends with 2 when it cannot fork; its children end with it.
    assert_eq!(exit(&mut events, &id).await, 2);
    assert!(pod.log(&shell("main", "")).contains("fork"));
    // Without a limit of its own.
    let id = pod.start(&shell("hungry", "exec tail -c 400000000 /dev/zero")).await;
    assert_eq!(exit(&mut events, &id).await, 137);
}

#[tokio::test]
async fn programs_run_in_containers() {
    let Some(node) = node().await else { return };
    let client = node.daemon.client();
    let pod = Pod::run(&node, sandbox(&node, "exec")).await;
    let id = pod.start(&shell("main", "trap 'exit 0' TERM; while :; do sleep 0.1; done")).await;
    let exec = |script: &str, limit| {
        let (id, command) = (id.clone(), ["sh", "-c", script].map(String::from));
        async move { client.exec_sync(&id, &command, limit).await }
    };
    let output = exec("echo out; echo err >&2; exit 3", None).await.unwrap();
    assert_eq!(
        (output.stdout.as_slice(), output.stderr.as_slice(), output.exit_code),
        (&b"out\n"[..], &b"err\n"[..], 3)
    );
    let begin = Instant::now();
    let late = exec("sleep 100", Some(Duration::from_secs(1))).await.unwrap_err();
    assert!(late.is_unavailable() && begin.elapsed() < Duration::from_secs(30), "{late}");
    let missing = client.exec_sync(&id, &["nothing".into()], None).await.unwrap_err().to_string();
    assert!(missing.contains("nothing"), "{missing}");

    let streams = ExecStreams { stdout: true, ..Default::default() };
    for url in [
        client.exec_url(&id, &["ls".into()], streams).await.unwrap(),
        client.attach_url(&id, streams).await.unwrap(),
        client.port_forward_url(&pod.id, &[80]).await.unwrap(),
    ] {
        let address = url.strip_prefix("http://").unwrap().split('/').next().unwrap();
        let address: std::net::SocketAddr = address.parse().unwrap();
        assert!(address.ip().is_loopback());
        drop(std::net::TcpStream::connect(address).unwrap());
    }
    client.stop_container(&id, Duration::from_secs(30)).await.unwrap();
    let ended = exec("true", None).await.unwrap_err().to_string();
    assert!(ended.contains("not running") || ended.contains("EXITED"), "{ended}");
}

/// Talks over a WebSocket as kubectl does: the first byte of a message names the stream.
fn talk(url: &str, input: &[u8]) -> String {
    let (address, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(common::LIMIT)).unwrap();
    let head = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: v4.channel.k8s.io";
    write!(stream, "GET /{path} HTTP/1.1\r\nHost: {address}\r\nOrigin: http://{address}\r\n{head}\r\n\r\n").unwrap();
    // Of one whole message, masked with zeros.
    let mut frame = vec![0x82, 0x80 | u8::try_from(input.len() + 1).unwrap(), 0, 0, 0, 0, 0];
    frame.extend_from_slice(input);
    stream.write_all(&frame).unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    String::from_utf8_lossy(&all).into_owned()
}

#[tokio::test]
async fn terminals_are_reached_by_url() {
    let Some(node) = node().await else { return };
    let client = node.daemon.client();
    let pod = Pod::run(&node, sandbox(&node, "tty")).await;
    let mut container = shell("main", "tty; read line; echo got $line; exec sleep 1000");
    (container.tty, container.stdin) = (true, true);
    let id = pod.start(&container).await;
    let all = ExecStreams { tty: true, stdin: true, stdout: true, stderr: false };
    let url = client.exec_url(&id, &["sh".into()], all).await.unwrap();
    let heard = tokio::task::spawn_blocking(move || talk(&url, b"tty; exit $((4+3))\n")).await.unwrap();
    assert!(heard.starts_with("HTTP/1.1 101") && heard.contains("/dev/pts/"), "{heard}");
    assert!(heard.contains(r#"{"reason":"ExitCode","message":"7"}"#), "{heard}");
    // What is typed reaches the container's own process.
    let url = client.attach_url(&id, all).await.unwrap();
    let typing = tokio::task::spawn_blocking(move || talk(&url, b"hello\n"));
    until("got hello", || async { pod.log(&container).contains("got hello").then_some(()) }).await;
    assert!(pod.log(&container).contains("/dev/pts/0"));
    client.stop_container(&id, Duration::ZERO).await.unwrap();
    typing.await.unwrap();
}

#[tokio::test]
async fn who_ignores_sigterm_is_killed_after_the_grace() {
    let Some(node) = node().await else { return };
    let client = node.daemon.client();
    let pod = Pod::run(&node, sandbox(&node, "deaf")).await;
    let container = shell("main", "trap '' TERM; echo deaf; while :; do sleep 0.1; done");
    let id = pod.start(&container).await;
    until("deaf", || async { (pod.log(&container) == "deaf\n").then_some(()) }).await;
    let begin = Instant::now();
    client.stop_container(&id, Duration::from_secs(1)).await.unwrap();
    let took = begin.elapsed();
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(20), "{took:?}");
    let status = client.container_status(&id).await.unwrap();
    assert_eq!((status.state, status.exit_code), (ContainerState::Exited, 137));

    // Told by the shell itself: until it is there, runc's own process catches the signal and dies of it.
    let container = shell("polite", "trap 'exit 5' TERM; echo polite; while :; do sleep 0.1; done");
    let polite = pod.start(&container).await;
    until("polite", || async { (pod.log(&container) == "polite\n").then_some(()) }).await;
    client.stop_container(&polite, Duration::from_secs(60)).await.unwrap();
    assert_eq!(client.container_status(&polite).await.unwrap().exit_code, 5);
}

#[tokio::test]
async fn every_handler_runs_pods() {
    let Some(node) = node().await else { return };
    for handler in node.daemon.runtime_handlers().to_vec() {
        let mut config = sandbox(&node, handler);
        config.runtime_handler = handler.into();
        let pod = Pod::run(&node, config).await;
        let mut container = shell("main", "echo from $(hostname); exit 4");
        container.resources =
            Resources { memory_limit: 64 << 20, cpu_quota: 50_000, cpu_period: 100_000, ..Default::default() };
        let mut events = events(&pod.client).await;
        let id = pod.start(&container).await;
        assert_eq!(exit(&mut events, &id).await, 4, "{handler}");
        assert_eq!(pod.log(&container), format!("from {handler}\n"));
        let long = pod.start(&shell("long", "sleep 1000")).await;
        let output = pod.client.exec_sync(&long, &["true".into()], None).await.unwrap();
        assert_eq!(output.exit_code, 0, "{handler}: {output:?}");
        let status = pod.client.sandbox_status(&pod.id).await.unwrap();
        assert_eq!(status.sandbox.runtime_handler, handler);
        pod.client.stop_sandbox(&pod.id).await.unwrap();
        pod.client.remove_sandbox(&pod.id).await.unwrap();
        cgroup::remove(&pod.config.cgroup_parent).await.unwrap();
    }
    let mut config = sandbox(&node, "other");
    config.runtime_handler = "other".into();
    let error = node.daemon.client().run_sandbox(&config).await.unwrap_err().to_string();
    assert!(error.contains("other"), "{error}");
}

#[tokio::test]
async fn users_files_and_capabilities_are_as_asked() {
    let Some(node) = node().await else { return };
    let volume = node.base().join("volume");
    std::fs::create_dir(&volume).unwrap();
    std::fs::write(volume.join("file"), "content").unwrap();
    let mut config = sandbox(&node, "secure");
    config.dns =
        Some(Dns { servers: vec!["10.1.2.3".into()], searches: vec!["a.b".into()], options: vec!["ndots:5".into()] });
    config.sysctls = [("net.ipv4.ip_unprivileged_port_start".to_owned(), "7".to_owned())].into();
    let pod = Pod::run(&node, config).await;
    let mut container = shell(
        "main",
        "id -u; id -g; id -G; grep -E 'CapEff|NoNewPrivs|^Seccomp:' /proc/self/status; cat /v/file; echo;
         touch /v/x /x 2>&1; cat /etc/resolv.conf /proc/sys/net/ipv4/ip_unprivileged_port_start; pwd; ls -l /dev/own | cut -c1",
    );
    container.working_dir = "/tmp".into();
    container.mounts = vec![Mount {
        container_path: "/v".into(),
        host_path: volume.to_str().unwrap().into(),
        readonly: true,
        ..Default::default()
    }];
    container.devices = vec![sampan_oci::Device {
        container_path: "/dev/own".into(),
        host_path: "/dev/null".into(),
        permissions: "rw".into(),
    }];
    container.security = Security {
        run_as_user: Some(1000),
        run_as_group: Some(3000),
        supplemental_groups: vec![4000],
        readonly_rootfs: true,
        no_new_privs: true,
        capabilities: Capabilities { add: Vec::new(), drop: vec!["ALL".into()] },
        seccomp: Some(Profile::RuntimeDefault),
        ..Security::default()
    };
    let text = pod.output(&container).await;
    for expected in [
        "1000\n3000\n3000 2000 4000\n",
        "CapEff:\t0000000000000000\n",
        "NoNewPrivs:\t1\n",
        "Seccomp:\t2\n",
        "content\n",
        "touch: /v/x: Read-only file system\ntouch: /x: Read-only file system\n",
        "search a.b\nnameserver 10.1.2.3\noptions ndots:5\n",
        "\n7\n",
        "/tmp\nc\n",
    ] {
        assert!(text.contains(expected), "{expected:?} in {text}");
    }
    let mut privileged = sandbox(&node, "privileged");
    privileged.security.privileged = true;
    let pod = Pod::run(&node, privileged).await;
    let mut container =
        shell("main", "grep CapEff /proc/self/status; touch /proc/sys/kernel/domainname && echo writable");
    container.security.privileged = true;
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let all = own.lines().find(|line| line.starts_with("CapBnd")).unwrap().split('\t').nth(1).unwrap();
    assert_eq!(pod.output(&container).await, format!("CapEff:\t{all}\nwritable\n"));
}

#[tokio::test]
async fn a_shared_pid_namespace_has_a_parent_that_reaps() {
    let Some(node) = node().await else { return };
    let mut config = sandbox(&node, "shared");
    config.namespaces.pid = PidMode::Pod;
    let pod = Pod::run(&node, config).await;
    // The inner shell ends before its child, which is then process 1's.
    let mut container = shell(
        "main",
        "cat /proc/1/comm; sh -c 'sleep 0.1 & echo $! > /tmp/pid'; while [ -e /proc/$(cat /tmp/pid) ]; do sleep 0.05; done; echo reaped",
    );
    container.namespaces.pid = PidMode::Pod;
    assert_eq!(pod.output(&container).await, "pause\nreaped\n");
    // An ephemeral container sees the processes of its target.
    let own = Pod::run(&node, sandbox(&node, "own")).await;
    let target = own.start(&shell("target", "exec sleep 1234")).await;
    let mut debug = shell("debug", "tr '\\0' ' ' < /proc/1/cmdline; echo");
    debug.namespaces.pid = PidMode::Target(target);
    assert_eq!(own.output(&debug).await, "sleep 1234 \n");
}

#[tokio::test]
async fn the_machines_network_is_one_of_the_choices() {
    let Some(node) = node().await else { return };
    let mut config = sandbox(&node, "");
    config.name = "host".into();
    config.hostname = String::new();
    let namespaces = Namespaces { network: NetworkMode::Node, ..Default::default() };
    config.namespaces = namespaces.clone();
    let pod = Pod::run(&node, config).await;
    let status = pod.client.sandbox_status(&pod.id).await.unwrap();
    assert_eq!((status.ips.len(), status.netns), (0, None));
    let mut container = shell("main", "readlink /proc/self/ns/net");
    container.namespaces = namespaces;
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    assert_eq!(pod.output(&container).await.trim(), own.to_str().unwrap());
}

#[tokio::test]
async fn what_cannot_start_says_why() {
    let Some(node) = node().await else { return };
    let client = node.daemon.client();
    let pod = Pod::run(&node, sandbox(&node, "broken")).await;
    let mut container = shell("main", "");
    container.command = vec!["/no/such/program".into()];
    let id = client.create_container(&pod.id, &container, &pod.config).await.unwrap();
    let error = client.start_container(&id).await.unwrap_err().to_string();
    assert!(error.contains("/no/such/program"), "{error}");
    let status = client.container_status(&id).await.unwrap();
    assert_eq!((status.state, status.reason.as_str()), (ContainerState::Exited, "StartError"));
    assert!(status.message.contains("/no/such/program") && status.exit_code == 128, "{status:?}");
    container.name = "lost".into();
    container.image = "localhost/test/nothing:1".into();
    assert!(client.create_container(&pod.id, &container, &pod.config).await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn a_log_goes_on_in_a_new_file() {
    let Some(node) = node().await else { return };
    let pod = Pod::run(&node, sandbox(&node, "rotate")).await;
    let container = shell("main", "for n in $(seq 200); do echo line $n; sleep 0.01; done");
    let mut events = events(&pod.client).await;
    let id = pod.start(&container).await;
    let file = std::path::Path::new(&pod.config.log_directory).join(&container.log_path);
    let old = file.with_extension("log.1");
    until("a line", || async { std::fs::metadata(&file).is_ok_and(|m| m.len() > 0).then_some(()) }).await;
    std::fs::rename(&file, &old).unwrap();
    pod.client.reopen_log(&id).await.unwrap();
    exit(&mut events, &id).await;
    let lines = |file| std::fs::read_to_string(file).unwrap();
    let (first, rest) = (lines(&old), lines(&file));
    assert!(!first.is_empty() && !rest.is_empty());
    let all: Vec<_> = first.lines().chain(rest.lines()).map(|l| l.rsplit(' ').next().unwrap()).collect();
    assert_eq!(all, (1..=200).map(|n| n.to_string()).collect::<Vec<_>>());
}
