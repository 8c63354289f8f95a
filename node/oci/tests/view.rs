//! The files of images as directories, in a real containerd.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::node;
use sampan_oci::layout::{Layer, Layout};
use sampan_oci::testing::{BUSYBOX, save};
use sampan_oci::{Containerd, mount_view, unmount_below};

const LABEL: (&str, &str) = ("sampan.io/test", "a \"quoted\" one");

async fn show(client: &Containerd, image: &str, key: &str, dir: &Path) {
    let id = client.image_status(image).await.unwrap().unwrap().id;
    let snapshotter = client.settings().await.unwrap().snapshotter.unwrap();
    let labels = BTreeMap::from([(LABEL.0.to_owned(), LABEL.1.to_owned())]);
    let mounts = client.view_image(&id, &snapshotter, key, &labels).await.unwrap();
    let again = client.view_image(&id, &snapshotter, key, &labels).await.unwrap();
    assert_eq!(mounts, again);
    std::fs::create_dir_all(dir).unwrap();
    mount_view(&mounts, dir).unwrap();
}

#[tokio::test]
async fn views_outlive_their_images() {
    let Some(node) = node().await else { return };
    let client = node.daemon.client();
    // More layers than a mount's options have room for, each over the one before.
    let mut layout = Layout::new();
    for number in 0..45 {
        let mut layer = Layer::new();
        layer.file("last", 0o644, number.to_string().as_bytes()).unwrap();
        layer.file(&format!("of/{number}"), 0o600, b"x").unwrap();
        layout = layout.layer(layer).unwrap();
    }
    let archive = node.base().join("many.tar");
    save(&layout, &archive).unwrap();
    client.import(&archive, "localhost/many:1").await.unwrap();
    // Below containerd's directory, whose mounts go with it whatever becomes of the test.
    let (many, one) = (node.dir.join("shown/many"), node.dir.join("shown/one"));
    show(client, "localhost/many:1", "many", &many).await;
    show(client, BUSYBOX, "one", &one).await;
    let whole = |dir: &Path| {
        assert_eq!(std::fs::read_to_string(dir.join("last")).unwrap(), "44");
        assert_eq!(std::fs::read_dir(dir.join("of")).unwrap().count(), 45);
    };
    whole(&many);
    assert!(one.join("bin/busybox").is_file());
    for dir in [&many, &one] {
        let error = std::fs::write(dir.join("new"), "").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    }

    let snapshotter = client.settings().await.unwrap().snapshotter.unwrap();
    let mut views: Vec<String> =
        client.list_views(&snapshotter, LABEL).await.unwrap().into_iter().map(|view| view.key).collect();
    views.sort();
    assert_eq!(views, ["many", "one"]);
    assert_eq!(client.list_views(&snapshotter, ("sampan.io/test", "other")).await.unwrap(), []);
    // The image goes, and what was collected with it is not what is shown.
    client.remove_image("localhost/many:1").await.unwrap();
    unmount_below(&many).unwrap();
    let labels = BTreeMap::new();
    mount_view(&client.view_image("gone", &snapshotter, "many", &labels).await.unwrap(), &many).unwrap();
    whole(&many);
    unmount_below(&node.dir.join("shown")).unwrap();
    for key in ["many", "one", "many"] {
        client.remove_view(&snapshotter, key).await.unwrap();
    }
    assert_eq!(client.list_views(&snapshotter, LABEL).await.unwrap(), []);
    assert!(client.view_image("gone", &snapshotter, "many", &labels).await.unwrap_err().is_not_found());
}
