//! Compiling untrusted modules in a process of its own: no credentials, no files, no network, and
//! limits on memory and processor time. A bug in the compiler then costs one process.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;

use crate::module::Error;
use crate::proto::ModuleKind;
use crate::{engine, sandbox};

/// How the compiling process is started and held.
#[derive(Debug, Clone)]
pub struct Options {
    /// Program and arguments that lead to [`main`].
    pub command: Vec<OsString>,
    pub timeout: Duration,
    /// Address space, in bytes.
    pub memory: u64,
    /// User and group for the process where the caller is root.
    pub user: Option<(u32, u32)>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            command: crate::process::own("wasm-compile"),
            timeout: Duration::from_secs(300),
            memory: 8 << 30,
            user: rustix::process::geteuid().is_root().then_some((65534, 65534)),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Task {
    kind: i32,
    memory: u64,
    seconds: u64,
    user: Option<(u32, u32)>,
}

/// Compiles `wasm` into `out` and answers its length.
pub async fn compile(wasm: &Path, out: &Path, kind: ModuleKind, options: &Options) -> Result<u64, Error> {
    let io = |path: &Path, e: &std::io::Error| Error::Io(format!("{}: {e}", path.display()));
    let source = File::open(wasm).map_err(|e| io(wasm, &e))?;
    let target = File::options().write(true).create(true).truncate(true).open(out).map_err(|e| io(out, &e))?;
    let result_file = target.try_clone().map_err(|e| io(out, &e))?;
    let task =
        Task { kind: kind as i32, memory: options.memory, seconds: options.timeout.as_secs(), user: options.user };
    let task = serde_json::to_string(&task).map_err(|e| Error::Io(e.to_string()))?;
    let (program, arguments) = options.command.split_first().ok_or_else(|| Error::Io("no compile command".into()))?;
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .arg(task)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(source))
        .stdout(Stdio::from(target))
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| Error::Io(format!("starting the compiler: {e}")))?;
    let mut message = Vec::new();
    let stderr = child.stderr.take();
    let work = async {
        if let Some(stderr) = stderr {
            // The process is untrusted once it has read the module: read a bounded message.
            stderr.take(16 << 10).read_to_end(&mut message).await?;
        }
        child.wait().await
    };
    let status = match tokio::time::timeout(options.timeout, work).await {
        Ok(status) => status.map_err(|e| Error::Io(format!("waiting for the compiler: {e}")))?,
        Err(_) => return Err(Error::Timeout(options.timeout.as_secs())),
    };
    if !status.success() {
        let message = String::from_utf8_lossy(&message);
        let message = message.trim().trim_start_matches("error: ").to_owned();
        return Err(match message.is_empty() {
            false => Error::Compile(message),
            true => Error::Compile(format!(
                "the compiler ended with {status}: the module may need more memory or time than \
                 {} MiB and {} s",
                options.memory >> 20,
                options.timeout.as_secs()
            )),
        });
    }
    let length = result_file.metadata().map_err(|e| io(out, &e))?.len();
    if length == 0 {
        return Err(Error::Compile("the compiler wrote nothing".into()));
    }
    Ok(length)
}

/// The hidden subcommand `wasm-compile TASK`: source on standard input, result on standard output.
pub fn main(arguments: Vec<String>) -> anyhow::Result<()> {
    let task = arguments.first().context("no task")?;
    let task: Task = serde_json::from_str(task).context("task")?;
    sandbox::enter_compiler(task.memory, task.seconds, task.user)?;
    let kind = ModuleKind::try_from(task.kind)?;

    let mut bytes = Vec::new();
    std::io::stdin().lock().read_to_end(&mut bytes).context("reading the module")?;
    let engine = engine::compiler()?;
    let compiled = match kind {
        ModuleKind::Core => engine.precompile_module(&bytes),
        _ => engine.precompile_component(&bytes),
    }?;
    drop(bytes);
    // Linking shows what names alone cannot: a known import of another type.
    crate::host::check(&engine, kind, &compiled)?;
    let mut out = std::io::stdout().lock();
    out.write_all(&compiled)?;
    out.flush()?;
    Ok(())
}
