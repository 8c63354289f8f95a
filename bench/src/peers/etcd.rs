//! An etcd of the benchmark's own, on a directory of its own.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::process::{Child, Command};

use super::free_port;
use crate::load::etcd_answers;

const READY: Duration = Duration::from_secs(20);

pub struct Etcd {
    pub url: String,
    /// As `etcd --version` says.
    pub version: String,
    _child: Child,
    _dir: tempfile::TempDir,
}

impl Etcd {
    /// `None` where etcd is not installed.
    pub async fn start() -> Result<Option<Self>> {
        let Ok(told) = Command::new("etcd").arg("--version").output().await else { return Ok(None) };
        let told = String::from_utf8_lossy(&told.stdout).into_owned();
        let version = told.lines().find_map(|line| line.strip_prefix("etcd Version: ")).unwrap_or("?").to_owned();
        let dir = tempfile::Builder::new().prefix("sampan-bench-").tempdir()?;
        let (url, peers) = (format!("http://127.0.0.1:{}", free_port()?), format!("http://127.0.0.1:{}", free_port()?));
        let log = std::fs::File::create(dir.path().join("log"))?;
        let child = Command::new("etcd")
            .args(["--name", "bench", "--log-level", "error", "--data-dir"])
            .arg(dir.path().join("data"))
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &format!("bench={peers}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        let etcd = Self { url, version, _child: child, _dir: dir };
        let ready = async {
            while !etcd_answers(&etcd.url).await {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        if tokio::time::timeout(READY, ready).await.is_err() {
            let log = std::fs::read_to_string(etcd._dir.path().join("log")).unwrap_or_default();
            bail!("etcd does not answer: {log}");
        }
        Ok(Some(etcd))
    }
}
