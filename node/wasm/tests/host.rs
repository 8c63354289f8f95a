//! Whole host processes with real guests. The test's own executable is also the host and the
//! compiler, as the `sampan` binary is.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use sampan_wasm::launch::{self, Adoption, PortShift};
use sampan_wasm::proto::{ContainerSpec, Mount, State, Variable};
use support::{Fixture, get, request, run_tests, test};

fn main() -> std::process::ExitCode {
    run_tests(&[
        test("exit_codes_and_reasons", exit_codes_and_reasons),
        test("logs_in_the_runtime_interfaces_format", logs_in_the_runtime_interfaces_format),
        test("memory_limit_ends_as_oom_killed", memory_limit_ends_as_oom_killed),
        test("cpu_quota_holds", cpu_quota_holds),
        test("a_spinning_guest_is_killed_and_starves_nobody", a_spinning_guest_is_killed_and_starves_nobody),
        test("mounts_are_the_pods_own", mounts_are_the_pods_own),
        test("requests_get_fresh_instances", requests_get_fresh_instances),
        test("a_proxy_drains", a_proxy_drains),
        test("what_cannot_run_says_why", what_cannot_run_says_why),
        test("sockets_are_the_pods_own", sockets_are_the_pods_own),
        test("hosts_are_adopted_or_replaced", hosts_are_adopted_or_replaced),
        test("watch_tells_every_end", watch_tells_every_end),
        test("low_ports_are_shifted", low_ports_are_shifted),
        test("another_user_is_confined", another_user_is_confined),
        test("a_network_namespace_is_entered", a_network_namespace_is_entered),
        test("many_idle_proxies_cost_a_listener_each", many_idle_proxies_cost_a_listener_each),
    ])
}

async fn exit_codes_and_reasons() {
    let f = Fixture::start().await;
    for (arguments, code, reason, message) in [
        (&["say", "hi"][..], 0, "Completed", ""),
        (&["exit", "3"], 3, "Error", ""),
        (&["panic"], 134, "Error", "unreachable"),
    ] {
        for guest in ["command", "core"] {
            // WASI 0.2 has no exit codes but one.
            let code = if guest == "command" && code == 3 { 1 } else { code };
            let started = f.run(guest, arguments, |_| {}).await;
            let ended = f.wait(&started.id).await;
            assert_eq!((ended.exit_code, ended.reason.as_str()), (code, reason), "{guest} {arguments:?}");
            assert!(ended.message.contains(message), "{ended:?}");
            let record = std::fs::read_to_string(f.tenant().join(format!("pods/c/{}.exit", ended.id))).unwrap();
            assert!(record.contains(&format!("\"exitCode\":{code}")), "{record}");
            // The same id again answers as it did, and starts nothing.
            assert_eq!(f.start_spec(f.spec(&ended.id, guest, arguments).await).await, ended);
            f.remove(&ended.id).await;
            assert!(f.list().await.is_empty());
        }
    }
}

async fn logs_in_the_runtime_interfaces_format() {
    let f = Fixture::start().await;
    let started = f.run("core", &["say", "one", "two"], |_| {}).await;
    f.wait(&started.id).await;
    let log = f.log(&started.id);
    let fields: Vec<_> = log.trim_end().splitn(4, ' ').collect();
    assert_eq!(&fields[1..], ["stdout", "F", "one two"], "{log}");
    let started = f.run("command", &["panic"], |_| {}).await;
    f.wait(&started.id).await;
    let log = f.log(&started.id);
    assert!(log.contains(" stderr F ") && log.contains("as asked"), "{log}");
}

async fn memory_limit_ends_as_oom_killed() {
    let f = Fixture::start().await;
    for guest in ["command", "core"] {
        let started = f.run(guest, &["eat"], |spec| spec.memory_bytes = 16 << 20).await;
        let ended = f.wait(&started.id).await;
        assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "OOMKilled"), "{ended:?}");
    }
    let proxy = f.run("proxy", &[], |spec| spec.memory_bytes = 16 << 20).await;
    assert_eq!(get(&f, &proxy, "/eat?4").await, (200, "4".into()));
    assert_eq!(get(&f, &proxy, "/eat?40").await.0, 500);
    assert_eq!(f.wait(&proxy.id).await.reason, "OOMKilled");
}

async fn cpu_quota_holds() {
    let f = Fixture::start().await;
    let started = f.run("core", &["spin"], |spec| spec.cpu_millicores = 200).await;
    let usage = || async { f.cpu(&started.id).await };
    // Counted on the host's own clock of used time, so that a busy machine only makes it less.
    let (begin, before) = (Instant::now(), usage().await);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let used = usage().await - before;
    let share = used as f64 / begin.elapsed().as_nanos() as f64;
    assert!(share < 0.30, "used {share:.3} of a core with a limit of 0.2");
    assert!(share > 0.02, "used {share:.3} of a core: does it run at all?");
    let ended = f.stop(&started.id, 30).await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (143, "Error"));
    let started = f.run("core", &["spin"], |_| {}).await;
    assert_eq!(f.stop(&started.id, 0).await.exit_code, 137);
}

async fn a_spinning_guest_is_killed_and_starves_nobody() {
    let f = Fixture::start().await;
    let mut spinners = Vec::new();
    for _ in 0..6 {
        spinners.push(f.run("core", &["spin"], |_| {}).await);
    }
    let proxy = f.run("proxy", &[], |_| {}).await;
    let begin = Instant::now();
    for _ in 0..5 {
        assert_eq!(get(&f, &proxy, "/here").await.0, 200);
    }
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    // One that spins in a request is ended with its container.
    let stuck = tokio::spawn({
        let address = f.address(&proxy);
        async move { request(address, "GET", "/spin", b"").await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(f.stop(&proxy.id, 0).await.exit_code, 137);
    stuck.abort();
    for spinner in spinners {
        let begin = Instant::now();
        f.stop(&spinner.id, 30).await;
        assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
    }
}

async fn mounts_are_the_pods_own() {
    let f = Fixture::start().await;
    let volume = f.tenant().join("pods/mine/volumes/data");
    let other = f.tenant().join("pods/other/volumes/secret");
    for dir in [&volume, &other] {
        std::fs::create_dir_all(dir).unwrap();
    }
    std::fs::write(other.join("key"), "secret").unwrap();
    std::os::unix::fs::symlink("../../other/volumes/secret", volume.join("link")).unwrap();
    let mount = |source: &str, read_only| {
        let source = source.to_owned();
        move |spec: &mut ContainerSpec| {
            spec.pod_uid = "mine".into();
            spec.mounts = vec![Mount { source, target: "/data".into(), read_only }];
        }
    };
    for guest in ["command", "core"] {
        let code = async |arguments: &[&str], source: &str, read_only| {
            let started = f.run(guest, arguments, mount(source, read_only)).await;
            let ended = f.wait(&started.id).await;
            (ended.exit_code, f.log(&started.id) + &ended.message)
        };
        let data = "pods/mine/volumes/data";
        assert_eq!(code(&["write", "/data/a", "text"], data, false).await.0, 0);
        assert_eq!(std::fs::read_to_string(volume.join("a")).unwrap(), "text");
        let (exit, log) = code(&["read", "/data/a"], data, true).await;
        assert!(exit == 0 && log.contains("text"), "{log}");
        assert_ne!(code(&["write", "/data/b", "text"], data, true).await.0, 0);
        assert!(!volume.join("b").exists());
        for path in ["/data/../secret/key", "/data/link/key", "/etc/passwd", "/proc/self/maps"] {
            let (exit, log) = code(&["read", path], data, false).await;
            assert!(exit != 0 && !log.contains("secret\n"), "{path}: {log}");
        }
        let (exit, message) = code(&["read", "/data/key"], "pods/mine/volumes/data/link", false).await;
        assert_eq!(exit, 128, "{message}");
    }
}

async fn requests_get_fresh_instances() {
    let f = Fixture::start().await;
    let volume = f.tenant().join("pods/mine/volumes/data");
    std::fs::create_dir_all(&volume).unwrap();
    std::fs::write(volume.join("greeting"), "from a volume").unwrap();
    let proxy = f
        .run("proxy", &[], |spec| {
            spec.pod_uid = "mine".into();
            spec.env = vec![Variable { name: "COLOR".into(), value: "teal".into() }];
            let source = "pods/mine/volumes/data".into();
            spec.mounts = vec![Mount { source, target: "/data".into(), read_only: true }];
        })
        .await;
    assert_eq!(get(&f, &proxy, "/a/b?c").await, (200, "/a/b?c".into()));
    assert_eq!(get(&f, &proxy, "/env?COLOR").await, (200, "teal".into()));
    assert_eq!(get(&f, &proxy, "/read?/data/greeting").await, (200, "from a volume".into()));
    let body = vec![b'x'; 1 << 20];
    let (status, back) = request(f.address(&proxy), "POST", "/echo", &body).await.unwrap();
    assert_eq!((status, back.len()), (200, body.len()));
    // A trap is one request's end.
    assert_eq!(get(&f, &proxy, "/trap").await.0, 500);
    assert_eq!(get(&f, &proxy, "/again").await.0, 200);
    let log = f.log(&proxy.id);
    assert!(log.contains("stdout F env COLOR") && log.contains("unreachable"), "{log}");
    // Another pod's proxy, by address and through the pod's own loopback.
    let other = f.run("proxy", &[], |_| {}).await;
    let target = f.address(&other);
    assert_eq!(get(&f, &proxy, &format!("/fetch?{target}/hi")).await, (200, "/hi".into()));
    let own = f.address(&proxy).port();
    assert_eq!(get(&f, &proxy, &format!("/fetch?localhost:{own}/me")).await, (200, "/me".into()));
    let (status, text) = get(&f, &proxy, "/fetch?169.254.169.254/latest").await;
    assert!(status == 502 && text.contains("DestinationIpProhibited"), "{text}");
    let (_, text) = get(&f, &proxy, "/fetch?nobody.invalid/").await;
    assert!(text.contains("Dns"), "{text}");
}

async fn a_proxy_drains() {
    let f = Fixture::start().await;
    let proxy = f.run("proxy", &[], |_| {}).await;
    let address = f.address(&proxy);
    let slow = tokio::spawn(request(address, "GET", "/sleep?400", b""));
    f.log_until(&proxy.id, "sleeping").await;
    let ended = f.stop(&proxy.id, 20).await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (0, "Completed"));
    assert_eq!(slow.await.unwrap().unwrap(), (200, "slept".into()));
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
    // The grace is not more than that.
    let proxy = f.run("proxy", &[], |_| {}).await;
    let slow = tokio::spawn(request(f.address(&proxy), "GET", "/sleep?60000", b""));
    f.log_until(&proxy.id, "sleeping").await;
    let ended = f.stop(&proxy.id, 1).await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "Error"));
    slow.abort();
}

async fn what_cannot_run_says_why() {
    let f = Fixture::start().await;
    let proxy = f.run("proxy", &[], |_| {}).await;
    let taken = f.address(&proxy);
    let second = f
        .run("proxy", &[], |spec| {
            spec.addresses = vec![taken.ip().to_string()];
            spec.http_port = taken.port().into();
        })
        .await;
    assert_eq!((second.state(), second.reason.as_str()), (State::Exited, "ContainerCannotRun"));
    assert!(second.message.contains(&taken.to_string()), "{}", second.message);
    let absent = f.run("core", &[], |spec| spec.module = "absent.cwasm".into()).await;
    assert!(absent.message.contains("absent.cwasm"), "{}", absent.message);
    let mut spec = f.spec("x", "core", &[]).await;
    spec.log_path = "../x.log".into();
    let refused = f.host.client().start(spec).await.unwrap_err();
    assert!(refused.message().contains("log_path"), "{refused:?}");
    assert_eq!(f.wasm_error(b"#!/bin/sh\n").await, "not a WebAssembly module or component: this is a script");
    let bad_body = wat::parse_str("(module (func (export \"_start\") unreachable))").unwrap();
    // A function body of nonsense passes the structure's check and not the compiler's.
    let mut broken = bad_body.clone();
    let last = broken.len() - 2;
    broken[last] = 0x6a;
    let error = f.wasm_error(&broken).await;
    assert!(error.starts_with("does not compile:"), "{error}");
    let typed =
        wat::parse_str("(module (import \"wasi_snapshot_preview1\" \"proc_exit\" (func)) (func (export \"_start\")))");
    let error = f.wasm_error(&typed.unwrap()).await;
    assert!(error.contains("proc_exit"), "{error}");
}

async fn sockets_are_the_pods_own() {
    let f = Fixture::start().await;
    let server = f.run("command", &["echo", "0.0.0.0:7000"], |_| {}).await;
    f.log_until(&server.id, "listening on").await;
    let address = f.pod(&server.id);
    // Another pod has the same port.
    let second = f.run("command", &["echo", "0.0.0.0:7000"], |_| {}).await;
    f.log_until(&second.id, "listening on").await;
    let client = f.run("command", &["send", &format!("{address}:7000"), "ping"], |_| {}).await;
    assert_eq!(f.wait(&client.id).await.exit_code, 0, "{}", f.log(&client.id));
    assert!(f.log(&client.id).contains("got ping"));
    // Seen with the client's own address on both sides.
    let own = f.pod(&client.id);
    assert!(f.log(&client.id).contains(&format!("{own} to {address}:7000")), "{}", f.log(&client.id));
    f.log_until(&server.id, &format!("from {own}")).await;
    // 127.0.0.1 is the pod's own: another container of it is there, another pod is not.
    let beside = f
        .run("command", &["send", "127.0.0.1:7000", "side"], |spec| {
            spec.addresses = vec![address.to_string()];
        })
        .await;
    assert_eq!(f.wait(&beside.id).await.exit_code, 0, "{}", f.log(&beside.id));
    let stranger = f.run("command", &["send", "127.0.0.1:7000", "no"], |_| {}).await;
    assert_ne!(f.wait(&stranger.id).await.exit_code, 0);
    let udp = f.run("command", &["udp", "self", "datagram"], |_| {}).await;
    assert_eq!(f.wait(&udp.id).await.exit_code, 0, "{}", f.log(&udp.id));
    assert!(f.log(&udp.id).contains(&format!("got datagram from {}", f.pod(&udp.id))));
    let named = f.run("command", &["resolve", "web-0"], |spec| spec.hostname = "web-0".into()).await;
    f.wait(&named.id).await;
    assert!(f.log(&named.id).contains(&f.pod(&named.id).to_string()), "{}", f.log(&named.id));
}

async fn hosts_are_adopted_or_replaced() {
    let f = Fixture::start().await;
    let proxy = f.run("proxy", &[], |_| {}).await;
    let Adoption::Adopted(again) = launch::adopt(&f.tenant()).await else { panic!("not adopted") };
    assert_eq!(again.identity, f.host.identity);
    assert_eq!(launch::ensure(&f.config).await.unwrap().identity, f.host.identity);
    assert_eq!(get(&f, &proxy, "/still").await.0, 200);
    let (hosts, refused) = launch::adopt_all(f.tenant().parent().unwrap()).await;
    assert_eq!((hosts.len(), refused.len()), (1, 0));
    // A record of another time is nobody's: the process that has the pid now is left alone.
    let path = f.tenant().join("host.json");
    let record = std::fs::read_to_string(&path).unwrap();
    let other = record.replace(&format!("\"startTime\":{}", f.host.identity.start_time), "\"startTime\":1");
    std::fs::write(&path, other).unwrap();
    assert!(matches!(launch::adopt(&f.tenant()).await, Adoption::None));
    assert!(f.host.is_alive());
    // Another protocol is refused, and such a host replaced.
    std::fs::write(
        &path,
        record.replace(&format!("\"protocol\":{}", sampan_wasm::proto::PROTOCOL), "\"protocol\":999"),
    )
    .unwrap();
    let Adoption::Refused { reason, .. } = launch::adopt(&f.tenant()).await else { panic!() };
    assert!(reason.contains("999"), "{reason}");
    let fresh = launch::ensure(&f.config).await.unwrap();
    assert_ne!(fresh.identity, f.host.identity);
    assert!(!f.host.is_alive());
    fresh.stop(Duration::ZERO).await.unwrap();
    assert!(!fresh.is_alive() && !path.exists());
}

async fn watch_tells_every_end() {
    use tokio_stream::StreamExt as _;
    let f = Fixture::start().await;
    let first = f.run("core", &["say", "a"], |_| {}).await;
    f.wait(&first.id).await;
    let mut watch = f.host.client().watch(sampan_wasm::proto::Empty {}).await.unwrap().into_inner();
    assert_eq!(watch.next().await.unwrap().unwrap().id, first.id);
    let second = f.run("core", &["exit", "4"], |_| {}).await;
    let ended = loop {
        let status = watch.next().await.unwrap().unwrap();
        if status.id == second.id && status.state() == State::Exited {
            break status;
        }
    };
    assert_eq!(ended.exit_code, 4);
}

async fn low_ports_are_shifted() {
    let f = Fixture::start_with(|config| {
        config.port_shift = Some(PortShift { below: 1024, by: 10000 });
    })
    .await;
    let proxy = f.run("proxy", &[], |spec| spec.http_port = 80).await;
    assert_eq!(proxy.http_port, 10080);
    let ip = f.pod(&proxy.id);
    assert_eq!(get(&f, &proxy, &format!("/fetch?{ip}:80/low")).await, (200, "/low".into()));
}

/// As root: the host becomes another user, in a directory that user cannot reach by path.
async fn another_user_is_confined() {
    if !rustix::process::geteuid().is_root() {
        println!("only root can become another user");
        return;
    }
    let group = format!("sampan-test-{}", std::process::id());
    let f = Fixture::start_with(|config| {
        config.user = Some((64_000, 64_000));
        config.cgroup = Some(format!("{group}/default"));
    })
    .await;
    let isolation = &f.host.info.isolation;
    println!("isolation: {isolation:?}");
    for wall in ["user", "seccomp", "non-dumpable"] {
        assert!(isolation.iter().any(|have| have == wall), "{wall}: {isolation:?}");
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", f.host.identity.pid)).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line[name.len() + 1..].trim().to_owned()
    };
    assert!(field("Uid").starts_with("64000\t64000"));
    assert_eq!(field("CapPrm"), "0000000000000000");
    assert_eq!(field("CapBnd"), "0000000000000000");
    assert_eq!((field("NoNewPrivs"), field("Seccomp")), ("1".into(), "2".into()));
    let proxy = f.run("proxy", &[], |_| {}).await;
    assert_eq!(get(&f, &proxy, "/up").await.0, 200);
    // Only what is below its pods is its to change.
    for (name, mode) in [("", 0o040_710), ("host.sock", 0o140_700), ("host.json", 0o100_600), ("pods", 0o040_755)] {
        use std::os::unix::fs::MetadataExt as _;
        let meta = std::fs::symlink_metadata(f.tenant().join(name)).unwrap();
        assert_eq!((meta.uid(), format!("{:o}", meta.mode())), (0, format!("{mode:o}")), "{name}");
    }
    let grouped = std::fs::read_to_string(format!("/proc/{}/cgroup", f.host.identity.pid)).unwrap();
    let has_group = isolation.iter().any(|have| have == "cgroup");
    assert_eq!(grouped.contains(&group), has_group, "{grouped}");
    f.host.stop(Duration::from_secs(1)).await.unwrap();
    let left =
        ["cpu", "memory", "."].iter().any(|dir| std::path::Path::new("/sys/fs/cgroup").join(dir).join(&group).exists());
    assert!(!left, "a control group stays");
}

/// As root: guests' ports are in the tenant's namespace, with its loopback up, and not outside.
async fn a_network_namespace_is_entered() {
    if !rustix::process::geteuid().is_root() {
        println!("only root can enter a network namespace");
        return;
    }
    let (path, held) = std::sync::mpsc::channel();
    let (release, wait) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let thread = nix::unistd::gettid();
        path.send(format!("/proc/{}/task/{thread}/ns/net", std::process::id())).unwrap();
        let _ = wait.recv();
    });
    let netns = held.recv().unwrap();
    let f = Fixture::start_with(|config| config.netns = Some(netns.clone().into())).await;
    drop(release);
    assert!(f.host.info.isolation.iter().any(|have| have == "netns"));
    let first = f.run("proxy", &[], |_| {}).await;
    // Seen from another pod in it.
    let server = f.run("command", &["echo", "0.0.0.0:7000"], |_| {}).await;
    f.log_until(&server.id, "listening on").await;
    let target = format!("{}:7000", f.pod(&server.id));
    let client = f.run("command", &["send", &target, "ping"], |_| {}).await;
    assert_eq!(f.wait(&client.id).await.exit_code, 0, "{}", f.log(&client.id));
    assert!(tokio::net::TcpStream::connect(f.address(&first)).await.is_err());
}

async fn many_idle_proxies_cost_a_listener_each() {
    if !rustix::process::geteuid().is_root() {
        println!("only root can look into a host's process");
        return;
    }
    let f = Fixture::start().await;
    let one = f.run("proxy", &[], |_| {}).await;
    assert_eq!(get(&f, &one, "/").await.0, 200);
    let count = |what: &str| std::fs::read_dir(format!("/proc/{}/{what}", f.host.identity.pid)).unwrap().count();
    let (descriptors, threads) = (count("fd"), count("task"));
    for _ in 0..100 {
        let proxy = f.run("proxy", &[], |_| {}).await;
        assert_eq!(proxy.state(), State::Running, "{proxy:?}");
    }
    assert!(count("fd") <= descriptors + 100 + 4, "{descriptors} then {}", count("fd"));
    assert!(count("task") <= threads + 4, "{threads} then {}", count("task"));
}
