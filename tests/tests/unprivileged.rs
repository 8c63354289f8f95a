//! The same cluster without root: pods and Services in 127.0.0.0/8.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use sampan_tests::{Process, eventually, http_get, manifest, run, sampan, sample};

/// An ordinary user where the tests run as root: Debian's `nobody`.
const NOBODY: &str = "65534";

#[test]
fn an_ordinary_user_has_a_cluster_too() {
    // What root's home hides, copied to where everybody may read it.
    let dir = tempfile::Builder::new().prefix("sampan-test-").tempdir().unwrap();
    let program = dir.path().join("sampan");
    std::fs::copy(sampan(), &program).unwrap();
    let home = dir.path().join("home");
    std::fs::create_dir(&home).unwrap();
    for (path, mode) in [(dir.path(), 0o755), (&program, 0o755), (&home, 0o777)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let data = home.join("data");
    let up = ["up", "--data-dir", data.to_str().unwrap(), "--listen", "127.0.0.1:0"];
    let mut process = if rustix::process::geteuid().is_root() {
        let mut arguments = vec!["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", program.to_str().unwrap()];
        arguments.extend(up);
        Process::spawn(Path::new("setpriv"), &arguments, &[("HOME", home.to_str().unwrap())])
    } else {
        Process::spawn(&program, &up, &[])
    };
    process.wait_for_line("ready");
    let kubeconfig = data.join("kubeconfig");
    let client = |arguments: &[&str]| {
        let mut all = arguments.to_vec();
        all.extend(["--kubeconfig", kubeconfig.to_str().unwrap()]);
        let finished = run(&program, &all);
        assert!(finished.ok, "{arguments:?}: {}\n{}", finished.err, process.log());
        finished.out
    };
    for name in ["hello", "guestbook"] {
        client(&["image", "import", sample(name).to_str().unwrap(), "--as", &format!("localhost/{name}:v1")]);
        client(&["apply", "-f", manifest(name).to_str().unwrap()]);
    }
    let address = |service: &str| {
        let object: serde_json::Value =
            serde_json::from_str(&client(&["get", "service", service, "-o", "json"])).unwrap();
        object["spec"]["clusterIP"].as_str().unwrap().to_owned()
    };
    let hello = format!("{}:8080", address("hello"));
    assert!(hello.starts_with("127."), "{hello}");
    let (status, body) = eventually("an answer", || http_get(&hello, "/").ok());
    assert!(status == 200 && body.starts_with("Hello from hello-"), "{body}");
    // One guest calls another by its Service's name.
    let guestbook = format!("{}:8081", address("guestbook"));
    let page = eventually("the page", || http_get(&guestbook, "/").ok().filter(|(status, _)| *status == 200)).1;
    assert!(page.contains("Sign before you sail."), "{page}");
    // A volume in memory cannot be mounted: it is on the disk, and that is said.
    let manifest = dir.path().join("memory.yaml");
    let memory = "apiVersion: v1\nkind: Pod\nmetadata: {name: memory}\nspec:\n  \
                  volumes: [{name: fast, emptyDir: {medium: Memory}}]\n  containers: [{name: a, \
                  image: 'localhost/hello:v1', volumeMounts: [{name: fast, mountPath: /fast}]}]\n";
    std::fs::write(&manifest, memory).unwrap();
    client(&["apply", "-f", manifest.to_str().unwrap()]);
    eventually("the pod and the event", || {
        let events = client(&["get", "events"]);
        let told = events.lines().filter(|line| line.contains("EmptyDirOnDisk")).count();
        assert!(told <= 1, "{events}");
        (told == 1 && client(&["get", "pod", "memory"]).contains("Running")).then_some(())
    });
    assert!(client(&["status"]).contains("GuestsConfined"), "the node says that limits are weaker");
    let finished = process.terminate();
    assert!(finished.ok, "{}", finished.err);
}
