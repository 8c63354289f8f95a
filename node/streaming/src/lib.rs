//! The streams behind `exec`, `attach` and `port-forward`: WebSocket channels and SPDY/3.1, both as
//! the server that clients upgrade to and as a client of a container runtime's own streaming URL.
//! Nothing here knows what a pod is.

mod activity;
mod channels;
pub mod client;
mod forward;
mod remote;
pub mod spdy;
mod status;
#[cfg(test)]
mod tests;
mod upgrade;
mod websocket;

use std::pin::Pin;

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

pub use activity::Activity;
pub use forward::{Forward, PortForward};
pub use remote::RemoteCommand;
pub use status::Outcome;
pub use upgrade::{Pending, Refused, port_forward, remote_command};

pub type Reader = Pin<Box<dyn AsyncRead + Send>>;
pub type Writer = Pin<Box<dyn AsyncWrite + Send>>;

/// Of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Size {
    pub width: u16,
    pub height: u16,
}

/// Which streams a remote command has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    /// With a terminal there is no stderr of its own.
    pub tty: bool,
}

impl Wanted {
    pub fn has_stderr(self) -> bool {
        self.stderr && !self.tty
    }
}

/// A command that runs, or a container that is attached to: the other side of a
/// [`RemoteCommand`]. Dropping it ends what was started for it.
pub struct Streams {
    pub stdin: Option<Writer>,
    pub stdout: Option<Reader>,
    pub stderr: Option<Reader>,
    pub resize: Option<mpsc::Sender<Size>>,
    /// How it ended.
    pub outcome: BoxFuture<'static, Outcome>,
}
