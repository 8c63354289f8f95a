//! Volumes of pods on a real node, for Linux containers in a real containerd and for WebAssembly.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use sampan_oci::layout::{Layer, Layout};
use sampan_tests::{Cluster, eventually, runs_linux};
use serde_json::Value;

fn pod(name: &str, spec: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n{spec}")
}

fn ready(cluster: &Cluster, names: &[&str]) {
    let mut arguments = vec!["wait", "--for=condition=Ready", "--timeout=60s"];
    let pods: Vec<String> = names.iter().map(|name| format!("pod/{name}")).collect();
    arguments.extend(pods.iter().map(String::as_str));
    cluster.kubectl(&arguments);
}

/// What a script in a pod's Linux container says.
fn says(cluster: &Cluster, pod: &str, script: &str) -> String {
    cluster.kubectl(&["exec", pod, "-c", "linux", "--", "sh", "-c", script])
}

/// What a command of the toolbox says in a pod's WebAssembly container.
fn toolbox(cluster: &Cluster, pod: &str, command: &[&str]) -> String {
    let mut arguments = vec!["exec", pod, "-c", "wasm", "--", "toolbox"];
    arguments.extend(command);
    cluster.kubectl(&arguments)
}

/// What is mounted below a cluster's data dir for its pods.
fn mounts(cluster: &Cluster) -> Vec<String> {
    let tenants = cluster.data_dir().join("node/tenants");
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points.filter(|point| Path::new(point).starts_with(&tenants)).map(str::to_owned).collect()
}

fn evicted(cluster: &Cluster, name: &str) -> String {
    eventually(&format!("{name} evicted"), || {
        let pod = cluster.get(&["pod", name]);
        let status: &Value = &pod["status"];
        (status["phase"] == "Failed" && status["reason"] == "Evicted")
            .then(|| status["message"].as_str().unwrap().to_owned())
    })
}

const LINUX: &str = "  - name: linux\n    image: localhost/busybox:1\n    command: [sleep, '3600']\n";

#[test]
fn memory_and_images_for_both_kinds() {
    if !runs_linux() {
        return;
    }
    let mut cluster = Cluster::up();
    cluster.import_busybox();
    cluster.import("toolbox");
    let layer = |files: &[(&str, &str)]| {
        let mut layer = Layer::new();
        files.iter().for_each(|(path, content)| layer.file(path, 0o644, content.as_bytes()).unwrap());
        layer
    };
    let data = Layout::new()
        .layer(layer(&[("etc/model", "one"), ("same", "below")]))
        .and_then(|it| it.layer(layer(&[("same", "above"), ("weights/part", "7")])))
        .unwrap();
    let late = "  volumes: [{name: data, image: {reference: 'localhost/data:1'}}]\n";
    let mounted = "    volumeMounts: [{name: data, mountPath: /data}]\n";
    cluster.apply(&pod("late", &format!("{late}  containers:\n{LINUX}{mounted}")));
    eventually("the image missed", || {
        let waiting = cluster.get(&["pod", "late"])["status"]["containerStatuses"][0]["state"]["waiting"].clone();
        (waiting["reason"] == "ErrImagePull" || waiting["reason"] == "ImagePullBackOff")
            .then(|| assert!(waiting["message"].as_str().unwrap().contains("localhost/data:1"), "{waiting}"))
    });
    cluster.import_linux(&data, "localhost/data:1");
    ready(&cluster, &["late"]);
    assert_eq!(says(&cluster, "late", "cat /data/same"), "above");
    let events = cluster.kubectl(&["get", "events", "--field-selector=reason=Pulled,involvedObject.name=late"]);
    assert!(events.contains("localhost/data:1"), "{events}");
    cluster.kubectl(&["delete", "pod", "late", "--grace-period=1", "--wait"]);
    let volumes = "  volumes:\n  - {name: fast, emptyDir: {medium: Memory, sizeLimit: 8Mi}}\n  \
                   - {name: data, image: {reference: 'localhost/data:1', pullPolicy: IfNotPresent}}\n  \
                   - {name: tool, image: {reference: 'localhost/toolbox:v1', pullPolicy: IfNotPresent}}\n";
    let mount = "    volumeMounts:\n    - {name: fast, mountPath: /fast}\n    - {name: data, mountPath: /data}\n    \
                 - {name: data, mountPath: /part, subPath: weights}\n    - {name: tool, mountPath: /tool}\n";
    let wasm = format!("  - name: wasm\n    image: localhost/toolbox:v1\n    args: [sleep]\n{mount}");
    // The host process of the namespace is there before the second pod's volumes are mounted.
    cluster.apply(&pod("first", &format!("  containers:\n{wasm}{volumes}")));
    ready(&cluster, &["first"]);
    cluster.apply(&pod("mixed", &format!("{volumes}  containers:\n{LINUX}{mount}{wasm}")));
    cluster.apply(&pod("second", &format!("{volumes}  containers:\n{wasm}")));
    ready(&cluster, &["mixed", "second"]);

    assert_eq!(says(&cluster, "mixed", "grep -c ' /fast tmpfs ' /proc/mounts; stat -c %a /fast"), "1\n1777\n");
    let full = says(
        &cluster,
        "mixed",
        "dd if=/dev/zero of=/fast/fill bs=1M count=20 2>&1 || stat -c %s /fast/fill; rm /fast/fill",
    );
    assert!(full.contains("No space left") && full.contains("8388608"), "{full}");
    says(&cluster, "mixed", "echo shared > /fast/file");
    assert_eq!(toolbox(&cluster, "mixed", &["cat", "/fast/file"]), "shared\n");
    for pod in ["first", "second"] {
        toolbox(&cluster, pod, &["write", "/fast/own", pod]);
        assert_eq!(toolbox(&cluster, pod, &["cat", "/fast/own"]), pod);
    }
    // An image's layers as one directory, read only, a part of it, and a module as a file.
    assert_eq!(
        says(&cluster, "mixed", "cat /data/etc/model /data/same /part/part; ls /tool"),
        "oneabove7toolbox.wasm\n"
    );
    assert!(says(&cluster, "mixed", "touch /data/x 2>&1; rm /part/part 2>&1; true").matches("Read-only").count() == 2);
    for pod in ["mixed", "second"] {
        assert_eq!(toolbox(&cluster, pod, &["cat", "/data/same"]), "above");
        assert!(!cluster.try_kubectl(&["exec", pod, "-c", "wasm", "--", "toolbox", "write", "/data/same", "x"]).ok);
    }
    let used = cluster.try_sampan(&["image", "rm", "localhost/data:1"]).refused();
    assert!(used.contains("in use"), "{used}");

    // All of it outlives the agent, and goes with its pod.
    assert_eq!(mounts(&cluster).iter().filter(|at| at.ends_with("/fast")).count(), 3);
    cluster.kill();
    cluster.resume();
    assert_eq!(toolbox(&cluster, "mixed", &["cat", "/fast/file"]), "shared\n");
    assert_eq!(says(&cluster, "mixed", "cat /fast/file /data/same"), "shared\nabove");
    cluster.kubectl(&["delete", "pod", "mixed", "--grace-period=1", "--wait"]);
    eventually("the pod's mounts gone", || (mounts(&cluster).len() == 4).then_some(()));
    cluster.kill();
    cluster.down();
    assert_eq!(mounts(&cluster), Vec::<String>::new());
    // What a killed cluster was showing is not kept for ever.
    cluster.resume();
    cluster.kubectl(&["delete", "pod", "--all", "--grace-period=1", "--wait"]);
    cluster.sampan(&["image", "rm", "localhost/data:1"]);
    assert_eq!(cluster.terminate().code, Some(0));
    assert_eq!(mounts(&cluster), Vec::<String>::new());
}

#[test]
fn a_pod_that_takes_too_much_disk_is_evicted() {
    if !runs_linux() {
        return;
    }
    let cluster = Cluster::up();
    cluster.import_busybox();
    cluster.import("toolbox");
    let fill =
        |path: &str| format!("    command: [sh, -c, 'dd if=/dev/zero of={path} bs=1M count=9; exec sleep 3600']\n");
    let linux = "  - name: main\n    image: localhost/busybox:1\n";
    let limit = "    resources: {limits: {ephemeral-storage: 4Mi}}\n";
    let mount = "    volumeMounts: [{name: work, mountPath: /work}]\n";
    let volume = "  volumes: [{name: work, emptyDir: {sizeLimit: 2Mi}}]\n";
    let free = "  volumes: [{name: work, emptyDir: {}}]\n";
    cluster.apply(&pod("volume", &format!("{volume}  containers:\n{linux}{}{mount}", fill("/work/file"))));
    cluster.apply(&pod("layer", &format!("  containers:\n{linux}{}{limit}", fill("/file"))));
    cluster.apply(&pod("modest", &format!("{free}  containers:\n{linux}{}{mount}", fill("/work/file"))));
    let guest = "  - {name: wasm, image: 'localhost/toolbox:v1', args: [sleep], \
                 volumeMounts: [{name: work, mountPath: /work}]}\n";
    cluster.apply(&pod("guest", &format!("{volume}  containers:\n{guest}")));
    ready(&cluster, &["guest"]);
    toolbox(&cluster, "guest", &["fill", "/work/file", "3000000"]);
    let too_much = "Usage of EmptyDir volume \"work\" exceeds the limit \"2Mi\". ";
    assert_eq!(evicted(&cluster, "volume"), too_much);
    assert_eq!(evicted(&cluster, "guest"), too_much);
    let layer = evicted(&cluster, "layer");
    assert_eq!(layer, "Pod ephemeral local storage usage exceeds the total limit of containers 4Mi. ");
    let events = cluster.kubectl(&["get", "events", "--field-selector=reason=Evicted,involvedObject.name=guest"]);
    assert!(events.contains("Warning") && events.contains(too_much.trim()), "{events}");
    // Its containers have ended with it.
    eventually("the container's end", || {
        let pod = cluster.get(&["pod", "volume"]);
        let state = &pod["status"]["containerStatuses"][0]["state"];
        state["terminated"]["exitCode"].as_i64().map(|code| assert_eq!(code, 137, "{state}"))
    });
    // The node goes on, and so does who may.
    ready(&cluster, &["modest"]);
    assert_eq!(cluster.get(&["pod", "modest"])["status"]["phase"], "Running");
}

/// A guest without any limit takes all there is, the store's room included.
#[test]
fn a_full_disk_is_relieved() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: not root");
        return;
    }
    let mut cluster = Cluster::up_on_disk(256 << 20);
    cluster.import("toolbox");
    let guest = "  containers: [{name: wasm, image: 'localhost/toolbox:v1', args: [sleep], \
                 volumeMounts: [{name: work, mountPath: /work}]}]\n  volumes: [{name: work, emptyDir: {}}]\n";
    cluster.apply(&pod("calm", guest));
    cluster.apply(&pod("glutton", guest));
    ready(&cluster, &["calm", "glutton"]);
    toolbox(&cluster, "calm", &["fill", "/work/file", "1000000"]);
    let filled =
        cluster.try_kubectl(&["exec", "glutton", "-c", "wasm", "--", "toolbox", "fill", "/work/file", "999999999"]);
    assert!(!filled.ok, "there is not that much room");
    let message = evicted(&cluster, "glutton");
    assert!(message.starts_with("The node was low on resource: ephemeral-storage. Threshold quantity: "), "{message}");
    let conditions = cluster.get(&["pod", "glutton"])["status"]["conditions"].take();
    let told = |it: &Value| it["type"] == "DisruptionTarget" && it["reason"] == "TerminationByKubelet";
    assert!(conditions.as_array().unwrap().iter().any(told), "{conditions}");
    // More pods are not taken for now.
    eventually("the node's condition", || {
        let node = cluster.get(&["nodes"])["items"][0].take();
        let pressed = |it: &Value| it["type"] == "DiskPressure" && it["status"] == "True";
        let tainted = |it: &Value| it["key"] == "node.kubernetes.io/disk-pressure";
        let (conditions, taints) = (node["status"]["conditions"].as_array()?, node["spec"]["taints"].as_array()?);
        (conditions.iter().any(pressed) && taints.iter().any(tainted)).then_some(())
    });
    let node = cluster.get(&["nodes"])["items"][0]["metadata"]["name"].as_str().unwrap().to_owned();
    cluster.apply(&pod("late", &format!("  nodeName: {node}\n{guest}")));
    assert_eq!(evicted(&cluster, "late"), "Pod was rejected: The node had condition: [DiskPressure]. ");
    // Node and control plane go on, and whoever was modest.
    cluster.kubectl(&["create", "configmap", "after"]);
    assert_eq!(cluster.get(&["pod", "calm"])["status"]["phase"], "Running");
    toolbox(&cluster, "calm", &["fill", "/work/file", "2000000"]);
    assert_eq!(cluster.terminate().code, Some(0));
}

#[test]
fn files_belong_to_who_the_kubelet_gives_them() {
    if !runs_linux() {
        return;
    }
    let cluster = Cluster::up();
    cluster.import_busybox();
    cluster.import("toolbox");
    cluster.kubectl(&["create", "secret", "generic", "keys", "--from-literal=key=s3cret"]);
    let volumes = "  volumes:\n  - {name: open, secret: {secretName: keys}}\n  \
                   - {name: closed, secret: {secretName: keys, defaultMode: 0400}}\n  - {name: work, emptyDir: {}}\n";
    let mount = "    volumeMounts:\n    - {name: open, mountPath: /open}\n    - {name: closed, mountPath: /closed}\n    \
                 - {name: work, mountPath: /work}\n";
    let wasm = format!("  - name: wasm\n    image: localhost/toolbox:v1\n    args: [sleep]\n{mount}");
    let bare = "    securityContext: {capabilities: {drop: [ALL]}}\n";
    cluster.apply(&pod("root", &format!("{volumes}  containers:\n{LINUX}{bare}{mount}{wasm}")));
    cluster.apply(&pod(
        "user",
        &format!("  securityContext: {{runAsUser: 1000}}\n{volumes}  containers:\n{LINUX}{mount}"),
    ));
    cluster.apply(&pod(
        "group",
        &format!("  securityContext: {{runAsUser: 1000, fsGroup: 2000}}\n{volumes}  containers:\n{LINUX}{mount}"),
    ));
    ready(&cluster, &["root", "user", "group"]);
    let token = "/var/run/secrets/kubernetes.io/serviceaccount/token";
    let of = |pod: &str| {
        let names = format!("/open/key /closed/key {token} /work");
        says(
            &cluster,
            pod,
            &format!("stat -Lc %u:%g:%a {names}; cat /open/key; cat /closed/key 2>&1; test -r {token} && echo token"),
        )
    };
    // Root without a capability reads what is root's, and so does the guest beside it.
    assert_eq!(of("root"), "0:0:644\n0:0:400\n0:0:644\n0:0:777\ns3crets3crettoken\n");
    assert_eq!(toolbox(&cluster, "root", &["cat", "/closed/key"]), "s3cret");
    let user = of("user");
    assert!(user.starts_with("0:0:644\n0:0:400\n1000:0:600\n0:0:777\ns3cretcat:"), "{user}");
    assert!(user.contains("Permission denied") && user.ends_with("token\n"), "{user}");
    assert_eq!(of("group"), "0:2000:644\n0:2000:440\n1000:2000:640\n0:2000:2777\ns3crets3crettoken\n");
    // A change reaches both kinds.
    let change = r#"{"stringData":{"key":"changed"}}"#;
    cluster.kubectl(&["patch", "secret", "keys", "-p", change]);
    eventually("the change", || {
        let linux = says(&cluster, "root", "cat /closed/key");
        (linux == "changed" && toolbox(&cluster, "root", &["cat", "/closed/key"]) == "changed").then_some(())
    });
}
