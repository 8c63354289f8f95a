//! A containerd of the test's own: private directories, socket and network namespace, and images
//! made here. All of it goes with the test, whether that passes or not.
#![allow(dead_code)]

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

pub const RUNTIME: &str = "io.containerd.sampan.v1";
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The part of CRI that is spoken here.
pub mod cri {
    #![allow(clippy::all, missing_docs)]
    tonic::include_proto!("runtime.v1");
}

pub struct Containerd {
    pub dir: TempDir,
    process: Child,
}

fn spawn(dir: &Path) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(dir.join("containerd.log")).unwrap();
    let own = Path::new(env!("CARGO_BIN_EXE_containerd-shim-sampan-v1")).parent().unwrap().display();
    let mut command = Command::new("containerd");
    command
        .args(["--config", &dir.join("config.toml").display().to_string(), "--log-level", "warn"])
        .env("PATH", format!("{own}:{}", std::env::var("PATH").unwrap_or_default()))
        .env("SAMPAN_SHIM_STATE", dir.join("shims"))
        .env("SAMPAN_SHIM_CACHE", dir.join("cache"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log);
    // SAFETY: one system call, which is safe between fork and exec.
    unsafe {
        command.pre_exec(|| Ok(nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?));
    }
    command.spawn().unwrap()
}

/// `None`, with the reason said, where no containerd can run.
pub fn containerd() -> Option<Containerd> {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can run containerd");
        return None;
    }
    if Command::new("containerd").arg("--version").output().is_err() {
        println!("skipped: containerd is not installed");
        return None;
    }
    Some(Containerd::start())
}

impl Containerd {
    fn start() -> Containerd {
        let dir = tempfile::Builder::new().prefix("shim-").tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        std::fs::create_dir(dir.path().join("cni")).unwrap();
        // The whole network is this test's own: so may its addresses be.
        let network = format!(
            r#"{{"cniVersion":"0.4.0","name":"pods","plugins":[{{"type":"ptp","ipam":{{"type":"host-local",
            "dataDir":"{}","ranges":[[{{"subnet":"10.88.0.0/24"}}]],"routes":[{{"dst":"0.0.0.0/0"}}]}}}}]}}"#,
            at("ipam")
        );
        std::fs::write(dir.path().join("cni/10-pods.conflist"), network).unwrap();
        let config = format!(
            r#"
version = 2
root = "{root}"
state = "{state}"
[grpc]
address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "localhost/pause:test"
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
stream_server_port = "0"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{cni}"
[plugins."io.containerd.grpc.v1.cri".containerd]
default_runtime_name = "sampan"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.sampan]
runtime_type = "{RUNTIME}"
pod_annotations = ["sampan.dev/*"]
"#,
            root = at("root"),
            state = at("state"),
            socket = at("c.sock"),
            cni = at("cni"),
        );
        std::fs::write(dir.path().join("config.toml"), config).unwrap();
        let process = spawn(dir.path());
        let containerd = Containerd { dir, process };
        containerd.until("containerd to answer", || containerd.ctr(&["version"]).status.success());
        let lo = containerd.inside(&["ip", "link", "set", "lo", "up"]);
        assert!(lo.status.success(), "{lo:?}");
        containerd
    }

    /// Kills it as a crash would, and starts it again.
    pub fn restart(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.process = spawn(self.dir.path());
        self.until("containerd to answer again", || self.ctr(&["version"]).status.success());
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("containerd.log")).unwrap_or_default()
    }

    pub fn ctr(&self, arguments: &[&str]) -> Output {
        self.ctr_in("default", arguments)
    }

    pub fn ctr_in(&self, namespace: &str, arguments: &[&str]) -> Output {
        self.command(namespace, arguments).output().unwrap()
    }

    pub fn command(&self, namespace: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.path("c.sock")).args(["--namespace", namespace]).args(arguments);
        command.stdin(Stdio::null());
        command
    }

    /// `ctr run` with our runtime; its output and exit code are the container's.
    pub fn run(&self, options: &[&str], rest: &[&str]) -> Output {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let cgroup = format!("/{}/{}", self.group(), COUNT.fetch_add(1, Ordering::Relaxed));
        self.ctr(&[&["run", "--runtime", RUNTIME, "--cgroup", &cgroup], options, rest].concat())
    }

    /// Runs a program in the network namespace of a process; 0: containerd's.
    pub fn nsenter(&self, pid: u32, arguments: &[&str]) -> Output {
        let pid = if pid == 0 { self.process.id() } else { pid };
        Command::new("nsenter").arg(format!("--net=/proc/{pid}/ns/net")).args(arguments).output().unwrap()
    }

    pub fn inside(&self, arguments: &[&str]) -> Output {
        self.nsenter(0, arguments)
    }

    /// GET in a process's network namespace: the body, or nothing.
    pub fn get(&self, pid: u32, url: &str) -> String {
        let output = self.nsenter(pid, &["curl", "--silent", "--show-error", "--max-time", "20", url]);
        text(&output.stdout)
    }

    /// The process id that a task has, by `ctr task list`.
    pub fn pid(&self, id: &str) -> u32 {
        let list = text(&self.ctr(&["task", "list"]).stdout);
        let line = list.lines().find(|line| line.split_whitespace().next() == Some(id));
        line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or_else(|| panic!("{id} in {list}"))
    }

    /// RUNNING, STOPPED, or nothing.
    pub fn status(&self, id: &str) -> String {
        let list = text(&self.ctr(&["task", "list"]).stdout);
        let line = list.lines().find(|line| line.split_whitespace().next() == Some(id));
        line.and_then(|line| line.split_whitespace().nth(2)).unwrap_or_default().to_owned()
    }

    /// Asks again until it is so: for what nobody tells of.
    pub fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        let begin = Instant::now();
        while !is_so() {
            assert!(begin.elapsed() < PATIENCE, "waited for {what}; {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Directories of pods whose shim has not cleaned up.
    pub fn shims(&self) -> Vec<PathBuf> {
        std::fs::read_dir(self.path("shims")).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    }

    /// Nothing may be left of any pod: files, mounts, processes, control groups.
    pub fn assert_clean(&self) {
        self.until("shims to be gone", || self.shims().is_empty());
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let shims = self.path("shims").display().to_string();
        assert!(!mounts.contains(&shims), "{mounts}");
        self.until("processes to be gone", || self.processes().is_empty());
        for controller in ["memory", "cpu", "cpuacct", "."] {
            let group = Path::new("/sys/fs/cgroup").join(controller).join(self.group());
            // The parent is whoever's chose the name; ours to remove, which it lets us if it is empty.
            let gone = std::fs::remove_dir(&group);
            assert!(!group.exists(), "{}: {gone:?}", group.display());
        }
    }

    /// Our programs' processes that belong to this containerd: by the state directory in their
    /// environment, or the network namespace.
    pub fn processes(&self) -> Vec<u32> {
        let state = format!("SAMPAN_SHIM_STATE={}\0", self.path("shims").display());
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
            let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let ours = environment.windows(state.len()).any(|part| part == state.as_bytes());
            if ours && pid != self.process.id() && !line.is_empty() && !text(&line).starts_with("containerd\0") {
                found.push(pid);
            }
        }
        found
    }

    /// Makes an image that holds these files and imports it.
    pub fn image(&self, namespace: &str, name: &str, platform: (&str, &str), files: &[(&str, &[u8])], entry: &[&str]) {
        let work = tempfile::tempdir().unwrap();
        let root = work.path().join("root");
        for (path, content) in files {
            let path = root.join(path.trim_start_matches('/'));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        let tar = |from: &Path, to: &Path| {
            let done = Command::new("tar").arg("-cf").arg(to).arg("-C").arg(from).arg(".").status().unwrap();
            assert!(done.success());
        };
        let layer = work.path().join("layer.tar");
        tar(&root, &layer);
        let layout = work.path().join("layout");
        std::fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
        let blob = |content: &[u8]| {
            let digest: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
            std::fs::File::create(layout.join("blobs/sha256").join(&digest)).unwrap().write_all(content).unwrap();
            (format!("sha256:{digest}"), content.len())
        };
        let (layer, layer_size) = blob(&std::fs::read(&layer).unwrap());
        let (system, processor) = platform;
        let config = serde_json::json!({
            "os": system, "architecture": processor, "config": {"Entrypoint": entry},
            "rootfs": {"type": "layers", "diff_ids": [layer]},
        });
        let (config, config_size) = blob(config.to_string().as_bytes());
        let kind = |kind: &str| format!("application/vnd.oci.image.{kind}");
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": kind("manifest.v1+json"),
            "config": {"mediaType": kind("config.v1+json"), "digest": config, "size": config_size},
            "layers": [{"mediaType": kind("layer.v1.tar"), "digest": layer, "size": layer_size}],
        });
        let (manifest, manifest_size) = blob(manifest.to_string().as_bytes());
        let index = serde_json::json!({
            "schemaVersion": 2, "manifests": [{
                "mediaType": kind("manifest.v1+json"), "digest": manifest, "size": manifest_size,
                "platform": {"os": system, "architecture": processor},
                "annotations": {"io.containerd.image.name": name},
            }],
        });
        std::fs::write(layout.join("index.json"), index.to_string()).unwrap();
        std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let archive = work.path().join("image.tar");
        tar(&layout, &archive);
        let archive = archive.display().to_string();
        let imported = self.ctr_in(namespace, &["images", "import", "--all-platforms", &archive]);
        assert!(imported.status.success(), "{}", text(&imported.stderr));
    }

    /// An image of one of the Wasm host's test guests: `core`, `command` or `proxy`.
    pub fn guest(&self, namespace: &str, name: &str) -> String {
        let image = format!("localhost/{name}:test");
        let file = format!("/{name}.wasm");
        self.image(namespace, &image, ("linux", "amd64"), &[(&file, &wasm(name)), ("/etc/motd", b"moin\n")], &[&file]);
        image
    }

    pub async fn cri(&self) -> cri::runtime_service_client::RuntimeServiceClient<Channel> {
        let path = self.path("c.sock");
        let connect = tower::service_fn(move |_| {
            let path = path.clone();
            async move { tokio::net::UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://cri").connect_with_connector(connect).await.unwrap();
        cri::runtime_service_client::RuntimeServiceClient::new(channel)
    }
}

/// A guest's bytes.
pub fn wasm(name: &str) -> Vec<u8> {
    let packed = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../node/wasm/tests/guests/{name}.wasm.gz"));
    let unpacked = Command::new("gzip").arg("-dc").arg(packed).output().unwrap();
    assert!(unpacked.status.success());
    unpacked.stdout
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn kill(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("containerd said:\n{}", self.log());
            for dir in self.shims() {
                for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
                    let log = std::fs::read_to_string(entry.path().join("host.log")).unwrap_or_default();
                    print!("{log}");
                }
            }
        }
        // First who would start again or clean up, then those it leaves behind.
        let _ = self.process.kill();
        let _ = self.process.wait();
        for record in self.shims().iter().flat_map(|dir| records(dir)) {
            kill(record);
        }
        for pid in self.processes() {
            kill(pid);
        }
        self.remove_groups();
        for _ in 0..5 {
            let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
            let own = self.dir.path().display().to_string();
            let points: Vec<&str> = table.lines().filter_map(|line| line.split(' ').nth(4)).collect();
            for point in points.iter().rev().filter(|point| point.starts_with(&own)) {
                let _ = nix::mount::umount2(*point, nix::mount::MntFlags::MNT_DETACH);
            }
        }
    }
}

impl Containerd {
    /// The control group that a test gives its pods: of this containerd alone.
    pub fn group(&self) -> String {
        format!("sampan-{}", self.dir.path().file_name().unwrap().display())
    }

    fn remove_groups(&self) {
        for controller in ["memory", "cpu", "cpuacct", "."] {
            let group = Path::new("/sys/fs/cgroup").join(controller).join(self.group());
            let inner = std::fs::read_dir(&group).into_iter().flatten().flatten();
            inner.filter(|entry| entry.path().is_dir()).for_each(|entry| drop(std::fs::remove_dir(entry.path())));
            let _ = std::fs::remove_dir(&group);
        }
    }
}

/// Process ids of a pod's shim and hosts.
fn records(dir: &Path) -> Vec<u32> {
    let mut files = vec![dir.join("shim.json")];
    files.extend(std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path().join("host.json")));
    let pid = |file: PathBuf| {
        let record: serde_json::Value = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
        u32::try_from(record.get("pid")?.as_u64()?).ok()
    };
    files.into_iter().filter_map(pid).collect()
}

/// The shim's process id of a pod's directory, and its hosts'.
pub fn shim_and_hosts(dir: &Path) -> (u32, Vec<u32>) {
    let mut all = records(dir);
    let shim = all.remove(0);
    (shim, all)
}
