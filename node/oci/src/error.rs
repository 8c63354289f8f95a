//! What can go wrong between the node and containerd.

use std::path::{Path, PathBuf};

use tonic::{Code, Status};

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing is at the socket's path.
    #[error("no containerd at {}: nothing is there; start containerd, or name the socket it listens on", socket.display())]
    Missing { socket: PathBuf },
    /// A socket that nobody listens on, or no socket at all.
    #[error("no containerd at {}: {reason}", socket.display())]
    Unreachable { socket: PathBuf, reason: String },
    /// Another program, or a containerd that cannot be driven.
    #[error("containerd at {}: {reason}", socket.display())]
    Unsuitable { socket: PathBuf, reason: String },
    /// containerd refused, or could not do what it was asked.
    #[error("{call}: {message}")]
    Rpc { call: &'static str, code: Code, message: String },
    /// containerd went away while it was asked; what was asked may have been done.
    #[error("{call}: the connection to containerd broke: {reason}")]
    Broken { call: &'static str, reason: String },
    #[error("{call}: containerd gave no answer within {seconds} s")]
    Timeout { call: &'static str, seconds: u64 },
    /// An answer that lacks what the protocol promises.
    #[error("{call}: the answer has no {missing}")]
    Answer { call: &'static str, missing: &'static str },
    /// An archive that is no image for this machine.
    #[error("{}: {reason}", archive.display())]
    Archive { archive: PathBuf, reason: String },
    /// A network configuration that cannot work.
    #[error("{}: {reason}", file.display())]
    Network { file: PathBuf, reason: String },
    /// Our own containerd does not start.
    #[error("containerd: {0}")]
    Daemon(String),
    #[error("{}: {error}", path.display())]
    Io { path: PathBuf, error: std::io::Error },
}

impl Error {
    pub(crate) fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.as_ref().to_owned();
        move |error| Error::Io { path, error }
    }

    /// The words alone: `Status` prints its metadata too.
    pub(crate) fn rpc(call: &'static str, status: &Status) -> Error {
        // What containerd says has no cause here.
        if let Some(cause) = std::error::Error::source(status) {
            let causes = std::iter::successors(Some(cause), |cause| cause.source()).map(ToString::to_string);
            return Error::Broken { call, reason: causes.collect::<Vec<_>>().join(": ") };
        }
        Error::Rpc { call, code: status.code(), message: status.message().to_owned() }
    }

    fn code(&self) -> Option<Code> {
        match self {
            Error::Rpc { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// The sandbox, container or image does not exist (any more).
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(Code::NotFound)
    }

    pub fn is_already_exists(&self) -> bool {
        self.code() == Some(Code::AlreadyExists)
    }

    /// containerd is away, or not up yet: the same call may work later.
    pub fn is_unavailable(&self) -> bool {
        let away = matches!(
            self,
            Error::Missing { .. } | Error::Unreachable { .. } | Error::Broken { .. } | Error::Timeout { .. }
        );
        away || matches!(self.code(), Some(Code::Unavailable | Code::DeadlineExceeded))
    }
}
