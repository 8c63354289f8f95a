//! `kubectl exec`, `attach`, `port-forward` and `cp`, by every protocol a kubectl speaks.

#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use sampan_tests::{Cluster, Finished, Process, Terminal, eventually, http_get, run_with_input, tcp_echo};

/// A kubectl, and what makes it speak another protocol.
struct Client {
    name: String,
    program: PathBuf,
    environment: &'static [&'static str],
}

const SPDY: &[&str] = &["KUBECTL_REMOTE_COMMAND_WEBSOCKETS=false", "KUBECTL_PORT_FORWARD_WEBSOCKETS=false"];

/// The one in the path by WebSocket and by SPDY, and old ones where there are some.
fn clients() -> Vec<Client> {
    let client =
        |name: &str, program: &str, environment| Client { name: name.to_owned(), program: program.into(), environment };
    let mut all = vec![client("websocket", "kubectl", &[]), client("spdy", "kubectl", SPDY)];
    for version in ["1.27", "1.30", "1.33"] {
        let program = format!("/usr/lib/google-cloud-sdk/bin/kubectl.{version}");
        if Path::new(&program).exists() {
            all.push(client(version, &program, &[]));
        }
    }
    all
}

impl Client {
    fn arguments<'a>(&'a self, kubeconfig: &'a str, arguments: &[&'a str]) -> Vec<&'a str> {
        let mut all = self.environment.to_vec();
        all.extend([self.program.to_str().unwrap(), "--kubeconfig", kubeconfig]);
        all.extend(arguments);
        all
    }

    fn run(&self, cluster: &Cluster, input: &str, arguments: &[&str]) -> Finished {
        let kubeconfig = cluster.kubeconfig();
        let all = self.arguments(kubeconfig.to_str().unwrap(), arguments);
        run_with_input(Path::new("/usr/bin/env"), &all, input)
    }

    fn spawn(&self, cluster: &Cluster, arguments: &[&str]) -> Process {
        let kubeconfig = cluster.kubeconfig();
        Process::spawn(Path::new("/usr/bin/env"), &self.arguments(kubeconfig.to_str().unwrap(), arguments), &[])
    }
}

fn toolbox(cluster: &Cluster) {
    cluster.deploy("toolbox");
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/toolbox", "--timeout=60s"]);
}

fn pod(name: &str, image: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: Never\n  \
         containers:\n  - {{name: c, image: 'localhost/{image}:v1'{more}}}\n"
    )
}

#[test]
fn exec_by_every_protocol() {
    let cluster = Cluster::up();
    toolbox(&cluster);
    for client in clients() {
        let exec = |input: &str, words: &[&str]| {
            let mut all = vec!["exec", "-i", "toolbox", "--", "toolbox"];
            all.extend(words);
            client.run(&cluster, input, &all)
        };
        let name = &client.name;
        let finished = exec("", &["echo", "hello", "there"]);
        assert_eq!((finished.out.as_str(), finished.code), ("hello there\n", Some(0)), "{name}: {}", finished.err);
        let finished = exec("", &["exit", "7"]);
        assert_eq!(finished.code, Some(7), "{name}: {}", finished.err);
        assert!(finished.err.contains("command terminated with exit code 7"), "{name}: {}", finished.err);
        let finished = exec("", &["complain", "bitterly"]);
        assert_eq!((finished.out.as_str(), finished.err.as_str()), ("", "bitterly\n"), "{name}");
        // Of the container's own sandbox.
        assert!(exec("", &["env"]).out.contains("KUBERNETES_SERVICE_HOST="), "{name}");
        let much = exec("", &["bytes", "4000000"]).out;
        assert_eq!(much.len(), 4_000_000, "{name}");
        assert!(
            much.bytes().enumerate().all(
                |(n, byte)| byte == b"!\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`\n"[n % 65]
            ),
            "{name}"
        );
        // 1.27 to 1.29 and SPDY end the input by the stream, v5 by a message.
        let finished = exec("one\ntwo\n", &["upper"]);
        assert_eq!((finished.out.as_str(), finished.code), ("ONE\nTWO\n", Some(0)), "{name}: {}", finished.err);
        assert_eq!(exec(&"x".repeat(3_000_000), &["count"]).out, "3000000\n", "{name}");
    }
    // Its memory is the container's, and its end its own.
    let eats = cluster.try_kubectl(&["exec", "toolbox", "--", "toolbox", "eat"]);
    assert_eq!(eats.code, Some(137), "{}", eats.err);
    let status = &cluster.get(&["pod", "toolbox"])["status"]["containerStatuses"][0];
    assert_eq!((status["restartCount"].as_i64(), status["ready"].as_bool()), (Some(0), Some(true)));
}

#[test]
fn a_command_on_a_terminal() {
    let cluster = Cluster::up();
    toolbox(&cluster);
    let kubeconfig = cluster.kubeconfig();
    for environment in [&[][..], SPDY] {
        let start = |words: &[&str]| {
            let mut all = environment.to_vec();
            all.extend(["kubectl", "--kubeconfig", kubeconfig.to_str().unwrap(), "exec", "-it", "toolbox", "--"]);
            all.extend(words);
            Terminal::spawn(Path::new("/usr/bin/env"), &all)
        };
        // Until it answers, keys are kubectl's own terminal's.
        let upper = || {
            let mut terminal = start(&["toolbox", "upper"]);
            terminal.types("here\r");
            terminal.shows("HERE\r\n");
            terminal
        };
        let mut terminal = upper();
        terminal.types("hellp\x7fo\r");
        terminal.shows("HELLO\r\n");
        terminal.types("\x04");
        assert_eq!(terminal.ended(), Some(0), "{}", terminal.screen());
        let mut terminal = start(&["toolbox", "tty"]);
        terminal.shows("true true");
        assert_eq!(terminal.ended(), Some(0));
        let mut terminal = upper();
        terminal.types("\x03");
        assert_eq!(terminal.ended(), Some(130), "{}", terminal.screen());
    }
}

#[test]
fn what_cannot_be_run_is_refused_in_words() {
    let cluster = Cluster::up();
    toolbox(&cluster);
    cluster.deploy("hello");
    cluster.rolled_out("hello");
    cluster.apply(&pod("over", "toolbox", ", args: [echo, done]"));
    eventually("its end", || (cluster.get(&["pod", "over"])["status"]["phase"] == "Succeeded").then_some(()));
    cluster.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: nowhere}\nspec:\n  nodeSelector: {moon: 'yes'}\n  \
         containers:\n  - {name: c, image: 'localhost/toolbox:v1'}\n",
    );
    for client in clients() {
        let refused = |arguments: &[&str]| client.run(&cluster, "", arguments).refused();
        let says = |text: String, words: &str| assert!(text.contains(words), "{}: {text:?}", client.name);
        says(refused(&["exec", "deployment/hello", "--", "sh"]), "serves HTTP (wasi:http/incoming-handler)");
        says(refused(&["exec", "toolbox", "--", "toolbox", "nonsense"]), "usage: toolbox");
        says(refused(&["exec", "toolbox", "-c", "other", "--", "x"]), "container other is not valid for pod toolbox");
        says(refused(&["exec", "nowhere", "--", "x"]), "pod nowhere does not have a host assigned");
        says(refused(&["exec", "over", "--", "x"]), "cannot exec into a container in a completed pod");
        says(refused(&["cp", "toolbox:/etc/hosts", "/dev/null"]), "no other program than its own, so no tar");
    }
    // Past kubectl's own check.
    let raw = |path: &str| cluster.try_kubectl(&["get", "--raw", path]).refused();
    let pods = "/api/v1/namespaces/default/pods";
    assert!(raw(&format!("{pods}/over/exec?command=x&stdout=1")).contains("Upgrade request required"));
    assert!(raw(&format!("{pods}/none/exec?command=x&stdout=1")).contains("pods \"none\" not found"));
    let forbidden =
        cluster.try_kubectl(&["exec", "--as=system:kube-scheduler", "toolbox", "--", "toolbox", "echo", "x"]).refused();
    assert!(forbidden.contains("resource \"pods/exec\" in API group"), "{forbidden}");
}

#[test]
fn attach_and_run() {
    let cluster = Cluster::up();
    cluster.import("toolbox");
    for client in clients() {
        let name = format!("run-{}", client.name.replace('.', "-"));
        let arguments =
            ["run", &name, "-i", "--quiet", "--restart=Never", "--image=localhost/toolbox:v1", "--", "upper"];
        let finished = client.run(&cluster, "first\nsecond\n", &arguments);
        assert_eq!((finished.out.as_str(), finished.code), ("FIRST\nSECOND\n", Some(0)), "{}: {}", name, finished.err);
        assert_eq!(cluster.kubectl(&["logs", &name]), "FIRST\nSECOND\n");
        assert_eq!(cluster.get(&["pod", &name])["spec"]["containers"][0]["stdinOnce"], true);
    }
    // Its input stays open for the next who attaches.
    cluster.apply(&pod("stays", "toolbox", ", args: [upper], stdin: true"));
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/stays", "--timeout=60s"]);
    for client in clients() {
        let word = format!("from-{}", client.name);
        let said = format!("{}\n", word.to_uppercase());
        let mut attached = client.spawn(&cluster, &["attach", "stays"]);
        // Who types is another; both see what follows.
        let kubeconfig = cluster.kubeconfig();
        let arguments = client.arguments(kubeconfig.to_str().unwrap(), &["attach", "-i", "stays", "--quiet"]);
        let mut typing = Command::new("/usr/bin/env");
        let typing = typing.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut typing = typing.spawn().unwrap();
        // Until the one who watches is attached.
        eventually("what is said is shown", || {
            writeln!(typing.stdin.as_mut().unwrap(), "{word}").unwrap();
            attached.out().contains(&said).then_some(())
        });
        typing.kill().unwrap();
        typing.wait().unwrap();
        assert!(attached.wait(Duration::ZERO).is_none());
    }
    // The container ends, and with it who is attached.
    let mut attached = clients()[0].spawn(&cluster, &["attach", "stays"]);
    cluster.kubectl(&["delete", "pod", "stays", "--grace-period=1"]);
    assert!(attached.wait(Duration::from_secs(30)).is_some());

    let kubeconfig = cluster.kubeconfig();
    let arguments = [
        "--kubeconfig",
        kubeconfig.to_str().unwrap(),
        "run",
        "typed",
        "-it",
        "--restart=Never",
        "--image=localhost/toolbox:v1",
        "--",
        "upper",
    ];
    let mut terminal = Terminal::spawn(Path::new("kubectl"), &arguments);
    terminal.shows("try pressing enter");
    terminal.types("quiet\r");
    terminal.shows("QUIET\r\n");
    terminal.types("\x04");
    assert_eq!(terminal.ended(), Some(0), "{}", terminal.screen());
}

#[test]
fn port_forward_by_every_protocol() {
    let cluster = Cluster::up();
    cluster.deploy("hello");
    cluster.deploy("tcp-echo");
    cluster.rolled_out("hello");
    cluster.rolled_out("tcp-echo");
    for client in clients() {
        let name = &client.name;
        let forward = |target: &str, port: &str| {
            let mut process = client.spawn(&cluster, &["port-forward", target, &format!(":{port}")]);
            let line = process.wait_for_line("Forwarding from 127.0.0.1:");
            let port = line.split(':').nth(1).unwrap().split(' ').next().unwrap().to_owned();
            (process, format!("127.0.0.1:{port}"))
        };
        let (process, hello) = forward("deployment/hello", "8080");
        let callers: Vec<_> = (0..8)
            .map(|_| {
                let hello = hello.clone();
                std::thread::spawn(move || (0..5).map(|_| http_get(&hello, "/").unwrap().0).collect::<Vec<_>>())
            })
            .collect();
        for caller in callers {
            assert_eq!(caller.join().unwrap(), [200; 5], "{name}");
        }
        drop(process);
        let (_process, echo) = forward("deployment/tcp-echo", "7007");
        let sent: Vec<u8> = (0..2_000_000_u32).map(|n| (n / 3) as u8).collect();
        assert!(tcp_echo(&echo, &sent).unwrap() == sent, "{name}");
        // Nobody listens there.
        let (process, nothing) = forward("deployment/hello", "9");
        assert!(http_get(&nothing, "/").is_err(), "{name}");
        eventually("the refusal", || {
            let log = process.log();
            (log.contains("error forwarding port 9 to pod") && log.contains("connection refused")).then_some(())
        });
    }
}
