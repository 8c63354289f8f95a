//! WebAssembly programs from a registry: artifacts and images, by tag and digest, with and without
//! credentials.

#![allow(clippy::unwrap_used)]

use sampan_tests::registry::{PASSWORD, Registry, USER};
use sampan_tests::{Cluster, eventually, sample};
use serde_json::{Value, json};

fn pod(name: &str, image: &str, spec: &Value) -> String {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
        "spec": { "restartPolicy": "Never", "containers": [{ "name": "main", "image": image }] },
    });
    for (field, value) in spec.as_object().unwrap() {
        match field.as_str() {
            "imagePullPolicy" | "args" => pod["spec"]["containers"][0][field] = value.clone(),
            _ => pod["spec"][field] = value.clone(),
        }
    }
    pod.to_string()
}

fn phase(cluster: &Cluster, name: &str, wanted: &str) -> Value {
    eventually(&format!("pod {name} {wanted}"), || {
        let pod = cluster.get(&["pod", name]);
        (pod["status"]["phase"] == wanted).then_some(pod)
    })
}

fn events(cluster: &Cluster, name: &str) -> Vec<(String, String)> {
    let list = cluster.get(&["events", "--field-selector", &format!("involvedObject.name={name}")]);
    let text = |event: &Value, field: &str| event[field].as_str().unwrap().to_owned();
    list["items"].as_array().unwrap().iter().map(|it| (text(it, "reason"), text(it, "message"))).collect()
}

#[test]
fn programs_are_pulled_from_a_registry() {
    let registry = Registry::public();
    let module = std::fs::read(sample("batch")).unwrap();
    let digest = registry.push_artifact("tools/batch", "v1", &module);
    let cluster = Cluster::up();

    let image = format!("{}/tools/batch:v1", registry.address);
    cluster.apply(&pod("artifact", &image, &json!({})));
    let artifact = phase(&cluster, "artifact", "Succeeded");
    let id = artifact["status"]["containerStatuses"][0]["imageID"].as_str().unwrap();
    assert_eq!(id, format!("{}/tools/batch@{digest}", registry.address));
    eventually("its events", || {
        let events = events(&cluster, "artifact");
        let has = |reason: &str, begin: &str| events.iter().any(|it| it.0 == reason && it.1.starts_with(begin));
        let pulled = format!("Successfully pulled image \"{image}\" in ");
        (has("Pulling", &format!("Pulling image \"{image}\"")) && has("Pulled", &pulled)).then_some(())
    });

    // By digest it is the same image, already here.
    cluster.apply(&pod("pinned", &format!("{}/tools/batch@{digest}", registry.address), &json!({})));
    phase(&cluster, "pinned", "Succeeded");
    eventually("it was here", || {
        events(&cluster, "pinned").iter().any(|it| it.1.contains("already present on machine")).then_some(())
    });

    // An image for wasi/wasm brings its arguments.
    registry.push_wasm_image("tools/image", "v1", &module, &["100"]);
    cluster.apply(&pod("image", &format!("{}/tools/image:v1", registry.address), &json!({})));
    phase(&cluster, "image", "Succeeded");
    assert_eq!(cluster.kubectl(&["logs", "image"]), "25 primes below 100\n");

    // Always asks again, and gets what is new under the tag; what is there under another name is not.
    let second = registry.push_artifact("tools/batch", "v1", &std::fs::read(sample("greedy")).unwrap());
    cluster.apply(&pod("again", &image, &json!({ "imagePullPolicy": "IfNotPresent" })));
    phase(&cluster, "again", "Succeeded");
    cluster.apply(&pod("always", &image, &json!({ "imagePullPolicy": "Always" })));
    let always = phase(&cluster, "always", "Running");
    let id = always["status"]["containerStatuses"][0]["imageID"].as_str().unwrap();
    assert!(id.ends_with(&second), "{id} is not {second}");

    // What is not there, and a registry that is gone, are told with a back-off.
    let gone = format!("{}/tools/gone:v1", registry.address);
    cluster.apply(&pod("gone", &gone, &json!({})));
    let waiting = eventually("the back-off", || {
        let pod = cluster.get(&["pod", "gone"]);
        let waiting = pod["status"]["containerStatuses"][0]["state"]["waiting"].clone();
        (waiting["reason"] == "ImagePullBackOff").then_some(waiting)
    });
    let message = waiting["message"].as_str().unwrap();
    assert!(message.starts_with(&format!("Back-off pulling image \"{gone}\"")), "{message}");
    assert!(message.contains(&format!("failed to resolve reference \"{gone}\": {gone}: not found")), "{message}");
    registry.stop();
    cluster.apply(&pod("unreachable", &gone.replace("gone", "later"), &json!({})));
    eventually("it is told that nobody answers", || {
        events(&cluster, "unreachable").iter().any(|it| it.1.contains("Connection refused")).then_some(())
    });
}

#[test]
fn a_private_registry_wants_a_pull_secret() {
    let registry = Registry::private();
    registry.push_artifact("team/batch", "v1", &std::fs::read(sample("batch")).unwrap());
    let image = format!("{}/team/batch:v1", registry.address);
    let cluster = Cluster::up();

    cluster.apply(&pod("nobody", &image, &json!({})));
    eventually("access is denied", || {
        let denied = "pull access denied, repository does not exist or may require authorization";
        events(&cluster, "nobody").iter().any(|it| it.1.contains(denied)).then_some(())
    });
    let server = format!("--docker-server={}", registry.address);
    let user = format!("--docker-username={USER}");
    cluster.kubectl(&["create", "secret", "docker-registry", "wrong", &server, &user, "--docker-password=guess"]);
    cluster.apply(&pod("wrong", &image, &json!({ "imagePullSecrets": [{ "name": "wrong" }, { "name": "absent" }] })));
    eventually("wrong credentials are denied, and an absent secret is told of", || {
        let events = events(&cluster, "wrong");
        let has = |reason: &str, part: &str| events.iter().any(|it| it.0 == reason && it.1.contains(part));
        (has("Failed", "pull access denied") && has("FailedToRetrieveImagePullSecret", "absent: not found"))
            .then_some(())
    });
    let password = format!("--docker-password={PASSWORD}");
    cluster.kubectl(&["create", "secret", "docker-registry", "right", &server, &user, &password]);
    cluster.apply(&pod("right", &image, &json!({ "imagePullSecrets": [{ "name": "right" }] })));
    phase(&cluster, "right", "Succeeded");

    // It is on the node now, and still nobody's who may not pull it.
    cluster.apply(&pod("freeloader", &image, &json!({ "imagePullPolicy": "IfNotPresent" })));
    eventually("access is denied again", || {
        events(&cluster, "freeloader").iter().any(|it| it.1.contains("pull access denied")).then_some(())
    });
    assert_eq!(cluster.get(&["pod", "nobody"])["status"]["phase"], "Pending");
    cluster.apply(&pod("friend", &image, &json!({ "imagePullSecrets": [{ "name": "right" }] })));
    phase(&cluster, "friend", "Succeeded");
    eventually("its friend's image was here", || {
        events(&cluster, "friend").iter().any(|it| it.1.contains("already present on machine")).then_some(())
    });
}

/// As other tools write them.
#[test]
fn programs_come_in_archives() {
    let registry = Registry::public();
    let module = std::fs::read(sample("batch")).unwrap();
    registry.push_artifact("tools/batch", "v1", &module);
    registry.push_wasm_image("tools/image", "v1", &module, &["100"]);
    let cluster = Cluster::up();
    let dir = tempfile::tempdir().unwrap();
    for (name, more) in [("batch", vec![]), ("image", vec!["--override-os=wasi", "--override-arch=wasm"])] {
        let archive = dir.path().join(format!("{name}.tar"));
        let from = format!("docker://{}/tools/{name}:v1", registry.address);
        let to = format!("oci-archive:{}", archive.display());
        let mut skopeo = std::process::Command::new("skopeo");
        skopeo.args(&more).args(["copy", "--quiet", "--src-tls-verify=false", &from, &to]);
        assert!(skopeo.status().unwrap().success());
        cluster.sampan(&["image", "import", archive.to_str().unwrap(), "--as", &format!("localhost/{name}:v1")]);
        cluster.apply(&pod(name, &format!("localhost/{name}:v1"), &json!({})));
        phase(&cluster, name, "Succeeded");
    }
    assert_eq!(cluster.kubectl(&["logs", "image"]), "25 primes below 100\n");

    // An archive whose parts are not what it says is refused whole.
    let archive = dir.path().join("batch.tar");
    let mut bytes = std::fs::read(&archive).unwrap();
    let at = bytes.windows(4).position(|it| it == b"\0asm").unwrap();
    bytes[at + 100] ^= 1;
    std::fs::write(&archive, bytes).unwrap();
    let refused = cluster.try_sampan(&["image", "import", archive.to_str().unwrap(), "--as", "localhost/lie:v1"]);
    let refused = refused.refused();
    assert!(refused.contains("sha256:"), "{refused}");
    assert!(!cluster.sampan(&["image", "ls"]).contains("lie"));
}

/// One that takes a connection and never answers.
#[test]
fn a_registry_that_is_stuck_does_not_keep_a_pod() {
    let stuck = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let image = format!("{}/tools/stuck:v1", stuck.local_addr().unwrap());
    let cluster = Cluster::up();
    cluster.apply(&pod("stuck", &image, &json!({})));
    let (held, _) = stuck.accept().unwrap();
    cluster.kubectl(&["delete", "pod", "stuck", "--timeout=20s"]);
    drop(held);
}
