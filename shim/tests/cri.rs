//! A pod of Wasm containers as a kubelet makes one: containerd's CRI with this runtime's handler.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashMap;
use std::path::Path;

use support::cri::{
    ContainerConfig, ContainerMetadata, ContainerRequest, ContainerStatus, CreateContainerRequest, DnsConfig,
    ExecSyncRequest, ImageSpec, Int64Value, KeyValue, LinuxContainerConfig, LinuxContainerResources,
    LinuxContainerSecurityContext, LinuxPodSandboxConfig, Mount, PodSandboxConfig, PodSandboxMetadata,
    PodSandboxRequest, RunPodSandboxRequest, StopContainerRequest,
};
use support::{Containerd, PATIENCE, containerd, shim_and_hosts};

const EXITED: i32 = 2;

type Client = support::cri::runtime_service_client::RuntimeServiceClient<tonic::transport::Channel>;

struct Pod<'a> {
    containerd: &'a Containerd,
    client: Client,
    config: PodSandboxConfig,
    id: String,
}

impl Pod<'_> {
    async fn run(containerd: &Containerd) -> Pod<'_> {
        let nobody_runs = ("/pause", &b"nobody runs it"[..]);
        containerd.image("k8s.io", "localhost/pause:test", ("linux", "amd64"), &[nobody_runs], &["/pause"]);
        let mut client = containerd.cri().await;
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: "pod".into(),
                uid: "uid-1".into(),
                namespace: "default".into(),
                attempt: 0,
            }),
            hostname: "pod-host".into(),
            log_directory: containerd.path("logs").display().to_string(),
            dns_config: Some(DnsConfig {
                servers: vec!["10.88.0.99".into()],
                searches: vec!["default.svc.cluster.local".into()],
                options: vec!["ndots:5".into()],
            }),
            annotations: HashMap::from([("sampan.dev/http-port".into(), "80".into())]),
            linux: Some(LinuxPodSandboxConfig { cgroup_parent: format!("/{}", containerd.group()) }),
        };
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: "sampan".into() };
        let id = client.run_pod_sandbox(request).await.unwrap().into_inner().pod_sandbox_id;
        Pod { containerd, client, config, id }
    }

    async fn create(&mut self, name: &str, image: &str, change: impl FnOnce(&mut ContainerConfig)) -> String {
        let mut config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
            image: Some(ImageSpec { image: image.into() }),
            log_path: format!("{name}.log"),
            linux: Some(LinuxContainerConfig::default()),
            ..ContainerConfig::default()
        };
        change(&mut config);
        let request = CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config),
            sandbox_config: Some(self.config.clone()),
        };
        self.client.create_container(request).await.unwrap().into_inner().container_id
    }

    async fn start(&mut self, id: &str) {
        self.client.start_container(ContainerRequest { container_id: id.into() }).await.unwrap();
    }

    async fn status(&mut self, id: &str) -> ContainerStatus {
        let request = ContainerRequest { container_id: id.into() };
        self.client.container_status(request).await.unwrap().into_inner().status.unwrap()
    }

    /// CRI of this version tells of no ends: asked again until it is one.
    async fn end(&mut self, id: &str) -> ContainerStatus {
        let begin = std::time::Instant::now();
        loop {
            let status = self.status(id).await;
            if status.state == EXITED {
                return status;
            }
            assert!(begin.elapsed() < PATIENCE, "{status:?}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.containerd.path("logs").join(format!("{name}.log"))).unwrap_or_default()
    }

    async fn remove(mut self) {
        let request = || PodSandboxRequest { pod_sandbox_id: self.id.clone() };
        self.client.stop_pod_sandbox(request()).await.unwrap();
        self.client.remove_pod_sandbox(request()).await.unwrap();
        self.containerd.assert_clean();
    }
}

#[tokio::test]
async fn a_pod_is_one_shim_one_host_and_one_network() {
    let Some(c) = containerd() else { return };
    let (proxy, command) = (c.guest("k8s.io", "proxy"), c.guest("k8s.io", "command"));
    let mut pod = Pod::run(&c).await;
    let request = PodSandboxRequest { pod_sandbox_id: pod.id.clone() };
    let sandbox = pod.client.pod_sandbox_status(request).await.unwrap().into_inner().status.unwrap();
    let ip = sandbox.network.unwrap().ip;
    assert!(sandbox.state == 0 && ip.starts_with("10.88.0."), "{ip}");

    let volume = c.path("volume");
    std::fs::create_dir(&volume).unwrap();
    let mount = |readonly| Mount { container_path: "/data".into(), host_path: volume.display().to_string(), readonly };
    let web = pod
        .create("web", &proxy, |config| {
            config.envs = vec![KeyValue { key: "COLOR".into(), value: "teal".into() }];
            config.mounts = vec![mount(true)];
        })
        .await;
    pod.start(&web).await;
    // From outside by the pod's address; the port is the annotation's.
    assert_eq!(c.get(0, &format!("http://{ip}/hello")), "/hello");
    assert_eq!(c.get(0, &format!("http://{ip}/env?COLOR")), "teal");

    // Another container of the pod: it writes what the first one reads, calls it at 127.0.0.1, and
    // knows the pod's name.
    let run = async |pod: &mut Pod<'_>, name: &str, arguments: &[&str]| {
        let arguments = arguments.iter().map(ToString::to_string).collect();
        let id = pod
            .create(name, &command, |config| {
                config.args = arguments;
                config.mounts = vec![mount(false)];
            })
            .await;
        pod.start(&id).await;
        let ended = pod.end(&id).await;
        let begin = std::time::Instant::now();
        // The log is containerd's to write, after the end.
        while pod.log(name).is_empty() && !name.starts_with("quiet") && begin.elapsed() < PATIENCE {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        (id, ended)
    };
    let (_, wrote) = run(&mut pod, "quiet-writer", &["write", "/data/note", "from beside"]).await;
    assert_eq!((wrote.exit_code, wrote.reason.as_str()), (0, "Completed"), "{wrote:?}");
    assert_eq!(c.get(0, &format!("http://{ip}/read?/data/note")), "from beside");
    let (_, said) = run(&mut pod, "sayer", &["say", "hello", "log"]).await;
    assert_eq!(said.exit_code, 0);
    let log = pod.log("sayer");
    assert!(log.contains(" stdout F hello log"), "{log}");
    let (_, _) = run(&mut pod, "namer", &["resolve", "pod-host"]).await;
    assert!(pod.log("namer").contains(&ip), "{}", pod.log("namer"));
    let echo =
        pod.create("echo", &command, |config| config.args = ["echo", "127.0.0.1:7000"].map(Into::into).into()).await;
    pod.start(&echo).await;
    c.until("the echo to listen", || pod.log("echo").contains("listening on 127.0.0.1:7000"));
    let (_, called) = run(&mut pod, "caller", &["send", "127.0.0.1:7000", "side"]).await;
    assert!(called.exit_code == 0 && pod.log("caller").contains("got side"), "{}", pod.log("caller"));
    // What listens on the pod's loopback is not at its address.
    assert_eq!(c.get(0, &format!("http://{ip}:7000/")), "");

    // All of it was one shim and one host.
    let dirs = c.shims();
    assert_eq!(dirs.len(), 1, "{dirs:?}");
    let (shim, hosts) = shim_and_hosts(dirs.first().unwrap());
    assert_eq!(hosts.len(), 1);
    let command_line = std::fs::read(format!("/proc/{shim}/cmdline")).unwrap();
    assert!(support::text(&command_line).contains(&pod.id));

    let exec = ExecSyncRequest { container_id: web.clone(), cmd: vec!["sh".into()], timeout: 5 };
    let refused = pod.client.exec_sync(exec).await.unwrap_err();
    assert!(refused.message().contains("no programs to exec"), "{refused:?}");
    let request = ContainerRequest { container_id: web.clone() };
    let stats = pod.client.container_stats(request).await.unwrap().into_inner().stats.unwrap();
    assert!(stats.cpu.unwrap().usage_core_nano_seconds.unwrap().value > 0);

    pod.client.stop_container(StopContainerRequest { container_id: web.clone(), timeout: 10 }).await.unwrap();
    let ended = pod.status(&web).await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (0, "Completed"), "{ended:?}");
    pod.client.remove_container(ContainerRequest { container_id: web }).await.unwrap();
    pod.remove().await;
}

#[tokio::test]
async fn limits_and_users_are_the_containers() {
    let Some(c) = containerd() else { return };
    let core = c.guest("k8s.io", "core");
    let mut pod = Pod::run(&c).await;
    let limited = |config: &mut ContainerConfig| {
        let resources = LinuxContainerResources { memory_limit_in_bytes: 16 << 20, ..Default::default() };
        config.linux = Some(LinuxContainerConfig { resources: Some(resources), security_context: None });
    };
    let eater = pod
        .create("eater", &core, |config| {
            limited(config);
            config.args = vec!["eat".into()];
        })
        .await;
    pod.start(&eater).await;
    let ended = pod.end(&eater).await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "OOMKilled"), "{ended:?}");

    // As another user the guest's host is another user, and what it may write is that user's.
    let volume = c.path("volume");
    std::fs::create_dir(&volume).unwrap();
    std::os::unix::fs::chown(&volume, Some(1234), Some(1234)).unwrap();
    let as_user = |path: &'static str, readonly| {
        let volume = volume.display().to_string();
        move |config: &mut ContainerConfig| {
            config.args = ["write", path, "mine"].map(Into::into).into();
            config.mounts = vec![Mount { container_path: "/data".into(), host_path: volume, readonly }];
            let id = || Some(Int64Value { value: 1234 });
            let context =
                LinuxContainerSecurityContext { run_as_user: id(), run_as_group: id(), readonly_rootfs: true };
            config.linux = Some(LinuxContainerConfig { resources: None, security_context: Some(context) });
        }
    };
    for (name, path, readonly, code) in
        [("own", "/data/mine", false, 0), ("locked", "/data/other", true, 2), ("root", "/mine", false, 2)]
    {
        let id = pod.create(name, &core, as_user(path, readonly)).await;
        pod.start(&id).await;
        let ended = pod.end(&id).await;
        assert_eq!(ended.exit_code, code, "{name}: {ended:?} {}", pod.log(name));
    }
    use std::os::unix::fs::MetadataExt as _;
    assert_eq!(std::fs::metadata(volume.join("mine")).unwrap().uid(), 1234);
    // A pod that is removed with its containers running.
    let spinner = pod.create("spinner", &core, |config| config.args = vec!["spin".into()]).await;
    pod.start(&spinner).await;
    pod.remove().await;
}

/// A shim that is killed takes its pod with it, and containerd says so.
#[tokio::test]
async fn a_killed_shim_ends_its_pod() {
    let Some(c) = containerd() else { return };
    let proxy = c.guest("k8s.io", "proxy");
    let mut pod = Pod::run(&c).await;
    let web = pod.create("web", &proxy, |_| {}).await;
    pod.start(&web).await;
    let (shim, hosts) = shim_and_hosts(c.shims().first().unwrap());
    support::kill(shim);
    let ended = pod.end(&web).await;
    // containerd's own number for an end that nobody told of.
    assert_eq!(ended.exit_code, 255, "{ended:?}");
    let host = hosts.first().unwrap();
    c.until("the host to be gone", || !Path::new(&format!("/proc/{host}/exe")).exists());
    pod.remove().await;
}
