//! The program's own commands, and what it says to bad input.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use sampan_tests::{Cluster, eventually, http_get, run, sampan, sample};
use serde_json::Value;

#[test]
fn run_status_get_logs_delete() {
    let cluster = Cluster::up();
    let out =
        cluster.sampan(&["run", sample("hello").to_str().unwrap(), "--replicas", "2", "--env", "A=b", "-o", "json"]);
    let answer: Value = serde_json::from_str(&out[out.find('{').unwrap()..]).unwrap();
    let (status, body) = http_get(answer["address"].as_str().unwrap(), "/x").unwrap();
    assert_eq!(status, 200, "{body}");

    let table = cluster.sampan(&["get", "deployments,services"]);
    assert!(table.contains("deployment.apps/hello   2/2"), "{table}");
    let status: Value = serde_json::from_str(&cluster.sampan(&["status", "-o", "json"])).unwrap();
    assert_eq!(status["pods"]["ready"], 2);
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
    assert_eq!(cluster.sampan(&["logs", "batch"]), "348513 primes below 5000000\n");
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
fn manifests_that_are_wrong_say_where() {
    let cluster = Cluster::server();
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
