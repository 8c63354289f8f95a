//! What the tests share: a pod's usual configuration, and waiting with an end.
#![allow(clippy::unwrap_used, dead_code)]

use std::future::Future;
use std::time::Duration;

use futures::StreamExt as _;
use sampan_oci::testing::{self, BUSYBOX, Node};
use sampan_oci::{ContainerConfig, Containerd, Event, Events, SandboxConfig};

pub const LIMIT: Duration = Duration::from_secs(60);

/// `None`: cannot be tried here, which was said.
pub async fn node() -> Option<Node> {
    if let Some(why) = testing::unavailable() {
        eprintln!("skipped: {why}");
        return None;
    }
    Some(Node::start().await.unwrap())
}

pub fn sandbox(node: &Node, name: &str) -> SandboxConfig {
    let logs = node.base().join("logs").join(name);
    std::fs::create_dir_all(&logs).unwrap();
    SandboxConfig {
        name: name.into(),
        uid: format!("uid-{name}"),
        namespace: "default".into(),
        hostname: name.into(),
        log_directory: logs.to_str().unwrap().into(),
        cgroup_parent: node.cgroup(name),
        ..Default::default()
    }
}

pub fn shell(name: &str, script: &str) -> ContainerConfig {
    ContainerConfig {
        name: name.into(),
        image: BUSYBOX.into(),
        command: vec!["sh".into(), "-c".into(), script.into()],
        log_path: format!("{name}.log"),
        ..Default::default()
    }
}

pub struct Pod {
    pub config: SandboxConfig,
    pub id: String,
    pub client: Containerd,
}

impl Pod {
    pub async fn run(node: &Node, config: SandboxConfig) -> Pod {
        let client = node.daemon.client().clone();
        let id = client.run_sandbox(&config).await.unwrap();
        Pod { config, id, client }
    }

    pub async fn start(&self, container: &ContainerConfig) -> String {
        let id = self.client.create_container(&self.id, container, &self.config).await.unwrap();
        self.client.start_container(&id).await.unwrap();
        id
    }

    /// Runs it to its end and gives what it wrote.
    pub async fn output(&self, container: &ContainerConfig) -> String {
        let mut events = events(&self.client).await;
        let id = self.start(container).await;
        exit(&mut events, &id).await;
        self.log(container)
    }

    /// The log's texts, without time, stream and tag.
    pub fn log(&self, container: &ContainerConfig) -> String {
        let file = std::path::Path::new(&self.config.log_directory).join(&container.log_path);
        let lines = std::fs::read_to_string(file).unwrap();
        lines.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap().to_owned() + "\n").collect()
    }
}

/// Events from now on.
pub async fn events(client: &Containerd) -> Events {
    let mut events = client.events();
    assert_eq!(next(&mut events).await, Event::Resync);
    events
}

pub async fn next(events: &mut Events) -> Event {
    tokio::time::timeout(LIMIT, events.next()).await.expect("no event").unwrap()
}

/// Waits for the end of a container's own process and gives its code.
pub async fn exit(events: &mut Events, wanted: &str) -> u32 {
    loop {
        if let Event::Exit { id, exec_id: None, exit_code, .. } = next(events).await
            && id == wanted
        {
            return exit_code;
        }
    }
}

/// For what containerd tells nobody.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let looked = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, looked).await.unwrap_or_else(|_| panic!("never: {what}"))
}
