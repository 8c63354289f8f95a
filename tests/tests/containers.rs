//! Linux containers in a real containerd, alone and beside WebAssembly, driven by the real kubectl.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use sampan_tests::{Cluster, eventually, http_get, http_post, run_with_input, runs_linux};
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
        Path::new("kubectl"),
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
        Path::new("kubectl"),
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
        let address = cluster.service_address(service);
        eventually(service, || {
            // A static busybox asks name servers itself, and its wget does not.
            let name = format!("{service}.default.svc.cluster.local");
            let named = cluster.try_kubectl(&["exec", "client", "--", "nslookup", &name]);
            let url = format!("http://{address}:8080/");
            let got = cluster.try_kubectl(&["exec", "client", "--", "wget", "-qO-", &url]);
            (named.out.contains(&address) && got.out.starts_with("Hello from")).then_some(())
        });
    }
    cluster.kubectl(&["delete", "pod", "mixed", "client", "--wait"]);
}

#[test]
fn pods_outlive_agent_and_containerd_and_nothing_is_left() {
    if !runs_linux() {
        return;
    }
    let mut cluster = Cluster::up();
    cluster.import_busybox();
    cluster.import("hello");
    let beside = "  - {name: wasm, image: 'localhost/hello:v1'}\n";
    cluster.apply(&(shell("stays", "n=0; while true; do echo $n; n=$((n+1)); sleep 0.1; done", "") + beside));
    cluster.apply(&shell("ends", "sleep 1; exit 5", ""));
    let before = ready(&cluster, "stays");
    let containers = |status: &Value| -> Vec<(String, String)> {
        let all = status["containerStatuses"].as_array().unwrap().iter();
        all.map(|it| (it["containerID"].as_str().unwrap().to_owned(), it["state"].to_string())).collect()
    };
    cluster.kill();
    let pid = containerd(&cluster);
    assert!(runs(pid), "containerd goes on");
    cluster.resume();
    // What ended in between is told of, what runs is the same.
    let status = in_phase(&cluster, "ends", "Failed");
    assert_eq!(status["containerStatuses"][0]["state"]["terminated"]["exitCode"], 5, "{status}");
    assert_eq!(containers(&ready(&cluster, "stays")), containers(&before));
    assert_eq!(containerd(&cluster), pid);

    // containerd itself, killed: it comes again and knows its containers.
    kill(pid);
    let again = eventually("another containerd", || {
        let new = containerd(&cluster);
        (new != pid && runs(new)).then_some(new)
    });
    eventually("exec", || {
        let ran = cluster.try_kubectl(&["exec", "stays", "-c", "main", "--", "echo", "here"]);
        (ran.code == Some(0)).then_some(())
    });
    assert_eq!(containers(&ready(&cluster, "stays")), containers(&before));
    let lines = |text: String| text.lines().map(|line| line.parse::<u32>().unwrap()).collect::<Vec<_>>();
    let counted = lines(cluster.kubectl(&["logs", "stays", "-c", "main"]));
    assert!(counted.iter().enumerate().all(|(index, line)| *line as usize == index), "one run, and no line lost");

    // A kill and a clean-up leave nothing of it on the machine.
    let groups = std::fs::read_to_string(cluster.data_dir().join("node/cgroups")).unwrap();
    let group = groups.lines().next().unwrap().trim_start_matches('/').to_owned();
    cluster.kill();
    let removed = cluster.down();
    assert!(removed.contains("containers"), "{removed}");
    assert!(!runs(again));
    for hierarchy in ["cpu", "memory", "pids", "unified", "."] {
        assert!(!Path::new("/sys/fs/cgroup").join(hierarchy).join(&group).exists());
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let data = cluster.data_dir();
    assert!(!mounts.contains(data.to_str().unwrap()), "{mounts}");
}

/// One that somebody else runs, with a network of its own.
#[test]
fn a_containerd_that_is_there_is_used() {
    if !runs_linux() {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let node = runtime.block_on(sampan_oci::testing::Node::start()).unwrap();
    let socket = node.daemon.client().socket().to_owned();
    {
        let cluster = Cluster::start("up", &["--containerd", socket.to_str().unwrap()]);
        cluster.import_busybox();
        cluster.apply(&shell("guest", "sleep 3600", ""));
        let address = ready(&cluster, "guest")["podIP"].as_str().unwrap().to_owned();
        assert!(node.range.contains(&address.parse::<std::net::Ipv4Addr>().unwrap()), "{address}");
        assert_eq!(cluster.kubectl(&["exec", "guest", "--", "hostname"]).trim(), "guest");
        assert!(!cluster.data_dir().join("node/containerd").exists(), "none of its own");
        let described = cluster.kubectl(&["describe", "node"]);
        assert!(described.contains("containerd runs Linux containers"), "{described}");
    }
    // The cluster took its pods along and left the rest.
    let left = runtime.block_on(node.daemon.client().list_sandboxes(&Default::default())).unwrap();
    assert_eq!(left, []);
    assert!(runtime.block_on(node.daemon.client().image_status("localhost/busybox:1")).unwrap().is_some());
}

/// Debian's own programs, as people run them, and WebAssembly that uses them.
#[test]
fn real_programs_behind_a_wasm_guestbook() {
    if !runs_linux() {
        return;
    }
    let mut cluster = Cluster::up();
    if !["redis", "nginx", "postgres"].iter().all(|name| cluster.import_debian(name)) {
        return;
    }
    cluster.deploy("guestbook");
    let folder = sampan_tests::manifest("guestbook").with_file_name("with-redis.yaml");
    cluster.kubectl(&["apply", "-f", folder.to_str().unwrap()]);
    cluster.apply(PROGRAMS);
    for deployment in ["guestbook-store", "guestbook", "nginx"] {
        cluster.rolled_out(deployment);
    }
    // Through nginx to the page, from there to the store, and to Redis at its 127.0.0.1.
    let nginx = format!("{}:8080", cluster.service_address("nginx"));
    for entry in ["Ahoy", "from Linux"] {
        let form = format!("entry={}", entry.replace(' ', "+"));
        eventually("an entry", || (http_post(&nginx, "/", &form).ok()?.0 == 303).then_some(()));
    }
    let entries = http_get(&nginx, "/entries").unwrap();
    assert_eq!(entries, (200, "Ahoy\nfrom Linux\n".to_owned()));
    let redis = ["exec", "deployment/guestbook-store", "-c", "redis", "--", "redis-cli"];
    assert_eq!(cluster.kubectl(&[&redis[..], &["llen", "guestbook"]].concat()).trim(), "2");
    let store = cluster.kubectl(&["logs", "deployment/guestbook-store", "-c", "store"]);
    assert_eq!(store.lines().count(), 2, "{store}");
    // What Redis keeps outlives it.
    let ended = cluster.try_kubectl(&[&redis[..], &["shutdown"]].concat());
    eventually("Redis again", || {
        let pod = cluster.pods("app=guestbook,role=store").pop()?;
        let redis = pod["status"]["containerStatuses"].as_array()?.iter().find(|it| it["name"] == "redis")?.clone();
        (redis["restartCount"] == 1 && redis["ready"] == true).then_some(())
    });
    eventually(&format!("the entries ({})", ended.err.trim()), || {
        (http_get(&nginx, "/entries").ok()? == entries).then_some(())
    });

    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/postgres", "--timeout=60s"]);
    let sql = |text: &str| {
        cluster.kubectl(&[
            "exec",
            "postgres",
            "--",
            "psql",
            "-h",
            "127.0.0.1",
            "-U",
            "app",
            "-d",
            "postgres",
            "-tAc",
            text,
        ])
    };
    sql("create table harbour (ship text)");
    sql("insert into harbour select 'junk ' || n from generate_series(1, 1000) n");
    assert_eq!(sql("select count(*) from harbour").trim(), "1000");
    assert_eq!(cluster.terminate().code, Some(0));
}

const PROGRAMS: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: nginx}
data:
  nginx.conf: |
    error_log stderr;
    pid /tmp/nginx.pid;
    events {}
    http {
      access_log off;
      client_body_temp_path /tmp/body; proxy_temp_path /tmp/proxy; fastcgi_temp_path /tmp/fastcgi;
      uwsgi_temp_path /tmp/uwsgi; scgi_temp_path /tmp/scgi;
      server {
        listen 8080;
        location / { proxy_pass http://guestbook.default.svc.cluster.local:8081; proxy_set_header Host guestbook; }
      }
    }
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: nginx}
spec:
  replicas: 2
  selector: {matchLabels: {app: nginx}}
  template:
    metadata: {labels: {app: nginx}}
    spec:
      securityContext: {runAsUser: 1000, runAsNonRoot: true, fsGroup: 1000}
      containers:
        - name: nginx
          image: localhost/nginx:v1
          command: [nginx, -c, /etc/own/nginx.conf, -g, "daemon off;"]
          readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
          livenessProbe: {tcpSocket: {port: 8080}}
          volumeMounts: [{name: own, mountPath: /etc/own}]
          resources: {limits: {memory: 64Mi, cpu: 500m}}
      volumes: [{name: own, configMap: {name: nginx}}]
---
apiVersion: v1
kind: Service
metadata: {name: nginx}
spec: {selector: {app: nginx}, ports: [{port: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: postgres}
spec:
  securityContext: {runAsUser: 1000, fsGroup: 1000}
  initContainers:
    - name: init
      image: localhost/postgres:v1
      command: [/usr/lib/postgresql/15/bin/initdb, -D, /data/db, --auth=trust, --no-sync, --locale=C, -U, app]
      volumeMounts: [{name: data, mountPath: /data}]
  containers:
    - name: postgres
      image: localhost/postgres:v1
      command: [/usr/lib/postgresql/15/bin/postgres, -D, /data/db, -k, /tmp, -h, "*", -c, jit=off]
      env: [{name: PATH, value: "/usr/lib/postgresql/15/bin:/usr/bin:/bin"}]
      readinessProbe: {exec: {command: [pg_isready, -h, 127.0.0.1]}, periodSeconds: 1}
      volumeMounts: [{name: data, mountPath: /data}, {name: shm, mountPath: /dev/shm}]
      resources: {limits: {memory: 256Mi}}
  volumes:
    - {name: data, emptyDir: {}}
    - {name: shm, emptyDir: {medium: Memory}}
"#;

/// The process id of the cluster's own containerd.
fn containerd(cluster: &Cluster) -> u32 {
    let record = std::fs::read(cluster.data_dir().join("node/containerd/containerd.json")).unwrap();
    let record: Value = serde_json::from_slice(&record).unwrap();
    record["pid"].as_u64().unwrap().try_into().unwrap()
}

/// Not merely waiting for somebody to hear of its end.
fn runs(pid: u32) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}
