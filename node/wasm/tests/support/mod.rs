//! A host process with its tenant's directory, guests to run in it, and a runner that nextest can
//! list and call.

use std::ffi::OsString;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sampan_wasm::launch::{self, Host, HostConfig};
use sampan_wasm::proto::{ContainerSpec, ContainerStatus, Empty, RemoveRequest, State, StopRequest};
use sampan_wasm::{Cache, compile};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(20);
const PORT: u32 = 8080;

pub type Test = (&'static str, Box<dyn Fn() -> Pin<Box<dyn Future<Output = ()>>>>);

pub fn test<F: Future<Output = ()> + 'static>(name: &'static str, body: fn() -> F) -> Test {
    (name, Box::new(move || Box::pin(body())))
}

/// As much of a test harness as `cargo test` and nextest ask for; also the two subcommands.
pub fn run_tests(tests: &[Test]) -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("wasm-host") => return code(sampan_wasm::host::main(arguments[1..].to_vec())),
        Some("wasm-compile") => return code(compile::main(arguments[1..].to_vec())),
        _ => {}
    }
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    if has("--list") {
        if !has("--ignored") {
            tests.iter().for_each(|(name, _)| println!("{name}: test"));
        }
        return ExitCode::SUCCESS;
    }
    let wanted: Vec<_> = arguments.iter().filter(|argument| !argument.starts_with("--")).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    for (name, body) in tests {
        let chosen = |filter: &&String| match has("--exact") {
            true => filter.as_str() == *name,
            false => name.contains(filter.as_str()),
        };
        if !has("--ignored") && (wanted.is_empty() || wanted.iter().any(chosen)) {
            runtime.block_on(body());
            println!("test {name} ... ok");
        }
    }
    ExitCode::SUCCESS
}

fn code(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn own(subcommand: &str) -> Vec<OsString> {
    vec!["/proc/self/exe".into(), subcommand.into()]
}

pub struct Fixture {
    pub config: HostConfig,
    pub host: Host,
    cache: Cache,
    dir: TempDir,
    count: AtomicU32,
}

impl Fixture {
    pub async fn start() -> Fixture {
        Fixture::start_with(|_| {}).await
    }

    pub async fn start_with(change: impl FnOnce(&mut HostConfig)) -> Fixture {
        // 0700 and longer than a socket's path may be.
        let dir = tempfile::Builder::new().prefix(&"long-".repeat(24)).tempdir().unwrap();
        let tenants = dir.path().join("tenants");
        std::fs::create_dir(&tenants).unwrap();
        let options = compile::Options { command: own("wasm-compile"), ..Default::default() };
        let cache = Cache::open(dir.path().join("modules"), options).unwrap();
        let mut config = HostConfig::new("default", tenants.join("default"), cache.dir());
        config.command = own("wasm-host");
        config.cluster_ranges = vec!["127.64.0.0/10".parse().unwrap()];
        change(&mut config);
        // As the agent makes one for every container.
        let container = config.tenant_dir.join("pods/c");
        std::fs::create_dir_all(&container).unwrap();
        if let Some((user, group)) = config.user {
            std::os::unix::fs::chown(&container, Some(user), Some(group)).unwrap();
        }
        let host = launch::ensure(&config).await.unwrap();
        Fixture { config, host, cache, dir, count: AtomicU32::new(1) }
    }

    pub fn tenant(&self) -> PathBuf {
        self.config.tenant_dir.clone()
    }

    /// The address of a container's pod: of this test alone, and of no other container.
    pub fn pod(&self, id: &str) -> IpAddr {
        let number: u32 = id.parse().unwrap_or(0);
        let process = std::process::id();
        IpAddr::V4(Ipv4Addr::from((127 << 24) | (64 << 16) | (process & 0x3fff) << 8 | (number & 0xff)))
    }

    pub fn address(&self, status: &ContainerStatus) -> SocketAddr {
        let port = u16::try_from(status.http_port).unwrap();
        SocketAddr::new(self.pod(&status.id), port)
    }

    async fn guest(&self, name: &str) -> sampan_wasm::Module {
        let source = self.dir.path().join(format!("{name}.wasm"));
        if !source.exists() {
            let packed = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap())
                .join("tests/guests")
                .join(format!("{name}.wasm.gz"));
            let unpacked = std::process::Command::new("gzip").arg("-dc").arg(packed).output().unwrap();
            assert!(unpacked.status.success());
            std::fs::write(&source, unpacked.stdout).unwrap();
        }
        self.cache.ensure(name, &source).await.unwrap()
    }

    /// What compiling these bytes is refused with.
    pub async fn wasm_error(&self, bytes: &[u8]) -> String {
        let source = self.dir.path().join("bad.wasm");
        std::fs::write(&source, bytes).unwrap();
        self.cache.ensure("bad", &source).await.unwrap_err().to_string()
    }

    pub async fn spec(&self, id: &str, guest: &str, arguments: &[&str]) -> ContainerSpec {
        let module = self.guest(guest).await;
        let arguments = arguments.iter().map(|argument| argument.to_string());
        ContainerSpec {
            id: id.into(),
            module: module.file,
            kind: module.kind as i32,
            args: std::iter::once(guest.to_owned()).chain(arguments).collect(),
            addresses: vec![self.pod(id).to_string()],
            http_port: PORT,
            log_path: format!("pods/c/{id}.log"),
            exit_path: format!("pods/c/{id}.exit"),
            ..ContainerSpec::default()
        }
    }

    pub async fn start_spec(&self, spec: ContainerSpec) -> ContainerStatus {
        self.host.client().start(spec).await.unwrap().into_inner()
    }

    pub async fn run(
        &self,
        guest: &str,
        arguments: &[&str],
        change: impl FnOnce(&mut ContainerSpec),
    ) -> ContainerStatus {
        let id = self.count.fetch_add(1, Ordering::Relaxed).to_string();
        let mut spec = self.spec(&id, guest, arguments).await;
        change(&mut spec);
        self.start_spec(spec).await
    }

    pub async fn list(&self) -> Vec<ContainerStatus> {
        self.host.client().list(Empty {}).await.unwrap().into_inner().items
    }

    /// Waits for a container's end, told by the watch.
    pub async fn wait(&self, id: &str) -> ContainerStatus {
        let mut watch = self.host.client().watch(Empty {}).await.unwrap().into_inner();
        let ended = async {
            loop {
                let status = watch.message().await.unwrap().unwrap();
                if status.id == id && status.state() == State::Exited {
                    return status;
                }
            }
        };
        tokio::time::timeout(PATIENCE, ended).await.unwrap_or_else(|_| panic!("{id} does not end"))
    }

    pub async fn stop(&self, id: &str, grace_seconds: u32) -> ContainerStatus {
        let request = StopRequest { id: id.into(), grace_seconds };
        self.host.client().stop(request).await.unwrap().into_inner()
    }

    pub async fn remove(&self, id: &str) {
        self.host.client().remove(RemoveRequest { id: id.into() }).await.unwrap();
    }

    pub async fn cpu(&self, id: &str) -> u64 {
        let stats = self.host.client().stats(Empty {}).await.unwrap().into_inner();
        stats.items.iter().find(|item| item.id == id).unwrap().cpu_nanoseconds
    }

    pub fn log(&self, id: &str) -> String {
        std::fs::read_to_string(self.tenant().join(format!("pods/c/{id}.log"))).unwrap_or_default()
    }

    pub async fn log_until(&self, id: &str, text: &str) {
        let found = async {
            while !self.log(id).contains(text) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let result = tokio::time::timeout(PATIENCE, found).await;
        assert!(result.is_ok(), "no {text:?} in {:?}", self.log(id));
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.host.identity.signal(rustix::process::Signal::KILL);
    }
}

pub async fn get(fixture: &Fixture, proxy: &ContainerStatus, path: &str) -> (u16, String) {
    request(fixture.address(proxy), "GET", path, b"").await.unwrap()
}

/// One HTTP/1.1 request on a connection of its own.
pub async fn request(address: SocketAddr, method: &str, path: &str, body: &[u8]) -> std::io::Result<(u16, String)> {
    use http_body_util::{BodyExt as _, Full};
    let stream = tokio::net::TcpStream::connect(address).await?;
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.map_err(std::io::Error::other)?;
    tokio::spawn(connection);
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("host", address.to_string())
        .body(Full::new(bytes::Bytes::copy_from_slice(body)))
        .map_err(std::io::Error::other)?;
    let response = sender.send_request(request).await.map_err(std::io::Error::other)?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.map_err(std::io::Error::other)?.to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}
