//! Linux containers in a real containerd, alone and beside WebAssembly, driven by the real kubectl.

#![allow(clippy::unwrap_used)]

use sampan_tests::{Cluster, eventually, http_get, run_with_input, runs_linux};
use serde_json::Value;

fn pod(name: &str, spec: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec:\n{spec}")
}

/// A pod with one container of busybox, which runs a script.
fn shell(name: &str, script: &str, more: &str) -> String {
    pod(
        name,
        &format!(
            "  restartPolicy: Never\n  containers:\n  - name: main\n    image: localhost/busybox:1\n    \
             command: [sh, -c, {}]\n{more}",
            serde_json::to_string(script).unwrap()
        ),
    )
}

/// The status of a pod once it is in a phase.
fn in_phase(cluster: &Cluster, name: &str, phase: &str) -> Value {
    eventually(&format!("{name} {phase}"), || {
        let status = cluster.get(&["pod", name])["status"].take();
        (status["phase"] == phase).then_some(status)
    })
}

fn ready(cluster: &Cluster, name: &str) -> Value {
    cluster.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"]);
    cluster.get(&["pod", name])["status"].take()
}

#[test]
fn a_pod_runs_to_its_end() {
    if !runs_linux() {
        return;
    }
    let cluster = Cluster::up();
    cluster.import_busybox();
    cluster.apply(&shell(
        "job",
        "echo hello $WHO; echo last words > /dev/termination-log; exit 3",
        "    env: [{name: WHO, value: world}]\n",
    ));
    let status = in_phase(&cluster, "job", "Failed");
    let ended = &status["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((ended["exitCode"].as_i64(), ended["reason"].as_str()), (Some(3), Some("Error")), "{status}");
    assert_eq!(ended["message"].as_str(), Some("last words\n"));
    assert!(ended["containerID"].as_str().unwrap().starts_with("containerd://"), "{status}");
    assert_eq!(cluster.kubectl(&["logs", "job"]), "hello world\n");
    let images = cluster.sampan(&["image", "ls"]);
    assert!(images.contains("localhost/busybox:1") && images.contains("linux"), "{images}");

    // Too much memory, and a program that is not there.
    cluster.apply(&shell(
        "hungry",
        "until [ -e /tmp/go ]; do sleep 0.05; done; exec tail -c 200000000 /dev/zero",
        "    resources: {limits: {memory: 24Mi, cpu: 500m}}\n",
    ));
    ready(&cluster, "hungry");
    cluster.kubectl(&["exec", "hungry", "--", "touch", "/tmp/go"]);
    let status = in_phase(&cluster, "hungry", "Failed");
    let ended = &status["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((ended["exitCode"].as_i64(), ended["reason"].as_str()), (Some(137), Some("OOMKilled")), "{status}");
    cluster.apply(&pod(
        "absent",
        "  restartPolicy: Never\n  containers: [{name: main, image: 'localhost/busybox:1', command: [/no/such]}]\n",
    ));
    let status = in_phase(&cluster, "absent", "Failed");
    let ended = &status["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((ended["exitCode"].as_i64(), ended["reason"].as_str()), (Some(128), Some("StartError")), "{status}");
    assert!(ended["message"].as_str().unwrap().contains("/no/such"), "{status}");
    cluster.kubectl(&["delete", "pod", "--all", "--wait"]);
    let refused = cluster.try_sampan(&["image", "import", "/bin/ls", "--as", "localhost/ls:1"]).refused();
    assert!(refused.contains("ELF"), "{refused}");
    cluster.sampan(&["image", "rm", "localhost/busybox:1"]);
    assert!(!cluster.sampan(&["image", "ls"]).contains("busybox"));
}

#[test]
fn exec_attach_copy_and_forward() {
    if !runs_linux() {
        return;
    }
    let cluster = Cluster::up();
    cluster.import_busybox();
    cluster.apply(&shell(
        "web",
        "mkdir /www; echo from linux > /www/index.html; exec httpd -f -p 127.0.0.1:8080 -h /www",
        "    stdin: true\n    readinessProbe: {exec: {command: [test, -e, /www/index.html]}, periodSeconds: 1}\n    \
         lifecycle: {postStart: {exec: {command: [touch, /tmp/started]}}}\n",
    ));
    ready(&cluster, "web");
    cluster.kubectl(&["exec", "web", "--", "test", "-e", "/tmp/started"]);
    assert_eq!(cluster.try_kubectl(&["exec", "web", "--", "sh", "-c", "exit 7"]).code, Some(7));
    let kubeconfig = cluster.kubeconfig();
    let piped = run_with_input(
        std::path::Path::new("kubectl"),
        &["--kubeconfig", kubeconfig.to_str().unwrap(), "exec", "-i", "web", "--", "wc", "-c"],
        &"x".repeat(1_000_000),
    );
    assert_eq!(piped.out.trim(), "1000000", "{}", piped.err);
    let dir = tempfile::tempdir().unwrap();
    let (there, back) = (dir.path().join("there"), dir.path().join("back"));
    std::fs::write(&there, vec![7_u8; 300_000]).unwrap();
    cluster.kubectl(&["cp", there.to_str().unwrap(), "web:/tmp/copy"]);
    cluster.kubectl(&["cp", "web:/tmp/copy", back.to_str().unwrap()]);
    assert!(std::fs::read(&back).unwrap() == vec![7_u8; 300_000]);
    // It listens on its own loopback alone.
    let mut forward = sampan_tests::Process::spawn(
        std::path::Path::new("kubectl"),
        &["--kubeconfig", kubeconfig.to_str().unwrap(), "port-forward", "pod/web", ":8080"],
        &[],
    );
    let line = forward.wait_for_line("Forwarding from 127.0.0.1:");
    let port = line.split(':').nth(1).unwrap().split(' ').next().unwrap().to_owned();
    assert_eq!(http_get(&format!("127.0.0.1:{port}"), "/").unwrap(), (200, "from linux\n".to_owned()));
}

#[test]
fn both_kinds_in_one_pod() {
    if !runs_linux() {
        return;
    }
    let cluster = Cluster::up();
    cluster.import_busybox();
    cluster.import("hello");
    cluster.import("tcp-echo");
    cluster.apply(&pod(
        "mixed",
        "  volumes: [{name: shared, emptyDir: {}}]\n  initContainers:\n  - name: first\n    \
         image: localhost/busybox:1\n    command: [sh, -c, 'echo prepared > /shared/file']\n    \
         volumeMounts: [{name: shared, mountPath: /shared}]\n  containers:\n  - name: wasm\n    \
         image: localhost/hello:v1\n    ports: [{containerPort: 8080}]\n    \
         readinessProbe: {httpGet: {path: /, port: 8080}}\n  - name: linux\n    image: localhost/busybox:1\n    \
         command: [sh, -c, 'exec httpd -f -p 8081 -h /shared']\n    \
         volumeMounts: [{name: shared, mountPath: /shared}]\n    readinessProbe: {tcpSocket: {port: 8081}}\n",
    ));
    let status = ready(&cluster, "mixed");
    let ids = |index: usize| status["containerStatuses"][index]["containerID"].as_str().unwrap().to_owned();
    assert!(ids(0).starts_with("wasm://") && ids(1).starts_with("containerd://"), "{status}");
    // One network: the guest is at the Linux container's 127.0.0.1, and at the pod's address.
    let hello = cluster.kubectl(&["exec", "mixed", "-c", "linux", "--", "wget", "-qO-", "http://127.0.0.1:8080/"]);
    assert!(hello.starts_with("Hello from a pod"), "{hello}");
    let address = status["podIP"].as_str().unwrap();
    assert_eq!(http_get(&format!("{address}:8080"), "/").unwrap().0, 200);
    assert_eq!(http_get(&format!("{address}:8081"), "/file").unwrap(), (200, "prepared\n".to_owned()));
    // From another Linux pod through a Service, to both kinds.
    cluster.kubectl(&["expose", "pod", "mixed", "--port=8080", "--name=mixed"]);
    cluster.deploy("hello");
    cluster.rolled_out("hello");
    cluster.apply(&shell("client", "exec sleep 3600", ""));
    ready(&cluster, "client");
    for service in ["mixed", "hello"] {
        eventually(service, || {
            let url = format!("http://{service}:8080/");
            let got = cluster.try_kubectl(&["exec", "client", "--", "wget", "-T", "2", "-qO-", &url]);
            (got.code == Some(0)).then_some(())
        });
    }
    cluster.kubectl(&["delete", "pod", "mixed", "client", "--wait"]);
}
