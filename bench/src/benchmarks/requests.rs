//! Requests to guests: directly, through Services, and beside other servers of HTTP.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, Command};

use super::{Context, each, hello};
use crate::cluster::Cluster;
use crate::load::{self, Load, Outcome};
use crate::peers::{self, Nginx};
use crate::process;
use crate::row::{Reach, Row};

const RUNS: usize = 3;
const SECONDS: f64 = 4.0;
const CONNECTIONS: usize = 16;
/// A limit is metered however high it is; this one does not throttle.
const CPU: &str = "64";
const NOBODY: u32 = 65534;

async fn load(authority: &str) -> Result<Outcome> {
    load::run(&Load::Plain { authority: authority.to_owned(), connections: CONNECTIONS, seconds: SECONDS }).await
}

/// A cluster with one pod of hello, and its address.
async fn one_pod(context: &Context, cluster: &Cluster) -> Result<String> {
    hello::import(context, cluster).await?;
    hello::deploy(&mut cluster.api()?.connect().await?, 1, false, CPU).await?;
    let addresses = hello::addresses(cluster, 1).await?;
    let address = addresses.into_iter().next().context("no pod")?;
    hello::answers(&address).await?;
    Ok(address)
}

pub async fn hello(context: &Context) -> Result<Vec<Row>> {
    let cluster = Cluster::start(&context.program, "up", &[]).await?;
    let pod = one_pod(context, &cluster).await?;
    let plain = Server::start(Command::new(std::env::current_exe()?).arg("serve"), Output::Standard, "").await?;
    let wasmtime = match peers::find("wasmtime") {
        Some(program) => Some(Server::wasmtime(&program, &context.samples.join("hello.wasm")).await?),
        None => None,
    };
    let nginx = Nginx::start()?;
    if let Some(nginx) = &nginx {
        hello::answers(&nginx.authority).await?;
    }
    let (mut ours, mut bare, mut other, mut theirs) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let hosts =
        || process::running(&context.program).iter().map(|pid| process::cpu_seconds(&pid.to_string())).sum::<f64>();
    let mut cpu = 0.0;
    for _ in 0..RUNS {
        let before = hosts();
        ours.push(load(&pod).await?);
        cpu += hosts() - before;
        bare.push(load(&plain.authority).await?);
        if let Some(wasmtime) = &wasmtime {
            other.push(load(&wasmtime.authority).await?);
        }
        if let Some(nginx) = &nginx {
            theirs.push(load(&nginx.authority).await?);
        }
    }
    let requests: u64 = ours.iter().map(|run| run.operations).sum();
    let row = |reach| Row::new("rps_hello", "requests/s", each(&ours, Outcome::rate), reach);
    let mut first = row(Reach::TimesPeer(3.0));
    if let Some(wasmtime) = &wasmtime {
        first = first.peer(wasmtime.name.clone(), each(&other, Outcome::rate));
    }
    if let Some(last) = ours.last() {
        first = first
            .note(format!("p50 {:.2} ms, p99 {:.2} ms", last.percentile(50), last.percentile(99)))
            .note(format!("{:.0} µs of processor time a request", cpu * 1e6 / requests.max(1) as f64))
            .note(last.cost());
    }
    let second = row(Reach::TimesPeer(0.4)).peer("the same HTTP server without Wasm", each(&bare, Outcome::rate));
    let third = nginx.map(|nginx| {
        row(Reach::None).peer(format!("nginx {}, the same text", nginx.version), each(&theirs, Outcome::rate))
    });
    Ok([first, second].into_iter().chain(third).collect())
}

pub async fn service(context: &Context) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let root = rustix::process::geteuid().is_root();
    if root {
        let cluster = Cluster::start(&context.program, "up", &[]).await?;
        rows.push(through_service(context, &cluster, "nftables", 0.9).await?);
    }
    let cluster = match root {
        true => Cluster::start_as_user(&context.program, NOBODY, "up", &[]).await?,
        false => Cluster::start(&context.program, "up", &[]).await?,
    };
    rows.push(through_service(context, &cluster, "the userspace proxy", 0.6).await?);
    Ok(rows)
}

async fn through_service(context: &Context, cluster: &Cluster, way: &str, times: f64) -> Result<Row> {
    let pod = one_pod(context, cluster).await?;
    let service = hello::expose(&mut cluster.api()?.connect().await?, "hello").await?;
    hello::answers(&service).await?;
    let (mut through, mut direct) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        through.push(load(&service).await?);
        direct.push(load(&pod).await?);
    }
    Ok(Row::new("rps_service", "requests/s", each(&through, Outcome::rate), Reach::TimesPeer(times))
        .peer("the same pod, directly", each(&direct, Outcome::rate))
        .note(format!("through {way}")))
}

/// A server beside us, ended when dropped.
struct Server {
    name: String,
    authority: String,
    _child: Child,
}

enum Output {
    Standard,
    Error,
}

impl Server {
    /// Starts a program that prints the address it listens at behind `before`.
    async fn start(command: &mut Command, output: Output, before: &str) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(if matches!(output, Output::Error) { Stdio::piped() } else { Stdio::inherit() })
            .kill_on_drop(true)
            .spawn()?;
        let stdout = child.stdout.take().map(|out| Box::new(out) as Box<dyn AsyncRead + Unpin>);
        let stderr = child.stderr.take().map(|err| Box::new(err) as Box<dyn AsyncRead + Unpin>);
        let text = if matches!(output, Output::Error) { stderr } else { stdout };
        let mut lines = BufReader::new(text.context("no output")?).lines();
        let address = async {
            while let Some(line) = lines.next_line().await? {
                let found = line.find(before).map(|at| line.split_at(at + before.len()).1);
                if let Some(address) = found.map(|rest| rest.trim_end_matches('/').trim())
                    && address.parse::<std::net::SocketAddr>().is_ok()
                {
                    return Ok(address.to_owned());
                }
            }
            Err(anyhow!("{command:?} ended before it told its address"))
        };
        let authority = tokio::time::timeout(Duration::from_secs(30), address).await.context("no address told")??;
        Ok(Self { name: String::new(), authority, _child: child })
    }

    async fn wasmtime(program: &Path, module: &Path) -> Result<Self> {
        let version = Command::new(program).arg("--version").output().await?;
        let version = String::from_utf8_lossy(&version.stdout);
        let number = version.split_whitespace().nth(1).unwrap_or("of an unknown version").to_owned();
        let mut command = Command::new(program);
        command.args(["serve", "-Scli", "--addr", "127.0.0.1:0"]).arg(module);
        let server = Self::start(&mut command, Output::Error, "http://").await?;
        Ok(Self { name: format!("wasmtime serve {number}"), ..server })
    }
}
