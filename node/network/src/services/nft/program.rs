//! The `nft` program: it makes tables, chains and rules. It takes 10 µs for an element, so those
//! go to the kernel without it.

use std::path::PathBuf;
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::error::{Error, Result};

/// Where it is, if it is installed.
pub(crate) fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join("nft"))
        .find(|file| file.is_file())
}

/// Runs a script; all of it or nothing takes effect.
pub(super) async fn run(doing: &'static str, script: &str) -> Result<()> {
    let failed = |message: String| Error::Nft { doing, message };
    let program = program().ok_or_else(|| failed("the program is not installed".to_owned()))?;
    let mut child = Command::new(program)
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let mut stdin = child.stdin.take();
    let feed = async {
        if let Some(stdin) = &mut stdin {
            // It may end before it has read all: what it says then is what matters.
            let _ = stdin.write_all(script.as_bytes()).await;
        }
        drop(stdin);
    };
    let ((), output) = tokio::join!(feed, child.wait_with_output());
    let output = output.map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let message: String = String::from_utf8_lossy(&output.stderr).chars().take(2000).collect();
    Err(failed(message))
}

/// Removes a table; false if there was none.
pub(crate) async fn delete_table(name: &str) -> Result<bool> {
    match run("to remove a table", &format!("delete table ip {name}\n")).await {
        Ok(()) => Ok(true),
        Err(Error::Nft { message, .. }) if message.contains("No such file") => Ok(false),
        Err(error) => Err(error),
    }
}
