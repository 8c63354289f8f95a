//! A real cluster in a directory of its own; what it leaves is taken away when it is dropped.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::client::Api;

const READY: Duration = Duration::from_secs(60);
/// `up` promises to end within 15 s.
const END: Duration = Duration::from_secs(30);

pub struct Cluster {
    program: PathBuf,
    data: PathBuf,
    child: Child,
    /// From spawn to the line that says ready.
    pub ready: Duration,
    // Removed last.
    _dir: tempfile::TempDir,
}

impl Cluster {
    /// `sampan COMMAND` on an empty data dir and a free port, ready.
    pub async fn start(program: &Path, command: &str, arguments: &[&str]) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("sampan-bench-").tempdir()?;
        Self::start_in(dir, program, Command::new(program), command, arguments).await
    }

    /// As an ordinary user, which only root can do: pods and Services live in 127.0.0.0/8 then.
    pub async fn start_as_user(program: &Path, user: u32, command: &str, arguments: &[&str]) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("sampan-bench-").tempdir()?;
        std::os::unix::fs::chown(dir.path(), Some(user), Some(user))?;
        // Where the program lies may be closed to others.
        let own = dir.path().join("sampan");
        std::fs::copy(program, &own).with_context(|| own.display().to_string())?;
        let mut base = Command::new(&own);
        base.uid(user).gid(user).env("HOME", dir.path());
        Self::start_in(dir, program, base, command, arguments).await
    }

    async fn start_in(
        dir: tempfile::TempDir,
        program: &Path,
        mut base: Command,
        command: &str,
        arguments: &[&str],
    ) -> Result<Self> {
        let data = dir.path().join("data");
        let log = std::fs::File::create(dir.path().join("log"))?;
        let start = Instant::now();
        // A node serves no API.
        let listen: &[&str] = if command == "node" { &[] } else { &["--listen", "127.0.0.1:0"] };
        let child = base
            .arg(command)
            .arg("--data-dir")
            .arg(&data)
            .args(listen)
            .args(arguments)
            .env("SAMPAN_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .with_context(|| program.display().to_string())?;
        let mut cluster = Self { program: program.to_owned(), data, child, ready: Duration::ZERO, _dir: dir };
        let out = cluster.child.stdout.take().context("no standard output")?;
        let mut lines = BufReader::new(out).lines();
        let ready = async {
            while let Some(line) = lines.next_line().await? {
                if line.starts_with("ready") {
                    return Ok(());
                }
            }
            Err(anyhow!("ended before it was ready"))
        };
        let result = tokio::time::timeout(READY, ready).await.unwrap_or_else(|_| Err(anyhow!("not ready in time")));
        result.with_context(|| format!("sampan {command}: {}", cluster.log()))?;
        cluster.ready = start.elapsed();
        Ok(cluster)
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.data.join("kubeconfig")
    }

    pub fn api(&self) -> Result<Api> {
        Api::open(&self.kubeconfig())
    }

    /// https://ADDRESS:PORT
    pub fn url(&self) -> Result<String> {
        Ok(format!("https://{}", self.api()?.authority()))
    }

    /// Of the process that was started.
    pub fn pid(&self) -> Result<u32> {
        self.child.id().with_context(|| format!("sampan has ended: {}", self.log()))
    }

    /// The end of what it wrote to standard error.
    pub fn log(&self) -> String {
        let text = std::fs::read_to_string(self._dir.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(20).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// `sampan ARGUMENTS` as a client of this cluster.
    pub async fn sampan(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(&self.program)
            .args(arguments)
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .kill_on_drop(true)
            .output()
            .await?;
        ensure!(output.status.success(), "sampan {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn end(&mut self) {
        let Some(pid) = self.child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)) else { return };
        let _ = kill_process(pid, Signal::TERM);
        let limit = Instant::now() + END;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > limit {
                eprintln!("sampan did not end on SIGTERM within {END:?} and is killed:\n{}", self.log());
                let _ = kill_process(pid, Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.end();
        // Whatever one that failed has left.
        let mut down = std::process::Command::new(&self.program);
        let _ = down.args(["down", "--data-dir"]).arg(&self.data).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}
