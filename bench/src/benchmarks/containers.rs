//! One pod, four ways: the node's own Wasm host, the same module by the shim under a containerd, and a
//! Linux container by runc and by crun. All through the API, one after the other, create to Ready.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use sampan_oci::layout::{Layer, Layout};
use sampan_oci::{Containerd, Installed, testing};
use serde_json::{Value, json};

use super::{Context, hello, pods};
use crate::cluster::Cluster;
use crate::process;
use crate::row::{Reach, Row, quantile};

const PODS: usize = 20;
const LINUX: &str = "localhost/bench/httpd:1";
const SHIM: &str = "localhost/bench/hello:1";
/// What runs a pod, and in it, by the beginning of its name.
const OF_PODS: &[&str] = &["containerd-shim", "pause", "httpd", "busybox"];
const START: Duration = Duration::from_secs(30);

/// Milliseconds of each start, and KiB of memory a pod.
struct Measured {
    times: Vec<f64>,
    memory: f64,
}

pub async fn run(context: &Context) -> Result<Vec<Row>> {
    ensure!(rustix::process::geteuid().is_root(), "Linux containers want root");
    let installed = Installed::find()?;
    let cluster = Cluster::start(&context.program, "up", &[]).await?;
    hello::import(context, &cluster).await?;
    let host = measure(context, &cluster, "host", &hello::spec(false, "500m")).await?;
    import(&cluster, &testing::busybox()?.cmd(&["httpd", "-f", "-p", "8080"]), LINUX).await?;
    let mut linux = Vec::new();
    for (handler, found) in [("runc", installed.runc.is_some()), ("crun", installed.crun.is_some())] {
        if found {
            linux.push((handler, with_class(context, &cluster, handler, LINUX).await?));
        }
    }
    drop(cluster);
    let own = Shims::start(context, &installed).await?;
    let socket = own.socket();
    let cluster = Cluster::start(&context.program, "up", &["--containerd", text(&socket)?]).await?;
    own.import(context).await?;
    let shim = with_class(context, &cluster, "sampan", SHIM).await?;
    drop(cluster);

    let row = |name, unit, of: &dyn Fn(&Measured) -> Vec<f64>, own: &Measured| {
        let all: Vec<String> =
            linux.iter().map(|(handler, measured)| format!("{handler} {:.1}", quantile(&of(measured), 0.5))).collect();
        let row = Row::new(name, unit, of(own), Reach::None).note(all.join(", "));
        match linux.first() {
            Some((handler, measured)) => row.peer(*handler, of(measured)),
            None => row,
        }
    };
    let (times, memory) = (|it: &Measured| it.times.clone(), |it: &Measured| vec![it.memory]);
    Ok(vec![
        row("pod_start_host_ms", "ms", &times, &host),
        row("pod_start_shim_ms", "ms", &times, &shim),
        row("pod_memory_host_kib", "KiB", &memory, &host),
        row("pod_memory_shim_kib", "KiB", &memory, &shim),
    ])
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path is not UTF-8")
}

async fn import(cluster: &Cluster, image: &Layout, reference: &str) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let archive = dir.path().join("image.tar");
    testing::save(image, &archive)?;
    cluster.sampan(&["image", "import", text(&archive)?, "--as", reference]).await?;
    Ok(())
}

async fn with_class(context: &Context, cluster: &Cluster, handler: &str, image: &str) -> Result<Measured> {
    let class = json!({ "metadata": { "name": handler }, "handler": handler });
    cluster.api()?.connect().await?.create("/apis/node.k8s.io/v1/runtimeclasses", &class).await?;
    let container = json!({
        "name": "main", "image": image, "imagePullPolicy": "Never", "ports": [{ "containerPort": 8080 }],
        "resources": {
            "requests": { "cpu": "0", "memory": "256Ki" },
            "limits": { "cpu": "500m", "memory": "64Mi" },
        },
    });
    let spec = json!({
        "runtimeClassName": handler, "containers": [container], "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": false,
    });
    measure(context, cluster, handler, &spec).await
}

/// The first pod brings what later ones share, and does not count.
async fn measure(context: &Context, cluster: &Cluster, name: &str, spec: &Value) -> Result<Measured> {
    let server = cluster.pid()?;
    let memory = || {
        let hosts = [&context.program, &context.program.with_file_name("containerd-shim-sampan-v1")];
        let hosts = hosts.into_iter().flat_map(|program| process::running(program));
        let of_pods: BTreeSet<u32> = process::named(OF_PODS).into_iter().chain(hosts).collect();
        process::proportional_kib(&of_pods.into_iter().filter(|pid| *pid != server).collect::<Vec<_>>())
    };
    pods::start(cluster, &format!("{name}-first"), 1, spec).await?;
    let before = memory();
    let times = pods::start(cluster, name, PODS, spec).await?;
    Ok(Measured { times, memory: memory().saturating_sub(before) as f64 / PODS as f64 })
}

/// A containerd that has nothing but the shim, as somebody else's would have it.
struct Shims {
    dir: tempfile::TempDir,
    child: std::process::Child,
}

impl Shims {
    async fn start(context: &Context, installed: &Installed) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("sampan-bench-").tempdir()?;
        let at = |name: &str| dir.path().join(name).display().to_string();
        std::fs::create_dir(dir.path().join("cni"))?;
        let network = json!({ "cniVersion": "0.4.0", "name": "bench", "plugins": [{ "type": "ptp", "ipam": {
            "type": "host-local", "dataDir": at("ipam"), "ranges": [[{ "subnet": "10.88.77.0/24" }]] } }] });
        std::fs::write(dir.path().join("cni/10-bench.conflist"), network.to_string())?;
        let config = format!(
            r#"
version = 2
root = {root:?}
state = {state:?}
[grpc]
address = {socket:?}
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
stream_server_port = "0"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = {plugins:?}
conf_dir = {cni:?}
[plugins."io.containerd.grpc.v1.cri".containerd]
default_runtime_name = "sampan"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.sampan]
runtime_type = "io.containerd.sampan.v1"
"#,
            root = at("root"),
            state = at("state"),
            socket = at("c.sock"),
            pause = sampan_oci::PAUSE_IMAGE,
            plugins = installed.cni_plugins,
            cni = at("cni"),
        );
        std::fs::write(dir.path().join("config.toml"), config)?;
        let log = std::fs::File::create(dir.path().join("log"))?;
        // The shim lies beside the program.
        let own = context.program.parent().context("the program lies in no folder")?.display();
        let child = std::process::Command::new(&installed.containerd)
            .args(["--config", &at("config.toml"), "--log-level", "warn"])
            .env("PATH", format!("{own}:{}", std::env::var("PATH").unwrap_or_default()))
            .env("SAMPAN_SHIM_STATE", at("shims"))
            .env("SAMPAN_SHIM_CACHE", at("cache"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let this = Self { dir, child };
        let begun = Instant::now();
        while let Err(error) = this.connect().await {
            ensure!(begun.elapsed() < START, "containerd does not answer: {error:#}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(this)
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("c.sock")
    }

    async fn connect(&self) -> Result<Containerd> {
        let client = Containerd::connect(&self.socket()).await?;
        client.settings().await?;
        Ok(client)
    }

    /// The module in an image of the machine's own kind, as containerd 1.6 wants it.
    async fn import(&self, context: &Context) -> Result<()> {
        let mut layer = Layer::new();
        layer.file("hello.wasm", 0o644, &std::fs::read(context.samples.join("hello.wasm"))?)?;
        let image = Layout::new().layer(layer)?.entrypoint(&["/hello.wasm"]);
        let archive = self.dir.path().join("hello.tar");
        testing::save(&image, &archive)?;
        self.connect().await?.import(&archive, SHIM).await?;
        Ok(())
    }
}

impl Drop for Shims {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let _ = self.child.wait();
    }
}
