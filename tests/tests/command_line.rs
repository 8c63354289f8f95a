//! The program's own commands, and what it says to bad input.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use sampan_tests::{Cluster, eventually, http_get, run, sampan, sample};
use serde_json::{Value, json};

#[test]
fn run_status_get_logs_delete() {
    let cluster = Cluster::up();
    let out =
        cluster.sampan(&["run", sample("hello").to_str().unwrap(), "--replicas", "2", "--env", "A=b", "-o", "json"]);
    let answer: Value = serde_json::from_str(&out).unwrap();
    let (status, body) = http_get(answer["address"].as_str().unwrap(), "/x").unwrap();
    assert_eq!(status, 200, "{body}");
    assert!(body.starts_with("Hello from hello-"), "it knows its pod's name: {body}");
    assert_eq!(answer["url"], format!("http://{}", answer["address"].as_str().unwrap()));

    let table = cluster.sampan(&["get", "deployments,services"]);
    assert!(table.contains("deployment.apps/hello   2/2"), "{table}");
    let status: Value = serde_json::from_str(&cluster.sampan(&["status", "-o", "json"])).unwrap();
    assert_eq!(status["pods"]["ready"], 2);
    assert_eq!(status["nodes"][0]["capacity"], 1000);
    let text = cluster.sampan(&["status"]);
    assert!(text.contains("2 pods: 2 running, 2 ready"), "{text}");
    let images = cluster.sampan(&["image", "ls"]);
    assert!(images.contains("localhost/hello:"), "{images}");

    cluster.sampan(&["delete", "deployment/hello", "service/hello"]);
    eventually("no pod is left", || cluster.get(&["pods"])["items"].as_array().unwrap().is_empty().then_some(()));

    cluster.import("batch");
    cluster.sampan(&["apply", "-f", sampan_tests::manifest("batch").to_str().unwrap()]);
    eventually("the pod has ended", || {
        (cluster.get(&["pod", "batch"])["status"]["phase"] == "Succeeded").then_some(())
    });
    for name in ["batch", "pod/batch"] {
        assert_eq!(cluster.sampan(&["logs", name]), "348513 primes below 5000000\n");
    }
    let none = cluster.try_sampan(&["get", "pods", "-n", "nons"]);
    assert_eq!((none.code, none.out.as_str(), none.err.as_str()), (Some(0), "", "no pods in namespace nons\n"));
    let version = cluster.sampan(&["version"]);
    assert!(version.contains("server v1.36."), "{version}");
}

#[test]
fn kubectl_finds_what_it_looks_for() {
    let cluster = Cluster::up();
    assert!(cluster.kubectl(&["explain", "deployment.spec.strategy"]).contains("rollingUpdate"));
    assert!(cluster.kubectl(&["api-resources"]).contains("deployments"));
    assert!(cluster.kubectl(&["version"]).contains("Server Version: v1.36"));
    // Protobuf bodies.
    cluster.kubectl(&["create", "deployment", "none", "--image=localhost/none:v1"]);
    assert_eq!(cluster.kubectl(&["auth", "can-i", "create", "pods"]).trim(), "yes");
    let token = cluster.kubectl(&["create", "token", "default"]);
    assert_eq!(token.split('.').count(), 3);
    // What the account may not do is refused in the reference's words.
    let refused = cluster.try_kubectl(&["get", "secrets", "--as", "system:serviceaccount:default:default"]);
    assert!(!refused.ok);
    let waiting = eventually("the image is missed", || {
        let pods = cluster.pods("app=none");
        let waiting = pods.first()?["status"]["containerStatuses"][0]["state"]["waiting"].clone();
        ["ErrImagePull", "ImagePullBackOff"].iter().any(|reason| waiting["reason"] == *reason).then_some(waiting)
    });
    assert!(waiting["message"].as_str().unwrap().contains("localhost/none:v1"), "{waiting}");
    let manifest = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {x: '1'}\n";
    let applied = cluster.kubectl_with(manifest, &["apply", "--server-side", "-f", "-"]);
    assert_eq!(applied.out, "configmap/a serverside-applied\n", "{}", applied.err);
    assert_eq!(cluster.kubectl_with(manifest, &["diff", "-f", "-"]).code, Some(0));
}

#[test]
fn modules_that_are_none_are_refused_in_words() {
    let cluster = Cluster::up();
    let dir = tempfile::tempdir().unwrap();
    let imported =
        cluster.try_sampan(&["image", "import", sample("hello").to_str().unwrap(), "--as", "localhost/hello:v1"]);
    assert_eq!(imported.err.lines().count(), 1, "one line of progress: {}", imported.err);
    let refused = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        cluster
            .try_sampan(&["image", "import", path.to_str().unwrap(), "--as", &format!("localhost/{name}:v1")])
            .refused()
    };
    let good = std::fs::read(sample("hello")).unwrap();
    assert!(refused("text", b"#!/bin/sh\necho hello\n").to_lowercase().contains("not a webassembly"));
    assert!(refused("cut", &good[..good.len() / 2]).to_lowercase().contains("truncated"));
    assert!(refused("empty", b"").contains("empty"));
    // (module): valid, but nothing to start.
    let nothing = refused("nothing", b"\0asm\x01\0\0\0");
    assert!(nothing.contains("_start"), "{nothing}");
    // (module (import "moon" "land" (func)) (func (export "_start")))
    let moon = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x02\x0d\x01\x04moon\x04land\0\0\x03\x02\x01\0\x07\x0a\x01\x06_start\0\x01\x0a\x04\x01\x02\0\x0b";
    let imports = refused("imports", moon);
    assert!(imports.contains("moon") && imports.contains("land"), "{imports}");
    assert!(cluster.try_sampan(&["image", "import", "/no/such.wasm", "--as", "x"]).refused().contains("/no/such.wasm"));
    assert_eq!(cluster.get(&["nodes"])["items"].as_array().unwrap().len(), 1, "the node goes on");
}

#[test]
fn run_takes_nothing_from_others() {
    let mut cluster = Cluster::up();
    let hello = sample("hello");
    let run = |more: &[&str]| cluster.try_sampan(&[&["run", hello.to_str().unwrap()], more].concat());
    let others = |kind: &str, name: &str| {
        let made = match kind {
            "deployment" => cluster.try_kubectl(&["create", kind, name, "--image=localhost/none:v1", "--replicas=0"]),
            _ => cluster.try_kubectl(&["create", kind, "clusterip", name, "--tcp=8080"]),
        };
        assert!(made.ok, "{}", made.err);
        let before = cluster.get(&[kind, name]);
        let error = run(&["--name", name]).refused();
        let expected = format!("{kind} {name} exists and was not made by `sampan run`; choose another with --name");
        assert!(error.contains(&expected), "{error}");
        let after = cluster.get(&[kind, name]);
        assert_eq!(after["spec"], before["spec"]);
        assert_eq!(after["metadata"]["managedFields"], before["metadata"]["managedFields"]);
    };
    others("deployment", "hello");
    others("service", "site");
    assert!(!cluster.try_kubectl(&["get", "deployment", "site"]).ok, "neither or both");

    // What is wrong is told before anything is brought to the nodes.
    let error = run(&["--name", "My_App"]).refused();
    assert!(error.contains("--name \"My_App\" is no name for a Service"), "{error}");
    let error = run(&["--namespace", "nons"]).refused();
    assert!(error.contains("there is no namespace \"nons\""), "{error}");
    assert!(!cluster.sampan(&["image", "ls"]).contains("localhost/"));

    // Its own are updated, also where somebody changed them meanwhile.
    assert!(run(&["--name", "mine"]).ok);
    cluster.kubectl(&["scale", "deployment/mine", "--replicas=3"]);
    let again = run(&["--name", "mine", "--replicas", "2", "--env", "A=b"]);
    assert!(again.ok, "{}", again.err);
    let mine = cluster.get(&["deployment", "mine"]);
    assert_eq!(mine["spec"]["replicas"], 2);
    assert_eq!(mine["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"], "b");

    // One of each is not many.
    cluster.kill();
    let down = cluster.down();
    assert!(down.starts_with("removed 1 host process, "), "{down}");
}

#[test]
fn run_says_why_it_failed() {
    let cluster = Cluster::up();
    let nothing_is_left =
        || cluster.get(&["deployments,services", "-l", "app.kubernetes.io/name"])["items"] == json!([]);
    // A file that is no module is a file nonetheless.
    let readme = sampan_tests::repository().join("README.md");
    let error = cluster.try_sampan(&["run", readme.to_str().unwrap()]).refused();
    assert!(error.contains("README.md") && error.to_lowercase().contains("not a webassembly"), "{error}");
    assert!(cluster.try_sampan(&["run", "./no/such"]).refused().contains("there is no such file"));
    let error = cluster.try_sampan(&["run", "README.txt"]).refused();
    assert!(error.contains("lower-case") && error.contains("there is no file \"README.txt\""), "{error}");
    assert!(nothing_is_left());

    // What no waiting mends is told at once, with what stays behind.
    let patience = ["--timeout", "600"];
    let error = cluster.try_sampan(&[&["run", "localhost/none:v1"], &patience[..]].concat()).refused();
    assert!(error.contains("sampan image import FILE --as localhost/none:v1"), "{error}");
    assert!(error.contains("`sampan delete deployment/none service/none --kubeconfig "), "{error}");
    let error = cluster.try_sampan(&[&["run", sample("batch").to_str().unwrap()], &patience[..]].concat()).refused();
    assert!(error.contains("exit code 0") && error.contains("for servers"), "{error}");
    // Those of the run before that cannot start do not count against the next one.
    let mended =
        cluster.try_sampan(&[&["run", sample("hello").to_str().unwrap(), "--name", "batch"], &patience[..]].concat());
    assert!(mended.ok, "{}", mended.err);
    cluster.sampan(&["delete", "deployment/none", "service/none", "deployment/batch", "service/batch"]);
    assert!(nothing_is_left());

    // A module that speaks what it likes has an address, and no URL.
    let echo = sample("tcp-echo");
    let out = cluster.sampan(&["run", echo.to_str().unwrap(), "-o", "json"]);
    let answer: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((answer["kind"].as_str(), &answer["url"]), (Some("command"), &Value::Null));
    let line = cluster.sampan(&["run", answer["image"].as_str().unwrap(), "--name", "tcp-echo"]);
    assert_eq!(line, format!("tcp-echo is ready: {}\n", answer["address"].as_str().unwrap()));
    // It listens elsewhere: the time is over, and the probe tells.
    let late = ["run", echo.to_str().unwrap(), "--name", "deaf", "--env", "PORT=9999", "--timeout", "12"];
    let error = cluster.try_sampan(&late).refused();
    assert!(error.contains("deaf was not ready after 12 s: Unhealthy: "), "{error}");
}

#[test]
fn a_cluster_has_its_data_dir_and_port_for_itself() {
    let cluster = Cluster::up();
    let data = cluster.data_dir();
    let again = run(&sampan(), &["up", "--data-dir", data.to_str().unwrap(), "--listen", "127.0.0.1:0"]).refused();
    assert!(again.contains("in use") && again.contains(data.to_str().unwrap()), "{again}");
    let other = tempfile::tempdir().unwrap();
    let other = other.path().join("data");
    let address = cluster.url().replace("https://", "");
    let taken = run(&sampan(), &["up", "--data-dir", other.to_str().unwrap(), "--listen", &address]).refused();
    assert!(taken.contains(&format!("cannot listen on {address}")) && taken.contains("--listen"), "{taken}");
    assert!(cluster.get(&["nodes"])["items"].as_array().unwrap().len() == 1, "it goes on");
}

#[test]
fn a_dir_that_may_not_be_written_is_named() {
    // What root's home hides, copied to where an ordinary user may run it.
    let dir = tempfile::Builder::new().prefix("sampan-test-").tempdir().unwrap();
    let program = dir.path().join("sampan");
    std::fs::copy(sampan(), &program).unwrap();
    let locked = dir.path().join("locked");
    std::fs::create_dir(&locked).unwrap();
    for (path, mode) in [(dir.path(), 0o755), (&program, 0o755), (&locked, 0o555)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    for data in [locked.clone(), locked.join("data")] {
        let up = [program.to_str().unwrap(), "up", "--data-dir", data.to_str().unwrap(), "--listen", "127.0.0.1:0"];
        let finished = if rustix::process::geteuid().is_root() {
            // Debian's `nobody`: nothing stops root.
            let user = ["--reuid", "65534", "--regid", "65534", "--clear-groups"];
            run(Path::new("setpriv"), &[&user[..], &up].concat())
        } else {
            run(&program, &up[1..])
        };
        let error = finished.refused();
        assert!(
            error.contains(data.to_str().unwrap()) && error.to_lowercase().contains("permission denied"),
            "{error}"
        );
    }
    assert_eq!(std::fs::read_dir(&locked).unwrap().count(), 0);
}

#[test]
fn clusters_that_do_not_answer_are_named() {
    // A port that was just free.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let file = tempfile::NamedTempFile::new().unwrap();
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{ "name": "c", "cluster": { "server": format!("https://127.0.0.1:{port}") } }],
        "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "u" } }],
        "users": [{ "name": "u", "user": {} }],
    });
    std::fs::write(file.path(), config.to_string()).unwrap();
    let path = file.path().to_str().unwrap();
    let sentence = format!(
        "error: the cluster at https://127.0.0.1:{port} does not answer: connection refused (kubeconfig {path})\n"
    );
    for arguments in [&["status"][..], &["get", "pods"], &["image", "ls"], &["run", "localhost/a:v1"], &["logs", "a"]] {
        let error = run(&sampan(), &[arguments, &["--kubeconfig", path]].concat()).refused();
        assert_eq!(error, sentence, "{arguments:?}");
    }
}

#[test]
fn what_cannot_work_is_refused_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let up = |more: &[&str]| {
        let always = ["up", "--data-dir", data.to_str().unwrap(), "--listen", "127.0.0.1:0"];
        run(&sampan(), &[&always, more].concat()).refused()
    };
    let small = up(&["--cluster-cidr", "10.77.0.0/24", "--max-pods", "500"]);
    for part in ["--cluster-cidr 10.77.0.0/24", "--max-pods 500", "a /21"] {
        assert!(small.contains(part), "{small}");
    }
    assert!(up(&["--service-cidr", "8.8.0.0/16"]).contains("--service-cidr 8.8.0.0/16 is not private"));
    let config = dir.path().join("config.yaml");
    std::fs::write(&config, "maxPods: many\n").unwrap();
    let wrong = up(&["--config", config.to_str().unwrap()]);
    assert!(wrong.contains("maxPods") && wrong.contains("a number from 1 to 30000"), "{wrong}");
    let mine = dir.path().join("mine");
    std::fs::write(&mine, "apiVersion: v1\n").unwrap();
    assert!(up(&["--kubeconfig", mine.to_str().unwrap()]).contains("not written by sampan"));
    assert!(!data.join("server").exists(), "nothing was begun");
}

#[test]
fn a_node_joins_only_with_a_token_of_this_cluster() {
    let cluster = Cluster::server();
    let answer: Value = serde_json::from_str(&cluster.sampan(&["token", "create", "-o", "json"])).unwrap();
    assert!(answer["expiration"].as_str().unwrap().ends_with('Z'));
    let token = answer["token"].as_str().unwrap();
    let [id, secret, pin] = token.split('.').collect::<Vec<_>>()[..] else { panic!("{token}") };
    let other = |text: &str| text.chars().map(|it| if it == '0' { '1' } else { '0' }).collect::<String>();
    let dir = tempfile::tempdir().unwrap();
    let join = |token: &str| {
        let data = dir.path().join("data");
        let node = ["node", "--data-dir", data.to_str().unwrap(), "--node-name", "late"];
        run(&sampan(), &[&node[..], &["--server", &cluster.url(), "--token", token]].concat()).refused()
    };
    let secret_wrong = join(&format!("{id}.{}.{pin}", other(secret)));
    assert!(secret_wrong.contains("gave no certificate (401"), "{secret_wrong}");
    assert!(secret_wrong.contains("sampan token create"), "{secret_wrong}");
    let pin_wrong = join(&format!("{id}.{secret}.{}", other(pin)));
    assert!(pin_wrong.contains("CA"), "{pin_wrong}");
    assert_eq!(cluster.get(&["nodes"])["items"], json!([]));
}

#[test]
fn manifests_that_are_wrong_say_where() {
    let mut cluster = Cluster::server();
    let refused = |manifest: &str| cluster.kubectl_with(manifest, &["create", "-f", "-"]).refused();
    assert!(refused("a: [b\n").contains("line"));
    let unknown = refused("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\nwhat: 1\n");
    assert!(unknown.contains("unknown field \"what\""), "{unknown}");
    let name = refused("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: A_b}\n");
    assert!(name.contains("metadata.name: Invalid value: \"A_b\""), "{name}");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "kind: Pod\n").unwrap();
    let path = file.path().to_str().unwrap();
    assert!(cluster.try_sampan(&["apply", "-f", path]).refused().contains(path));

    // Credentials of another cluster.
    let strange = dir_with_token(&cluster);
    let path = strange.path().join("config");
    let error = run(&sampan(), &["get", "pods", "--kubeconfig", path.to_str().unwrap()]).refused();
    assert!(error.contains("does not take the credentials"), "{error}");
    // What clients ask wrongly is theirs to know.
    let attach = "/api/v1/namespaces/default/pods/none/attach";
    assert!(!cluster.try_kubectl(&["create", "--raw", attach, "-f", "/dev/null"]).ok);
    let log = cluster.process().log();
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
}

/// A kubeconfig with a token that no cluster gave.
fn dir_with_token(cluster: &Cluster) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(cluster.kubeconfig()).unwrap();
    let mut config: Value = serde_json::from_str(text.split_once('\n').unwrap().1).unwrap();
    config["users"][0]["user"] = json!({ "token": "abcdef.0123456789abcdef" });
    std::fs::write(dir.path().join("config"), config.to_string()).unwrap();
    dir
}

#[test]
fn data_dirs_that_are_not_its_own_are_left_alone() {
    let mut cluster = Cluster::server_that_comes_back(0);
    let data = cluster.data_dir();
    let up = |data: &Path, more: &[&str]| {
        let mut arguments = vec!["server", "--data-dir", data.to_str().unwrap(), "--listen", "127.0.0.1:0"];
        arguments.extend(more);
        run(&sampan(), &arguments).refused()
    };
    assert!(up(&data, &[]).contains("in use"));
    let port = cluster.url().rsplit(':').next().unwrap().to_owned();
    let other = tempfile::tempdir().unwrap();
    let taken = run(
        &sampan(),
        &["server", "--data-dir", other.path().join("d").to_str().unwrap(), "--listen", &format!("127.0.0.1:{port}")],
    );
    assert!(taken.refused().contains("--listen"));

    cluster.terminate();
    let store = data.join("server/store.redb");
    let whole = std::fs::read(&store).unwrap();
    std::fs::write(&store, b"not a database").unwrap();
    let corrupt = up(&data, &[]);
    assert!(corrupt.contains("store.redb"), "{corrupt}");
    assert_eq!(std::fs::read(&store).unwrap(), b"not a database", "nothing is overwritten");
    std::fs::write(&store, whole).unwrap();
    std::fs::write(data.join("format"), "sampan data format 999\n").unwrap();
    assert!(up(&data, &[]).contains("999"));
    std::fs::write(data.join("format"), "sampan data format 1\n").unwrap();
    let kubeconfig = other.path().join("mine");
    std::fs::write(&kubeconfig, "apiVersion: v1\n").unwrap();
    assert!(up(&data, &["--kubeconfig", kubeconfig.to_str().unwrap()]).contains("not written by sampan"));
    cluster.resume();
}
