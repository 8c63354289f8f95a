//! What a figure depends on: processors, memory, and how long this disk takes to sync today.

use std::fs;
use std::io::Write as _;
use std::time::Instant;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::row::{median, round};

const SYNCS: usize = 200;

/// The `machine` of every result.
pub fn facts() -> Result<Value> {
    let cpu = field("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let memory = field("/proc/meminfo", "MemTotal").unwrap_or_default();
    let memory: u64 = memory.split(' ').next().and_then(|kib| kib.parse().ok()).unwrap_or(0);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    Ok(json!({
        "cpus": std::thread::available_parallelism().map_or(1, usize::from),
        "cpu": cpu,
        "memory_mb": memory / 1024,
        "kernel": kernel.trim(),
        "fsync_median_ms": round(median_fsync_ms()?),
    }))
}

/// Of appending 4 KiB to a file where the clusters' files lie, too.
pub fn median_fsync_ms() -> Result<f64> {
    let mut file = tempfile::tempfile().context("a file to sync")?;
    let block = [7; 4096];
    let mut times = Vec::with_capacity(SYNCS);
    for _ in 0..SYNCS {
        file.write_all(&block)?;
        let start = Instant::now();
        file.sync_data()?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    Ok(median(&times))
}

/// The value of `name` in a file of `name: value` lines.
pub fn field(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}

/// The commit that is measured, marked where files differ from it.
pub fn commit(repository: &std::path::Path) -> String {
    let git = |arguments: &[&str]| {
        let output = std::process::Command::new("git").arg("-C").arg(repository).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(head) = git(&["rev-parse", "--short=12", "HEAD"]) else { return "unknown".to_owned() };
    match git(&["status", "--porcelain", "--untracked-files=no"]) {
        Some(changes) if changes.is_empty() => head,
        _ => format!("{head}-changed"),
    }
}
