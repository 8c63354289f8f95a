//! A guest's standard streams where they are not its log: to and from who runs or attaches.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::StreamReader;
use tokio_util::sync::PollSender;
use tonic::Status;
use wasmtime_wasi::cli::{AsyncStdinStream, IsTerminal, StdinStream, StdoutStream};
use wasmtime_wasi::p2::{InputStream, OutputStream, Pollable, StreamError, StreamResult};

use crate::proto::{StreamOutput, stream_output};
use crate::tty;

/// Pieces of input that wait to be read.
const QUEUE: usize = 8;
/// Most that a guest may hand over at once.
const PERMIT: usize = 32 << 10;

/// What a guest reads.
pub struct Input {
    stream: AsyncStdinStream,
    terminal: bool,
}

impl Input {
    /// Call it where guests run: it starts a task. The input ends when all senders are gone.
    pub fn pipe(terminal: bool) -> (mpsc::Sender<Bytes>, Input) {
        let (sender, receiver) = mpsc::channel::<Bytes>(QUEUE);
        let reader = StreamReader::new(ReceiverStream::new(receiver).map(Ok::<_, io::Error>));
        (sender, Input { stream: AsyncStdinStream::new(reader), terminal })
    }
}

impl IsTerminal for Input {
    fn is_terminal(&self) -> bool {
        self.terminal
    }
}

impl StdinStream for Input {
    fn async_stream(&self) -> Box<dyn AsyncRead + Send + Sync> {
        self.stream.async_stream()
    }

    fn p2_stream(&self) -> Box<dyn InputStream> {
        self.stream.p2_stream()
    }
}

/// Messages of one call's answer.
pub type Outputs = mpsc::Sender<Result<StreamOutput, Status>>;

/// What a guest writes, as messages; nothing is lost when it ends.
#[derive(Clone)]
pub struct Pipe {
    pub outputs: Outputs,
    pub stderr: bool,
    pub terminal: bool,
}

impl Pipe {
    pub fn message(&self, bytes: &[u8]) -> StreamOutput {
        let bytes = if self.terminal { tty::output(bytes) } else { bytes.to_vec() };
        let output = if self.stderr && !self.terminal {
            stream_output::Output::Stderr(bytes)
        } else {
            stream_output::Output::Stdout(bytes)
        };
        StreamOutput { output: Some(output) }
    }
}

impl IsTerminal for Pipe {
    fn is_terminal(&self) -> bool {
        self.terminal
    }
}

impl StdoutStream for Pipe {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(Bytewise { pipe: self.clone(), sender: PollSender::new(self.outputs.clone()) })
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(Writing { pipe: self.clone(), permit: None })
    }
}

/// One of a guest's handles to a pipe, with room for its next write once it was told of it.
struct Writing {
    pipe: Pipe,
    permit: Option<mpsc::OwnedPermit<Result<StreamOutput, Status>>>,
}

impl OutputStream for Writing {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let message = Ok(self.pipe.message(&bytes));
        match self.permit.take() {
            Some(permit) => drop(permit.send(message)),
            None => self.pipe.outputs.try_send(message).map_err(|_| StreamError::Closed)?,
        }
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        if self.permit.is_none() {
            self.permit = match self.pipe.outputs.clone().try_reserve_owned() {
                Ok(permit) => Some(permit),
                Err(mpsc::error::TrySendError::Full(_)) => return Ok(0),
                Err(mpsc::error::TrySendError::Closed(_)) => return Err(StreamError::Closed),
            };
        }
        Ok(PERMIT)
    }
}

#[async_trait::async_trait]
impl Pollable for Writing {
    async fn ready(&mut self) {
        if self.permit.is_none() {
            self.permit = self.pipe.outputs.clone().reserve_owned().await.ok();
        }
    }
}

struct Bytewise {
    pipe: Pipe,
    sender: PollSender<Result<StreamOutput, Status>>,
}

impl AsyncWrite for Bytewise {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let broken = || io::Error::from(io::ErrorKind::BrokenPipe);
        ready!(self.sender.poll_reserve(context)).map_err(|_| broken())?;
        let part = bytes.get(..bytes.len().min(PERMIT)).unwrap_or_default();
        let message = Ok(self.pipe.message(part));
        self.sender.send_item(message).map_err(|_| broken())?;
        Poll::Ready(Ok(part.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
