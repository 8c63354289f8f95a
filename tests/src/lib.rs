//! What end-to-end tests share: a real cluster in a directory of its own, and the real kubectl.
//!
//! `SAMPAN_BIN` and `SAMPAN_SAMPLES` name the program and the built sample workloads; `make test`
//! sets them. Everything a cluster leaves is taken away when its [`Cluster`] is dropped.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

mod http;
mod linux;
mod process;
pub mod registry;
mod segment;
mod terminal;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

pub use http::{http_get, http_post, tcp_echo};
pub use linux::runs_linux;
pub use process::{Finished, Process, run, run_with_input};
pub use segment::{Fabric, Machine, OUTSIDE, Place, makes_machines};
pub use terminal::Terminal;

/// How long anything may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The program under test.
pub fn sampan() -> PathBuf {
    from_environment("SAMPAN_BIN", "debug/sampan")
}

/// The module of a sample workload.
pub fn sample(name: &str) -> PathBuf {
    from_environment("SAMPAN_SAMPLES", "samples").join(format!("{name}.wasm"))
}

/// The folder of the repository.
pub fn repository() -> PathBuf {
    // Asked when it runs: a target directory that checkouts share may hold what another one built.
    let own = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&own).parent().unwrap().to_owned()
}

/// The manifest of a sample workload.
pub fn manifest(name: &str) -> PathBuf {
    repository().join("sample-workloads").join(name).join("deploy.yaml")
}

fn from_environment(variable: &str, below_target: &str) -> PathBuf {
    let path = match std::env::var_os(variable) {
        Some(path) => PathBuf::from(path),
        None => {
            // A test program lies in TARGET/PROFILE/deps.
            let program = std::env::current_exe().unwrap();
            program.ancestors().nth(3).unwrap().join(below_target)
        }
    };
    assert!(path.exists(), "{} is not there: run the tests through `make test`", path.display());
    path
}

/// Asks until the answer is `Some`; fails with what was waited for.
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, what, &mut ask)
}

/// As [`eventually`], with another limit.
pub fn within<T>(limit: Duration, what: &str, ask: &mut dyn FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Why the test fails: said again after all that is shown then, where somebody looks first.
static PANIC: Mutex<String> = Mutex::new(String::new());

fn remember_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            *PANIC.lock().unwrap_or_else(PoisonError::into_inner) = panic.to_string();
            before(panic);
        }));
    });
}

/// A running `sampan up` or `sampan server`, and its kubeconfig.
pub struct Cluster {
    dir: tempfile::TempDir,
    process: Option<Process>,
    arguments: Vec<String>,
    command: &'static str,
    own_disk: bool,
    place: Place,
}

impl Cluster {
    /// `sampan up` with a node, ready.
    pub fn up() -> Self {
        Self::start("up", &[])
    }

    /// `sampan server`, ready.
    pub fn server() -> Self {
        Self::start("server", &[])
    }

    /// `sampan server` in ranges that no other cluster takes while it is down; `number` (0 to 5) is the test's own.
    pub fn server_that_comes_back(number: u8) -> Self {
        let (first, second) = if rustix::process::geteuid().is_root() { (10, 200) } else { (127, 224) };
        let range = |offset| format!("{first}.{}.0.0/16", second + 2 * number + offset);
        Self::start("server", &["--cluster-cidr", &range(0), "--service-cidr", &range(1)])
    }

    /// `sampan server` on a machine, ready. Its clients run there too.
    pub fn server_on(machine: &Machine, arguments: &[&str]) -> Self {
        let listen = format!("{}:0", machine.address);
        Self::start_in(machine.place.clone(), "server", &[&["--listen", &listen], arguments].concat())
    }

    /// With further arguments.
    pub fn start(command: &'static str, arguments: &[&str]) -> Self {
        Self::start_in(Place::default(), command, &[&["--listen", "127.0.0.1:0"], arguments].concat())
    }

    fn start_in(place: Place, command: &'static str, arguments: &[&str]) -> Self {
        let mut cluster = Self::new(place, command, arguments);
        cluster.resume();
        cluster
    }

    fn new(place: Place, command: &'static str, arguments: &[&str]) -> Self {
        remember_panics();
        let dir = tempfile::Builder::new().prefix("sampan-test-").tempdir().unwrap();
        let arguments = arguments.iter().map(ToString::to_string).collect();
        Self { dir, process: None, arguments, command, own_disk: false, place }
    }

    /// `sampan up` with a disk of its own, of so many bytes; only root can have that.
    pub fn up_on_disk(bytes: u64) -> Self {
        let mut cluster = Self::new(Place::default(), "up", &["--listen", "127.0.0.1:0"]);
        let data = cluster.data_dir();
        std::fs::create_dir(&data).unwrap();
        let options = std::ffi::CString::new(format!("size={bytes},mode=700")).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", &data, "tmpfs", flags, options.as_c_str()).unwrap();
        cluster.own_disk = true;
        cluster.resume();
        cluster
    }

    /// Starts it again on the same data dir.
    pub fn resume(&mut self) {
        let data = self.data_dir();
        let mut arguments = vec![self.command, "--data-dir", data.to_str().unwrap()];
        arguments.extend(self.arguments.iter().map(String::as_str));
        let mut process = Process::spawn_in(&self.place, &sampan(), &arguments, &[]);
        process.wait_for_line("ready");
        self.process = Some(process);
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.data_dir().join("kubeconfig")
    }

    /// https://ADDRESS:PORT
    pub fn url(&self) -> String {
        let config = std::fs::read_to_string(self.kubeconfig()).unwrap();
        let start = config.find("https://").unwrap();
        config[start..].split('"').next().unwrap().to_owned()
    }

    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().unwrap()
    }

    /// SIGKILL to the program; host processes of tenants live on.
    pub fn kill(&mut self) {
        self.process.take().unwrap().kill();
    }

    /// SIGTERM, and how it ended.
    pub fn terminate(&mut self) -> Finished {
        self.process.take().unwrap().terminate()
    }

    /// What `sampan down` says, after the cluster has ended.
    pub fn down(&self) -> String {
        let finished = self.place.run(&sampan(), &["down", "--data-dir", self.data_dir().to_str().unwrap()]);
        assert!(finished.ok, "{}", finished.err);
        finished.out
    }

    /// kubectl's standard output; a failure fails the test.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        let finished = self.try_kubectl(arguments);
        assert!(finished.ok, "kubectl {arguments:?} failed:\n{}{}{}", finished.out, finished.err, self.situation());
        finished.out
    }

    pub fn try_kubectl(&self, arguments: &[&str]) -> Finished {
        self.place.run(Path::new("kubectl"), &with_kubeconfig(&self.kubeconfig(), arguments))
    }

    /// kubectl with a manifest on its standard input.
    pub fn kubectl_with(&self, manifest: &str, arguments: &[&str]) -> Finished {
        self.place.run_with_input(Path::new("kubectl"), &with_kubeconfig(&self.kubeconfig(), arguments), manifest)
    }

    /// Applies a manifest, which has to work.
    pub fn apply(&self, manifest: &str) {
        let finished = self.kubectl_with(manifest, &["apply", "-f", "-"]);
        assert!(finished.ok, "{}{}", finished.out, finished.err);
    }

    /// An object as JSON.
    pub fn get(&self, arguments: &[&str]) -> Value {
        let mut all = vec!["get", "-o", "json"];
        all.extend(arguments);
        serde_json::from_str(&self.kubectl(&all)).unwrap()
    }

    /// `sampan` as a client of this cluster.
    pub fn sampan(&self, arguments: &[&str]) -> String {
        let finished = self.try_sampan(arguments);
        assert!(finished.ok, "sampan {arguments:?} failed:\n{}{}{}", finished.out, finished.err, self.situation());
        finished.out
    }

    pub fn try_sampan(&self, arguments: &[&str]) -> Finished {
        let kubeconfig = self.kubeconfig();
        let mut all = arguments.to_vec();
        all.extend(["--kubeconfig", kubeconfig.to_str().unwrap()]);
        self.place.run(&sampan(), &all)
    }

    /// Imports a sample workload under the name of its manifest.
    pub fn import(&self, name: &str) {
        let file = sample(name);
        self.sampan(&["image", "import", file.to_str().unwrap(), "--as", &format!("localhost/{name}:v1")]);
    }

    /// Imports and applies a sample workload.
    pub fn deploy(&self, name: &str) {
        self.import(name);
        self.kubectl(&["apply", "-f", manifest(name).to_str().unwrap()]);
    }

    /// Waits for `kubectl rollout status`.
    pub fn rolled_out(&self, deployment: &str) {
        self.kubectl(&["rollout", "status", &format!("deployment/{deployment}"), "--timeout=60s"]);
    }

    /// ADDRESS of a Service.
    pub fn service_address(&self, name: &str) -> String {
        self.get(&["service", name])["spec"]["clusterIP"].as_str().unwrap().to_owned()
    }

    /// The pods that a selector picks and that are not on their way out.
    pub fn pods(&self, selector: &str) -> Vec<Value> {
        let pods = self.get(&["pods", "-l", selector]);
        let living = |pod: &&Value| pod["metadata"]["deletionTimestamp"].is_null();
        pods["items"].as_array().unwrap().iter().filter(living).cloned().collect()
    }

    /// What a person would look at when a test fails.
    pub fn situation(&self) -> String {
        let mut text = String::new();
        for arguments in [
            &["get", "nodes,pods,deployments,replicasets,endpointslices", "-A", "-o", "wide"][..],
            &["get", "events", "-A", "--sort-by=.lastTimestamp"],
        ] {
            let finished = self.try_kubectl(arguments);
            text += &format!("\n--- kubectl {}\n{}{}", arguments.join(" "), finished.out, finished.err);
        }
        if let Some(process) = &self.process {
            text += &format!("\n--- log\n{}", process.log());
        }
        text
    }
}

fn with_kubeconfig<'a>(kubeconfig: &'a Path, arguments: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec!["--kubeconfig", kubeconfig.to_str().unwrap()];
    all.extend(arguments);
    all
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let why = PANIC.lock().unwrap_or_else(PoisonError::into_inner);
            eprintln!("{}\n--- failed\n{why}", self.situation());
        }
        if let Some(process) = self.process.take() {
            process.terminate();
        }
        // Whatever a killed one left.
        let _ = self.place.run(&sampan(), &["down", "--data-dir", self.data_dir().to_str().unwrap()]);
        if self.own_disk {
            let _ = rustix::mount::unmount(self.data_dir(), rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// A `sampan node` of a cluster.
pub struct Node {
    dir: tempfile::TempDir,
    process: Option<Process>,
    place: Place,
    pub name: String,
}

impl Node {
    /// Joins with a new token, ready.
    pub fn join(cluster: &Cluster, name: &str) -> Self {
        let mut node = Self::join_from(Place::default(), cluster, name, &[]);
        node.ready();
        node
    }

    /// Begins to join from a machine; [`Self::ready`] waits for it.
    pub fn join_on(machine: &Machine, cluster: &Cluster, name: &str, more: &[&str]) -> Self {
        Self::join_from(machine.place.clone(), cluster, name, more)
    }

    fn join_from(place: Place, cluster: &Cluster, name: &str, more: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("sampan-test-").tempdir().unwrap();
        let token = cluster.sampan(&["token", "create"]);
        let data = dir.path().join("data");
        let url = cluster.url();
        let arguments = [
            "node",
            "--data-dir",
            data.to_str().unwrap(),
            "--server",
            &url,
            "--token",
            token.trim(),
            "--node-name",
            name,
        ];
        let process = Process::spawn_in(&place, &sampan(), &[&arguments, more].concat(), &[]);
        Self { dir, process: Some(process), place, name: name.to_owned() }
    }

    pub fn ready(&mut self) {
        self.process.as_mut().unwrap().wait_for_line("ready");
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// SIGKILL to the program; what it started lives on.
    pub fn kill(&mut self) {
        self.process.take().unwrap().kill();
    }

    /// What `sampan down` says, after the node has ended.
    pub fn down(&self) -> String {
        let finished = self.place.run(&sampan(), &["down", "--data-dir", self.data_dir().to_str().unwrap()]);
        assert!(finished.ok, "{}", finished.err);
        finished.out
    }

    /// SIGKILL, and everything of the node gone as when a machine loses power.
    pub fn lose_power(&mut self) {
        self.kill();
        self.down();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(process) = self.process.take() {
            if std::thread::panicking() {
                eprintln!("--- log of node {}\n{}", self.name, process.log());
            }
            process.terminate();
        }
        let _ = self.place.run(&sampan(), &["down", "--data-dir", self.data_dir().to_str().unwrap()]);
    }
}
