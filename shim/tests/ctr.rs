//! Wasm guests as `ctr run` starts them, on a real containerd.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use support::{containerd, shim_and_hosts, text};

#[test]
fn commands_have_output_arguments_environment_and_exit_codes() {
    let Some(c) = containerd() else { return };
    for guest in ["core", "command"] {
        let image = c.guest("default", guest);
        let file = format!("/{guest}.wasm");
        let run = |arguments: &[&str]| {
            c.run(&["--rm", "--env", "COLOR=teal"], &[&[image.as_str(), "one", file.as_str()], arguments].concat())
        };
        let said = run(&["say", "two", "words"]);
        assert_eq!((said.status.code(), text(&said.stdout).as_str()), (Some(0), "two words\n"), "{said:?}");
        let env = run(&["env"]);
        assert!(text(&env.stdout).contains("COLOR=teal\n"), "{env:?}");
        // WASI 0.2 has no exit codes but one.
        let code = if guest == "core" { 3 } else { 1 };
        assert_eq!(run(&["exit", "3"]).status.code(), Some(code));
        let trapped = run(&["panic"]);
        assert_eq!(trapped.status.code(), Some(134));
        assert!(text(&trapped.stderr).contains("as asked"), "{trapped:?}");
        // The image's files are there, and the container's own to write.
        let read = run(&["read", "/etc/motd"]);
        assert!(text(&read.stdout).contains("moin"), "{read:?}");
        assert_eq!(run(&["write", "/etc/motd", "tschues"]).status.code(), Some(0));
        assert!(text(&run(&["read", "/etc/motd"]).stdout).contains("moin"));
    }
    // A module is compiled once, whatever runs it.
    let modules = std::fs::read_dir(c.path("cache/modules")).unwrap().flatten();
    let compiled = modules.filter(|entry| entry.file_name().to_string_lossy().ends_with(".cwasm")).count();
    assert_eq!(compiled, 2);
    c.assert_clean();
}

#[test]
fn a_wasi_image_without_an_operating_system_runs() {
    let Some(c) = containerd() else { return };
    let platform = ("wasi", "wasm");
    c.image(
        "default",
        "localhost/w:1",
        platform,
        &[("/app/core.wasm", &support::wasm("core"))],
        &["/app/core.wasm", "say"],
    );
    let said = c.run(&["--rm", "--platform", "wasi/wasm"], &["localhost/w:1", "one"]);
    assert_eq!((said.status.code(), text(&said.stdout).as_str()), (Some(0), "\n"), "{said:?}");
    c.assert_clean();
}

#[test]
fn a_proxy_serves_in_its_network_drains_and_goes() {
    let Some(c) = containerd() else { return };
    let image = c.guest("default", "proxy");
    let data = tempfile::tempdir().unwrap();
    std::fs::write(data.path().join("greeting"), "from a volume").unwrap();
    let mount = format!("type=bind,src={},dst=/data,options=rbind:ro", data.path().display());
    let options = ["--detach", "--env", "PORT=80", "--mount", &mount, "--memory-limit", "67108864"];
    let started = c.run(&options, &[&image, "web"]);
    assert!(started.status.success(), "{started:?}");
    let pid = c.pid("web");
    // Its own namespace, its own loopback, and the port it was told; not the machine's.
    assert_eq!(c.get(pid, "http://127.0.0.1/hello"), "/hello");
    assert_eq!(c.get(0, "http://127.0.0.1/hello"), "");
    assert_eq!(c.get(pid, "http://127.0.0.1/read?/data/greeting"), "from a volume");
    assert_eq!(c.get(pid, "http://127.0.0.1/fetch?localhost:80/me"), "/me");
    assert_eq!(c.status("web"), "RUNNING");
    let metrics = text(&c.ctr(&["task", "metrics", "web"]).stdout);
    let limited = metrics.lines().any(|line| line.contains("memory.limit_in_bytes") && line.contains("67108864"));
    assert!(limited, "{metrics}");
    let grouped = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(grouped.contains(&c.group()), "{grouped}");
    let confined = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(confined.contains("CapEff:\t0000000000000000") && confined.contains("Seccomp:\t2"), "{confined}");

    let exec = c.ctr(&["task", "exec", "--exec-id", "e", "web", "sh"]);
    assert!(!exec.status.success() && text(&exec.stderr).contains("no programs to exec"), "{exec:?}");
    let paused = c.ctr(&["task", "pause", "web"]);
    assert!(text(&paused.stderr).contains("cannot be paused"), "{paused:?}");

    // A request under way is answered although the container is asked to end meanwhile.
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| c.get(pid, "http://127.0.0.1/sleep?1500"));
        let begin = Instant::now();
        while c.get(pid, "http://127.0.0.1/busy") != "/busy" {
            assert!(begin.elapsed() < support::PATIENCE);
        }
        let asked = c.ctr(&["task", "kill", "--signal", "SIGTERM", "web"]);
        assert!(asked.status.success(), "{asked:?}");
        assert_eq!(slow.join().unwrap(), "slept");
    });
    c.until("the end", || c.status("web") == "STOPPED");
    let again = c.ctr(&["task", "kill", "web"]);
    assert!(text(&again.stderr).contains("not found"), "{again:?}");
    let deleted = c.ctr(&["task", "delete", "web"]);
    assert_eq!(deleted.status.code(), Some(0), "{deleted:?}");
    c.ctr(&["container", "delete", "web"]);
    c.assert_clean();
    assert_eq!(std::fs::read_to_string(data.path().join("greeting")).unwrap(), "from a volume");
}

#[test]
fn limits_hold() {
    let Some(c) = containerd() else { return };
    let image = c.guest("default", "core");
    let events = c.command("default", &["events"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let eaten = c.run(&["--rm", "--memory-limit", "16777216"], &[&image, "eater", "/core.wasm", "eat"]);
    assert_eq!(eaten.status.code(), Some(137), "{eaten:?}");
    let quota = ["--detach", "--cpu-quota", "20000", "--cpu-period", "100000"];
    let started = c.run(&quota, &[&image, "spinner", "/core.wasm", "spin"]);
    assert!(started.status.success(), "{started:?}");
    let used = || {
        let metrics = text(&c.ctr(&["task", "metrics", "--format", "json", "spinner"]).stdout);
        let metrics: serde_json::Value = serde_json::from_str(&metrics).unwrap_or_else(|_| panic!("{metrics}"));
        let cpu = metrics.get("cpu").or_else(|| metrics.get("CPU")).unwrap();
        // Nothing used so far is left out.
        cpu["usage"]["total"].as_f64().unwrap_or(0.0)
    };
    let (begin, before) = (Instant::now(), used());
    std::thread::sleep(Duration::from_secs(2));
    let share = (used() - before) / begin.elapsed().as_nanos() as f64;
    // A busy machine only makes it less.
    assert!(share < 0.30 && share > 0.02, "used {share:.3} of a core with a limit of 0.2");
    let begin = Instant::now();
    assert!(c.ctr(&["task", "kill", "--signal", "SIGKILL", "spinner"]).status.success());
    c.until("the end", || c.status("spinner") == "STOPPED");
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    let deleted = c.ctr(&["task", "delete", "spinner"]);
    assert!(text(&deleted.stderr).contains("exit code 137"), "{deleted:?}");
    c.ctr(&["container", "delete", "spinner"]);
    c.assert_clean();

    let mut events = events;
    events.kill().unwrap();
    let told = text(&events.wait_with_output().unwrap().stdout);
    let order: Vec<&str> = told
        .lines()
        .filter(|line| line.contains("\"eater\""))
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with("/tasks/")))
        .collect();
    assert_eq!(order, ["/tasks/create", "/tasks/start", "/tasks/oom", "/tasks/exit", "/tasks/delete"], "{told}");
}

#[test]
fn what_cannot_run_says_why_and_leaves_nothing() {
    let Some(c) = containerd() else { return };
    let files: &[(&str, &[u8])] = &[("/bin/sh", b"\x7fELF...."), ("/half.wasm", b"\0asm\x01\0\0\0\x01")];
    c.image("default", "localhost/odd:1", ("linux", "amd64"), files, &["/bin/sh"]);
    let proxy = c.guest("default", "proxy");
    for (options, image, arguments, why) in [
        (
            &[][..],
            "localhost/odd:1",
            &[][..],
            "process.args[0] (/bin/sh): not a WebAssembly module or component: this is an ELF",
        ),
        (&[], "localhost/odd:1", &["/half.wasm"], "truncated"),
        (&[], "localhost/odd:1", &["/none.wasm"], "\"/none.wasm\" is no file in the image"),
        (&["--env", "PORT=http"], proxy.as_str(), &[], "variable PORT: \"http\" is no port"),
        (&["--mount", "type=bind,src=/nowhere,dst=/x,options=rbind"], &proxy, &[], "mounts: /x: /nowhere"),
        (&["--log-uri", "binary:///bin/logger"], &proxy, &[], "logs by binary are not supported"),
    ] {
        let options = [&["--rm"], options].concat();
        let refused = c.run(&options, &[&[image, "odd"], arguments].concat());
        assert!(!refused.status.success() && text(&refused.stderr).contains(why), "{why}: {refused:?}");
        c.ctr(&["container", "delete", "odd"]);
    }
    // A port that is taken fails the start.
    let (begin, second) = (["--detach", "--net-host"], ["--rm", "--net-host"]);
    let first = c.run(&begin, &[&proxy, "first"]);
    assert!(first.status.success(), "{first:?}");
    let taken = c.run(&second, &[&proxy, "second"]);
    assert!(text(&taken.stderr).contains("listening on"), "{taken:?}");
    assert_eq!(c.get(0, "http://127.0.0.1:8080/still"), "/still");
    c.ctr(&["task", "delete", "--force", "first"]);
    c.ctr(&["container", "delete", "first"]);
    c.assert_clean();
}

#[test]
fn a_killed_shim_leaves_nothing() {
    let Some(c) = containerd() else { return };
    let image = c.guest("default", "proxy");
    let data = tempfile::tempdir().unwrap();
    std::fs::write(data.path().join("kept"), "yes").unwrap();
    let mount = format!("type=bind,src={},dst=/data,options=rbind", data.path().display());
    let started = c.run(&["--detach", "--mount", &mount], &[&image, "web"]);
    assert!(started.status.success(), "{started:?}");
    let pid = c.pid("web");
    assert_eq!(c.get(pid, "http://127.0.0.1:8080/up"), "/up");
    let dirs = c.shims();
    let (shim, hosts) = shim_and_hosts(dirs.first().unwrap());
    assert_eq!(hosts, [pid]);
    support::kill(shim);
    c.assert_clean();
    c.until("the host to be gone", || !std::path::Path::new(&format!("/proc/{pid}")).exists());
    assert_eq!(std::fs::read_to_string(data.path().join("kept")).unwrap(), "yes");
    // Of a host that is killed the shim tells.
    c.ctr(&["task", "delete", "--force", "web"]);
    c.ctr(&["container", "delete", "web"]);
    let started = c.run(&["--detach"], &[&image, "web"]);
    assert!(started.status.success(), "{started:?}");
    support::kill(c.pid("web"));
    c.until("the end", || c.status("web") == "STOPPED");
    let deleted = c.ctr(&["task", "delete", "web"]);
    assert!(text(&deleted.stderr).contains("exit code 137"), "{deleted:?}");
    c.ctr(&["container", "delete", "web"]);
    c.assert_clean();
}

#[test]
fn a_restarted_containerd_finds_its_containers() {
    let Some(mut c) = containerd() else { return };
    let image = c.guest("default", "proxy");
    let started = c.run(&["--detach"], &[&image, "web"]);
    assert!(started.status.success(), "{started:?}");
    let pid = c.pid("web");
    c.restart();
    assert_eq!((c.status("web").as_str(), c.pid("web")), ("RUNNING", pid));
    assert_eq!(c.get(pid, "http://127.0.0.1:8080/still"), "/still");
    // An end in between is told afterwards.
    assert!(c.ctr(&["task", "kill", "--signal", "SIGKILL", "web"]).status.success());
    c.until("the end", || c.status("web") == "STOPPED");
    c.restart();
    let deleted = c.ctr(&["task", "delete", "web"]);
    assert!(text(&deleted.stderr).contains("exit code 137"), "{deleted:?}");
    c.ctr(&["container", "delete", "web"]);
    c.assert_clean();
}
