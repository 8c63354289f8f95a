//! `kubectl debug`: a look at a running pod, at a copy of it, and at the node.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use sampan_tests::{Cluster, eventually, run_with_input, runs_linux};
use serde_json::Value;

const WEB: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  containers:
  - name: main
    image: localhost/busybox:1
    command: [sh, -c, "mkdir /www; echo from linux > /www/index.html; exec httpd -f -p 127.0.0.1:8080 -h /www"]
"#;

/// What became of a pod's ephemeral container.
fn ephemeral(cluster: &Cluster, pod: &str, container: &str) -> Value {
    let status = cluster.get(&["pod", pod])["status"]["ephemeralContainerStatuses"].take();
    let all = status.as_array().cloned().unwrap_or_default();
    all.into_iter().find(|status| status["name"] == container).unwrap_or_default()
}

fn ready(cluster: &Cluster, pod: &str) {
    cluster.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{pod}"), "--timeout=60s"]);
}

#[test]
fn a_running_pod_a_copy_of_one_and_the_node() {
    if !runs_linux() {
        return;
    }
    let cluster = Cluster::up();
    cluster.import_busybox();
    cluster.apply(WEB);
    ready(&cluster, "web");

    // Its processes, its loopback, and a terminal's worth of input.
    let kubeconfig = cluster.kubeconfig();
    let kubeconfig = kubeconfig.to_str().unwrap();
    let script = "ps; wget -qO- http://127.0.0.1:8080/; head -c 5 | wc -c";
    let debug = ["debug", "-i", "web", "--image=localhost/busybox:1", "-c", "look", "--target=main", "--", "sh", "-c"];
    let arguments: Vec<&str> = ["--kubeconfig", kubeconfig].into_iter().chain(debug).chain([script]).collect();
    let looked = run_with_input(Path::new("kubectl"), &arguments, "12345");
    // What was said before kubectl attached is in the log.
    let seen = eventually("what was seen", || {
        let logs = cluster.kubectl(&["logs", "web", "-c", "look"]);
        logs.ends_with("5\n").then_some(logs)
    });
    assert!(seen.contains("httpd -f") && seen.contains("from linux"), "{seen}\n{}\n{}", looked.out, looked.err);
    eventually("its end", || {
        (ephemeral(&cluster, "web", "look")["state"]["terminated"]["exitCode"] == 0).then_some(())
    });
    let pod = cluster.get(&["pod", "web"]);
    assert_eq!((&pod["status"]["phase"], &pod["status"]["qosClass"]), (&"Running".into(), &"BestEffort".into()));

    // A module beside a module; a Linux image goes into a copy of the pod.
    cluster.deploy("toolbox");
    ready(&cluster, "toolbox");
    cluster.kubectl(&[
        "debug",
        "toolbox",
        "--image=localhost/toolbox:v1",
        "-c",
        "say",
        "--",
        "toolbox",
        "echo",
        "here",
    ]);
    eventually("a word", || (cluster.kubectl(&["logs", "toolbox", "-c", "say"]) == "here\n").then_some(()));
    cluster.kubectl(&["debug", "toolbox", "--image=localhost/busybox:1", "-c", "shell", "--", "sleep", "9"]);
    let told = eventually("why not", || {
        let waiting = ephemeral(&cluster, "toolbox", "shell")["state"]["waiting"].take();
        waiting["message"].as_str().filter(|it| it.contains("--copy-to")).map(str::to_owned)
    });
    assert!(told.contains("localhost/busybox:1"), "{told}");
    ready(&cluster, "toolbox");
    cluster.kubectl(&[
        "debug",
        "toolbox",
        "--copy-to=both",
        "--image=localhost/busybox:1",
        "-c",
        "shell",
        "--",
        "sleep",
        "900",
    ]);
    ready(&cluster, "both");
    assert_eq!(cluster.kubectl(&["exec", "both", "-c", "toolbox", "--", "toolbox", "echo", "a"]), "a\n");
    assert_eq!(cluster.kubectl(&["exec", "both", "-c", "shell", "--", "echo", "b"]), "b\n");

    // The node's own files and processes.
    let node = cluster.get(&["nodes"])["items"][0]["metadata"]["name"].as_str().unwrap().to_owned();
    let image = "--image=localhost/busybox:1";
    cluster.kubectl(&["debug", &format!("node/{node}"), image, "--", "sh", "-c", "ls /host/etc; cat /proc/1/comm"]);
    let debugger = eventually("the node's pod", || {
        let pods = cluster.get(&["pods"])["items"].take();
        let names = pods.as_array()?.iter().filter_map(|pod| pod["metadata"]["name"].as_str());
        names.filter(|name| name.starts_with("node-debugger")).map(str::to_owned).next()
    });
    eventually("its end", || (cluster.get(&["pod", &debugger])["status"]["phase"] == "Succeeded").then_some(()));
    let seen = cluster.kubectl(&["logs", &debugger]);
    let first = std::fs::read_to_string("/proc/1/comm").unwrap();
    assert!(seen.contains("passwd\n") && seen.ends_with(&first), "{seen}");
}
