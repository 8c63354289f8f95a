//! Deployments over their life, as kubectl drives it.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sampan_tests::{Cluster, eventually, http_get};
use serde_json::Value;

fn revision(cluster: &Cluster, deployment: &str) -> String {
    let deployment = cluster.get(&["deployment", deployment]);
    deployment["metadata"]["annotations"]["deployment.kubernetes.io/revision"].as_str().unwrap().to_owned()
}

#[test]
fn rollout_rollback_pause_and_scale() {
    let cluster = Cluster::up();
    cluster.deploy("hello");
    cluster.rolled_out("hello");
    let authority = format!("{}:8080", cluster.service_address("hello"));

    // Somebody calls all the time; nobody is turned away.
    let going = Arc::new(AtomicBool::new(true));
    let caller = std::thread::spawn({
        let (going, authority) = (going.clone(), authority.clone());
        move || {
            let mut failures = Vec::new();
            while going.load(Ordering::Relaxed) {
                if let Err(error) = http_get(&authority, "/") {
                    failures.push(error.to_string());
                }
            }
            failures
        }
    });
    cluster.kubectl(&["set", "env", "deployment/hello", "VERSION=2"]);
    cluster.rolled_out("hello");
    going.store(false, Ordering::Relaxed);
    let failures = caller.join().unwrap();
    assert!(failures.is_empty(), "{} calls failed during the rollout: {:?}", failures.len(), failures.first());
    assert_eq!(revision(&cluster, "hello"), "2");
    assert!(cluster.kubectl(&["rollout", "history", "deployment/hello"]).lines().count() >= 3);

    cluster.kubectl(&["rollout", "undo", "deployment/hello"]);
    cluster.rolled_out("hello");
    assert_eq!(revision(&cluster, "hello"), "3");
    let env = &cluster.get(&["deployment", "hello"])["spec"]["template"]["spec"]["containers"][0]["env"];
    assert!(env.as_array().unwrap().iter().all(|variable| variable["name"] != "VERSION"));

    cluster.kubectl(&["rollout", "pause", "deployment/hello"]);
    cluster.kubectl(&["set", "env", "deployment/hello", "VERSION=3"]);
    cluster.kubectl(&["scale", "deployment/hello", "--replicas=5"]);
    eventually("five pods", || (cluster.pods("app=hello").len() == 5).then_some(()));
    assert_eq!(revision(&cluster, "hello"), "3", "a paused Deployment rolls nothing out");
    cluster.kubectl(&["rollout", "resume", "deployment/hello"]);
    cluster.rolled_out("hello");
    assert_eq!(revision(&cluster, "hello"), "4");

    cluster.kubectl(&["delete", "deployment", "hello"]);
    eventually("no pod is left", || (cluster.get(&["pods"])["items"].as_array().unwrap().is_empty()).then_some(()));
}

#[test]
fn a_failing_container_backs_off_and_keeps_its_last_words() {
    let cluster = Cluster::up();
    cluster.import("batch");
    cluster.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: fails}\nspec:\n  containers:\n  - {name: c, image: 'localhost/batch:v1', args: ['10', '3']}\n",
    );
    let status = eventually("a restart", || {
        let status = cluster.get(&["pod", "fails"])["status"]["containerStatuses"][0].clone();
        (status["restartCount"].as_i64() >= Some(1) && status["state"]["waiting"]["reason"] == "CrashLoopBackOff")
            .then_some(status)
    });
    let last = &status["lastState"]["terminated"];
    assert_eq!((last["exitCode"].as_i64(), last["reason"].as_str()), (Some(3), Some("Error")));
    assert_eq!(cluster.kubectl(&["logs", "fails", "--previous"]), "4 primes below 10\n");
    assert!(cluster.kubectl(&["describe", "pod", "fails"]).contains("Back-off restarting failed container"));
    assert!(cluster.kubectl(&["get", "pod", "fails"]).contains("CrashLoopBackOff"));
}

#[test]
fn limits_hold_a_greedy_guest() {
    let cluster = Cluster::up();
    cluster.deploy("greedy");
    cluster.rolled_out("greedy");
    cluster.kubectl(&["set", "env", "deployment/greedy", "MEMORY=1"]);
    let killed: Value = eventually("the guest that eats memory is stopped", || {
        let pods = cluster.pods("app=greedy");
        let mut states = pods.iter().flat_map(|pod| {
            let status = &pod["status"]["containerStatuses"][0];
            [status["lastState"]["terminated"].clone(), status["state"]["terminated"].clone()]
        });
        states.find(|state| state["reason"] == "OOMKilled")
    });
    assert_eq!(killed["exitCode"], 137);
}

#[test]
fn nothing_fits_and_the_events_say_why() {
    let cluster = Cluster::up();
    cluster.import("hello");
    cluster.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: huge}\nspec:\n  nodeSelector: {moon: 'yes'}\n  containers:\n  - {name: c, image: 'localhost/hello:v1'}\n",
    );
    let expected = "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.";
    eventually("the condition", || {
        let pod = cluster.get(&["pod", "huge"]);
        let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|one| one["type"] == "PodScheduled" && one["message"] == expected).then_some(())
    });
    assert!(cluster.kubectl(&["describe", "pod", "huge"]).contains(expected));
    // A change of the node makes room.
    let node = cluster.get(&["nodes"])["items"][0]["metadata"]["name"].as_str().unwrap().to_owned();
    cluster.kubectl(&["label", "node", &node, "moon=yes"]);
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/huge", "--timeout=60s"]);
}

/// One that may not be with another waits until that is gone; one that needs another until it comes.
#[test]
fn pods_that_ask_for_other_pods() {
    let cluster = Cluster::up();
    cluster.import("hello");
    let pod = |name: &str, kind: &str, app: &str| {
        format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  affinity:
    {kind}:
      requiredDuringSchedulingIgnoredDuringExecution:
      - {{topologyKey: kubernetes.io/hostname, labelSelector: {{matchLabels: {{app: {app}}}}}}}
  containers:
  - {{name: c, image: 'localhost/hello:v1'}}
"
        )
    };
    let ready = |name: &str| {
        cluster.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"]);
    };
    let waits = |name: &str, why: &str| {
        let expected = format!("0/1 nodes are available: 1 node(s) {why}.");
        eventually(&expected, || cluster.kubectl(&["describe", "pod", name]).contains(&expected).then_some(()));
    };
    cluster.apply(&pod("needy", "podAffinity", "proud"));
    waits("needy", "didn't match pod affinity rules");
    cluster.apply(&pod("proud", "podAntiAffinity", "rival"));
    ready("proud");
    ready("needy");
    cluster.apply(&pod("rival", "podAntiAffinity", "nobody"));
    waits("rival", "didn't satisfy existing pods anti-affinity rules");
    cluster.kubectl(&["delete", "pod", "proud"]);
    ready("rival");
}

#[test]
fn all_samples_fit_on_one_small_node() {
    let cluster = Cluster::up();
    for name in ["hello", "guestbook", "tcp-echo", "batch", "greedy"] {
        cluster.deploy(name);
    }
    let phases = eventually("every pod has its turn", || {
        let pods = cluster.get(&["pods"])["items"].as_array().unwrap().clone();
        let phase = |pod: &Value| pod["status"]["phase"].as_str().unwrap_or_default().to_owned();
        let phases: Vec<String> = pods.iter().map(phase).collect();
        (phases.len() >= 10 && phases.iter().all(|it| it == "Running" || it == "Succeeded")).then_some(pods)
    });
    let requested: u64 = phases
        .iter()
        .flat_map(|pod| pod["spec"]["containers"].as_array().unwrap())
        .map(|container| container["resources"]["requests"]["cpu"].as_str().unwrap().to_owned())
        .map(|cpu| cpu.strip_suffix('m').expect("every sample says how little it needs").parse::<u64>().unwrap())
        .sum();
    assert!(requested < 1000, "{requested}m for all samples: more than one core");
}

#[test]
fn pods_forced_out_of_the_api_leave_a_node_that_works() {
    let cluster = Cluster::up();
    cluster.import("hello");
    for round in 0..6 {
        let name = format!("round-{round}");
        cluster.kubectl(&["create", "deployment", &name, "--image=localhost/hello:v1", "--replicas=4"]);
        // In the middle of whatever its pods are doing.
        if round % 2 == 0 {
            cluster.kubectl(&["rollout", "status", "deployment", &name, "--timeout=60s"]);
        }
        cluster.kubectl(&["delete", "deployment", &name]);
        cluster.kubectl(&["delete", "pod", "--all", "--grace-period=0", "--force"]);
    }
    cluster.kubectl(&["run", "after", "--image=localhost/hello:v1"]);
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/after", "--timeout=60s"]);
    // What nobody asks for any more ends, though nobody waits for it.
    let pods = cluster.data_dir().join("node/tenants/default/pods");
    eventually("the files of the others are gone", || (std::fs::read_dir(&pods).unwrap().count() == 1).then_some(()));
}

#[test]
fn deleting_a_namespace_takes_everything_in_it() {
    let cluster = Cluster::up();
    cluster.import("hello");
    cluster.kubectl(&["create", "namespace", "team"]);
    let manifest = sampan_tests::manifest("hello");
    cluster.kubectl(&["apply", "-n", "team", "-f", manifest.to_str().unwrap()]);
    cluster.kubectl(&["rollout", "status", "-n", "team", "deployment/hello", "--timeout=60s"]);
    cluster.kubectl(&["delete", "namespace", "team", "--timeout=60s"]);
    assert!(cluster.try_kubectl(&["get", "namespace", "team"]).refused().contains("NotFound"));
    assert!(
        cluster.kubectl(&["get", "pods,deployments,services", "-A"]).lines().all(|line| !line.starts_with("team "))
    );
}
