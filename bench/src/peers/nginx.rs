//! An nginx of the benchmark's own: plain HTTP by a server that nobody here wrote.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};

use super::{find, free_port};

pub struct Nginx {
    pub authority: String,
    pub version: String,
    child: Child,
    _dir: tempfile::TempDir,
}

impl Nginx {
    /// `None` where nginx is not installed. It answers soon after.
    pub fn start() -> Result<Option<Self>> {
        let Some(program) = find("nginx") else { return Ok(None) };
        let told = Command::new(&program).arg("-v").output()?;
        let told = String::from_utf8_lossy(&told.stderr).into_owned();
        let version = told.trim().rsplit_once('/').map_or("?", |(_, version)| version).to_owned();
        let dir = tempfile::Builder::new().prefix("sampan-bench-").tempdir()?;
        let authority = format!("127.0.0.1:{}", free_port()?);
        let file = dir.path().join("nginx.conf");
        std::fs::write(&file, configuration(dir.path(), &authority))?;
        let child = Command::new(&program)
            .arg("-c")
            .arg(&file)
            .arg("-e")
            .arg(dir.path().join("log"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| program.display().to_string())?;
        Ok(Some(Self { authority, version, child, _dir: dir }))
    }
}

/// As many workers as processors, nothing written, connections that stay.
fn configuration(dir: &Path, authority: &str) -> String {
    let dir = dir.display();
    format!(
        "daemon off;
worker_processes auto;
pid {dir}/pid;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    server {{
        listen {authority};
        default_type text/plain;
        location / {{ return 200 \"Hello from nobody at nowhere: you asked for $uri\\n\"; }}
    }}
}}
"
    )
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Told to end it takes its workers along.
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let _ = self.child.wait();
    }
}
