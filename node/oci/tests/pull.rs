//! Pulling from a real registry on loopback, open and private.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::{Pod, node, sandbox, shell};
use sampan_oci::Credentials;
use sampan_oci::layout::{Layer, Layout};
use sampan_oci::testing::{busybox, save};
use serde_json::json;

const USER: &str = "sailor";
const PASSWORD: &str = "s3cret";
/// bcrypt of the password.
const HASH: &str = "$2b$05$abcdefghijklmnopqrstuuLK7U1u6pVRmL7L1BBM2aS35PSZnDXlK";

struct Registry {
    process: Child,
    address: String,
    private: bool,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Registry {
    fn start(dir: &Path, private: bool) -> Registry {
        std::fs::create_dir(dir).unwrap();
        let mut config = json!({"version": 0.1, "http": {"addr": "127.0.0.1:0"},
            "storage": {"filesystem": {"rootdirectory": dir.join("data")}}});
        if private {
            std::fs::write(dir.join("users"), format!("{USER}:{HASH}\n")).unwrap();
            config["auth"] = json!({"htpasswd": {"realm": "test", "path": dir.join("users")}});
        }
        std::fs::write(dir.join("config.yml"), config.to_string()).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(dir.join("config.yml")).stdin(Stdio::null()).stdout(Stdio::null());
        let mut process = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines().map_while(Result::ok);
        let address = lines.find_map(|line| {
            let (_, rest) = line.split_once("listening on ")?;
            rest.split('"').next().map(str::to_owned)
        });
        // A full pipe would stop it.
        std::thread::spawn(move || lines.for_each(drop));
        Registry { process, address: address.expect("the registry does not listen"), private }
    }

    /// Gives the image's reference.
    fn push(&self, archive: &Path, name: &str) -> String {
        let reference = format!("{}/{name}", self.address);
        let mut command = Command::new("skopeo");
        command.args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]);
        if self.private {
            command.arg(format!("--dest-creds={USER}:{PASSWORD}"));
        }
        let source = format!("oci-archive:{}", archive.display());
        let output = command.arg(source).arg(format!("docker://{reference}")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        reference
    }
}

fn installed() -> bool {
    let missing = ["docker-registry", "skopeo"].into_iter().find(|name| {
        let tried = Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        tried.is_err()
    });
    if let Some(missing) = missing {
        eprintln!("skipped: not installed: {missing}");
    }
    missing.is_none()
}

#[tokio::test]
async fn images_come_from_registries() {
    let Some(node) = node().await.filter(|_| installed()) else { return };
    let client = node.daemon.client();
    let archive = node.base().join("image.tar");
    let layout = busybox().unwrap().env(&["PATH=/bin", "FROM=registry"]).working_dir("/tmp").user("guest");
    save(&layout, &archive).unwrap();
    let registry = Registry::start(&node.base().join("registry"), false);
    let reference = registry.push(&archive, "tools/busybox:2");
    assert_eq!(client.image_status(&reference).await.unwrap(), None);
    assert_eq!(client.pull_image(&reference, None).await.unwrap(), layout.id());
    let image = client.image_status(&reference).await.unwrap().unwrap();
    assert_eq!((image.id, image.username.as_deref()), (layout.id(), Some("guest")));
    assert_eq!((image.tags.as_slice(), image.digests.len()), (&[reference.clone()][..], 1));
    let config = image.config.unwrap();
    assert_eq!((config.working_dir.as_str(), config.user.as_str()), ("/tmp", "guest"));

    // Its user is found in the image's own file.
    let pod = Pod::run(&node, sandbox(&node, "pulled")).await;
    let mut container = shell("main", "echo $FROM $(id -u) $(pwd)");
    container.image = reference.clone();
    assert_eq!(pod.output(&container).await, "registry 1000 /tmp\n");

    let absent = client.pull_image(&format!("{}/tools/busybox:3", registry.address), None).await.unwrap_err();
    assert!(absent.is_not_found() && absent.to_string().contains("busybox:3"), "{absent}");
    let address = registry.address.clone();
    drop(registry);
    let away = client.pull_image(&format!("{address}/tools/other:1"), None).await.unwrap_err().to_string();
    assert!(away.contains("connection refused"), "{away}");
    // What is here needs no registry.
    client.image_status(&reference).await.unwrap().unwrap();
}

#[tokio::test]
async fn private_registries_want_to_know_who_asks() {
    let Some(node) = node().await.filter(|_| installed()) else { return };
    let client = node.daemon.client();
    let archive = node.base().join("image.tar");
    let mut layer = Layer::new();
    layer.file("hello", 0o644, b"hello").unwrap();
    let layout = Layout::new().layer(layer).unwrap();
    save(&layout, &archive).unwrap();
    let registry = Registry::start(&node.base().join("registry"), true);
    let reference = registry.push(&archive, "secret:1");
    let credentials =
        |password: &str| Credentials { username: USER.into(), password: password.into(), ..Default::default() };
    for wrong in [None, Some(credentials("guess"))] {
        let refused = client.pull_image(&reference, wrong.as_ref()).await.unwrap_err().to_string();
        assert!(refused.contains("authorization failed") || refused.contains("401"), "{refused}");
        assert!(!refused.contains("guess"), "{refused}");
        assert_eq!(client.image_status(&reference).await.unwrap(), None);
    }
    assert_eq!(client.pull_image(&reference, Some(&credentials(PASSWORD))).await.unwrap(), layout.id());
    client.image_status(&reference).await.unwrap().unwrap();
}
