//! Running programs in containers, and reaching into pods.

use std::time::Duration;

use crate::client::{Containerd, LONG, SHORT, call};
use crate::error::Result;
use crate::proto::cri;

/// What a program gave that was run to its end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecOutput {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub exit_code: i32,
}

/// Which streams to join. With a tty there is no stderr of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExecStreams {
    pub tty: bool,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

impl Containerd {
    /// Runs a program to its end; it is killed, and this an error, after `timeout` (whole seconds;
    /// `None`: whenever it ends).
    pub async fn exec_sync(&self, id: &str, command: &[String], timeout: Option<Duration>) -> Result<ExecOutput> {
        // Zero would mean no limit at all.
        let seconds = timeout.map_or(0, |t| t.as_secs().saturating_add(u64::from(t.subsec_nanos() > 0)).max(1));
        let request = cri::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: command.to_vec(),
            timeout: i64::try_from(seconds).unwrap_or(i64::MAX),
        };
        let limit = match timeout {
            Some(_) => LONG.saturating_add(Duration::from_secs(seconds)),
            None => Duration::MAX,
        };
        let answer = call("ExecSync", limit, self.runtime().exec_sync(request)).await?;
        Ok(ExecOutput { stdout: answer.stdout, stderr: answer.stderr, exit_code: answer.exit_code })
    }

    /// The address, on loopback, where Kubernetes' remote command protocols (SPDY, WebSocket) run this
    /// program; good for one connection, for a minute.
    pub async fn exec_url(&self, id: &str, command: &[String], streams: ExecStreams) -> Result<String> {
        let ExecStreams { tty, stdin, stdout, stderr } = streams;
        let request =
            cri::ExecRequest { container_id: id.to_owned(), cmd: command.to_vec(), tty, stdin, stdout, stderr };
        Ok(call("Exec", SHORT, self.runtime().exec(request)).await?.url)
    }

    /// The same for the container's own process; `tty` has to be as it was made.
    pub async fn attach_url(&self, id: &str, streams: ExecStreams) -> Result<String> {
        let ExecStreams { tty, stdin, stdout, stderr } = streams;
        let request = cri::AttachRequest { container_id: id.to_owned(), stdin, tty, stdout, stderr };
        Ok(call("Attach", SHORT, self.runtime().attach(request)).await?.url)
    }

    /// The same for ports of the pod, by SPDY.
    pub async fn port_forward_url(&self, sandbox_id: &str, ports: &[u16]) -> Result<String> {
        let port = ports.iter().map(|&p| p.into()).collect();
        let request = cri::PortForwardRequest { pod_sandbox_id: sandbox_id.to_owned(), port };
        Ok(call("PortForward", SHORT, self.runtime().port_forward(request)).await?.url)
    }
}
