//! What goes wrong with Linux containers: each gets a clear status and event, and the node goes on.

#![allow(clippy::unwrap_used)]

use sampan_oci::layout::{Layer, Layout};
use sampan_oci::testing;
use sampan_tests::registry::Registry;
use sampan_tests::{Cluster, eventually, runs_linux};
use serde_json::Value;

fn shell(name: &str, script: &str, more: &str) -> String {
    let script = serde_json::to_string(script).unwrap();
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: Never\n  containers:\n  \
         - name: main\n    image: localhost/busybox:1\n    command: [sh, -c, {script}]\n{more}"
    )
}

fn ready(cluster: &Cluster, name: &str) {
    cluster.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"]);
}

fn ended(cluster: &Cluster, name: &str) -> Value {
    eventually(&format!("the end of {name}"), || {
        cluster.get(&["pod", name]).pointer("/status/containerStatuses/0/state/terminated").cloned()
    })
}

/// An event about a pod that has this in it.
fn event(cluster: &Cluster, pod: &str, part: &str) {
    eventually(&format!("an event of {pod} with {part:?}"), || {
        let list = cluster.get(&["events", "--field-selector", &format!("involvedObject.name={pod}")]);
        let messages =
            list["items"].as_array()?.iter().filter_map(|event| event["message"].as_str().map(str::to_owned));
        messages.into_iter().find(|message| message.contains(part)).map(drop)
    });
}

#[test]
fn containers_that_misbehave() {
    if !runs_linux() {
        return;
    }
    let cluster = Cluster::up();
    cluster.import_busybox();

    // One that ignores SIGTERM is killed when its grace is over.
    cluster.apply(&shell(
        "stubborn",
        "trap '' TERM; touch /tmp/up; while :; do sleep 1; done",
        "    readinessProbe: {exec: {command: [test, -e, /tmp/up]}, periodSeconds: 1}\n",
    ));
    ready(&cluster, "stubborn");
    let begun = std::time::Instant::now();
    cluster.kubectl(&["delete", "pod", "stubborn", "--grace-period=2", "--timeout=30s"]);
    assert!(begun.elapsed().as_secs() >= 2, "{:?}", begun.elapsed());

    // One that forks without end has what it may have, and the next pod starts.
    cluster.apply(&shell("forks", "touch /tmp/up; f() { f | f & }; f; sleep 900", "    resources: {limits: {memory: 64Mi, cpu: 200m}}\n    readinessProbe: {exec: {command: [test, -e, /tmp/up]}, periodSeconds: 1}\n"));
    eventually("it has begun", || cluster.get(&["pod", "forks"])["status"]["startTime"].is_string().then_some(()));
    cluster.apply(&shell("next", "exit 7", ""));
    assert_eq!(ended(&cluster, "next")["exitCode"], 7);
    cluster.kubectl(&["delete", "pod", "forks", "--grace-period=0", "--force", "--timeout=60s"]);

    // Into one that has ended nobody goes.
    let refused = cluster.try_kubectl(&["exec", "next", "--", "true"]).refused();
    assert!(
        refused.contains("cannot exec into a container in a completed pod") || refused.contains("container not found"),
        "{refused}"
    );
}

#[test]
fn images_that_are_not_what_they_should_be() {
    if !runs_linux() {
        return;
    }
    let registry = Registry::public();
    let foreign = if cfg!(target_arch = "x86_64") { "arm64" } else { "amd64" };
    let file = |content: &[u8]| {
        let mut layer = Layer::new();
        layer.file("bin/program", 0o755, content).unwrap();
        Layout::new().layer(layer).unwrap().entrypoint(&["/bin/program"])
    };
    registry.push_linux("foreign", "v1", &file(b"a").platform("linux", foreign));
    registry.push_linux("corrupt", "v1", &file(b"what the digest was made of"));
    registry.corrupt(b"what the digest was made of");
    registry.push_linux("noexec", "v1", &file(b"no program at all"));
    let cluster = Cluster::up();
    let start = |name: &str| {
        let image = format!("{}/{name}:v1", registry.address);
        cluster.apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: Never\n  \
             containers: [{{name: main, image: '{image}'}}]\n"
        ));
    };
    for name in ["foreign", "corrupt", "noexec"] {
        start(name);
    }
    // It may be that the machine emulates the other one: it is tried, and said.
    event(&cluster, "foreign", &format!("is for linux/{foreign}"));
    event(&cluster, "corrupt", "digest");
    assert_eq!(cluster.get(&["pod", "corrupt"])["status"]["phase"], "Pending");
    assert_eq!(ended(&cluster, "noexec")["exitCode"], 1);
    assert!(cluster.kubectl(&["logs", "noexec"]).contains("exec format error"));
    cluster.import_linux(&testing::busybox().unwrap(), "localhost/busybox:1");
    cluster.apply(&shell("fine", "exit 0", ""));
    assert_eq!(ended(&cluster, "fine")["reason"], "Completed");
}
