//! Guests' output as it is, into files and pipes that somebody else reads.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileTypeExt as _;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::net::unix::pipe;
use tokio_util::sync::ReusableBoxFuture;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};

/// Most that one instance may hand over at once.
const PERMIT: usize = 64 << 10;
/// Most that waits for a reader: every instance of a container may hold a permit.
const PENDING: usize = 256 * PERMIT;
/// How long a reader has for the last bytes of a container that has ended.
const LAST: Duration = Duration::from_secs(10);

/// A container's output streams.
#[derive(Debug)]
pub struct Raw {
    pub stdout: Sink,
    pub stderr: Sink,
}

impl Raw {
    /// `None` if neither path is given: the output is the log's. Pipes belong to the runtime that
    /// this is called in.
    pub fn open(stdout: &str, stderr: &str) -> Result<Option<Raw>, String> {
        if stdout.is_empty() && stderr.is_empty() {
            return Ok(None);
        }
        let open = |field: &str, path: &str| Sink::open(path).map_err(|error| format!("{field}: {path}: {error}"));
        Ok(Some(Raw { stdout: open("stdout_path", stdout)?, stderr: open("stderr_path", stderr)? }))
    }

    /// Lets readers have what is pending, and then the end of the file.
    pub async fn close(&self) {
        let _ = tokio::time::timeout(LAST, async { tokio::join!(self.stdout.drained(), self.stderr.drained()) }).await;
        for sink in [&self.stdout, &self.stderr] {
            *sink.state() = State::default();
        }
    }
}

/// One stream, shared by all instances.
#[derive(Debug, Clone, Default)]
pub struct Sink(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// `None`: output goes nowhere.
    target: Option<Target>,
    pending: BytesMut,
}

#[derive(Debug, Clone)]
enum Target {
    Pipe(Arc<pipe::Sender>),
    File(Arc<File>),
}

impl Target {
    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Target::Pipe(pipe) => pipe.try_write(bytes),
            Target::File(file) => file.as_ref().write(bytes),
        }
    }
}

impl State {
    /// Writes what goes without waiting; whether nothing is left.
    fn flush(&mut self) -> bool {
        while let Some(target) = self.target.as_ref().filter(|_| !self.pending.is_empty()) {
            match target.write(&self.pending) {
                Ok(wrote) => self.pending.advance(wrote),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A full disk must not end the guest.
                Err(error) => {
                    tracing::warn!(%error, "container output");
                    self.target = None;
                }
            }
        }
        if self.target.is_none() {
            self.pending.clear();
        }
        true
    }
}

impl Sink {
    fn open(path: &str) -> io::Result<Sink> {
        if path.is_empty() {
            return Ok(Sink::default());
        }
        let target = match std::fs::metadata(path)?.file_type().is_fifo() {
            // With both ends open neither a reader that comes late nor one that goes and comes
            // again is noticed.
            true => Target::Pipe(Arc::new(pipe::OpenOptions::new().read_write(true).open_sender(path)?)),
            false => Target::File(Arc::new(File::options().append(true).open(path)?)),
        };
        Ok(Sink(Arc::new(Mutex::new(State { target: Some(target), pending: BytesMut::new() }))))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn feed(&self, bytes: &[u8]) -> bool {
        let mut state = self.state();
        if state.pending.len() > PENDING {
            return false;
        }
        state.pending.extend_from_slice(bytes);
        state.flush();
        true
    }

    /// A line of the host's own about the guest.
    pub fn say(&self, text: &str) {
        self.feed(format!("{}\n", text.trim_end()).as_bytes());
    }

    async fn drained(&self) {
        loop {
            let pipe = {
                let mut state = self.state();
                match (state.flush(), &state.target) {
                    (false, Some(Target::Pipe(pipe))) => pipe.clone(),
                    _ => return,
                }
            };
            if pipe.writable().await.is_err() {
                return;
            }
        }
    }
}

impl IsTerminal for Sink {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Sink {
    fn async_stream(&self) -> Box<dyn tokio::io::AsyncWrite + Send + Sync> {
        Box::new(Writer::new(self.clone()))
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

impl OutputStream for Sink {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        match self.feed(&bytes) {
            true => Ok(()),
            false => Err(StreamError::trap("wrote more than was permitted")),
        }
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(if self.state().flush() { PERMIT } else { 0 })
    }
}

#[async_trait::async_trait]
impl Pollable for Sink {
    async fn ready(&mut self) {
        self.drained().await;
    }
}

/// A stream as an asynchronous writer.
struct Writer {
    sink: Sink,
    drained: ReusableBoxFuture<'static, ()>,
}

impl Writer {
    fn new(sink: Sink) -> Writer {
        Writer { drained: ReusableBoxFuture::new(Writer::drained(sink.clone())), sink }
    }

    async fn drained(sink: Sink) {
        sink.drained().await;
    }

    fn poll_drained(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.drained.poll(context));
        self.drained.set(Writer::drained(self.sink.clone()));
        Poll::Ready(Ok(()))
    }
}

impl tokio::io::AsyncWrite for Writer {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        std::task::ready!(self.poll_drained(context))?;
        let bytes = bytes.get(..PERMIT).unwrap_or(bytes);
        self.sink.feed(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_drained(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_drained(context)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Read as _;

    #[tokio::test]
    async fn a_slow_reader_gets_everything_and_then_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let raw = Raw::open(path.to_str().unwrap(), "").unwrap().unwrap();
        // Nobody reads, and more than a pipe holds is written: the guest is told to wait.
        let mut stream = raw.stdout.clone();
        let chunk = Bytes::from(vec![b'x'; PERMIT]);
        let mut wrote = 0;
        while OutputStream::check_write(&mut stream).unwrap() > 0 {
            OutputStream::write(&mut stream, chunk.clone()).unwrap();
            wrote += chunk.len();
        }
        assert!(wrote >= chunk.len());
        raw.stderr.say("goes nowhere");
        raw.stdout.say("last");
        let reader = tokio::task::spawn_blocking(move || {
            let mut all = Vec::new();
            File::open(path).unwrap().read_to_end(&mut all).unwrap();
            all
        });
        raw.close().await;
        let all = reader.await.unwrap();
        assert_eq!(all.len(), wrote + 5);
        assert!(all.ends_with(b"xlast\n"));
    }

    #[tokio::test]
    async fn files_are_appended_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        std::fs::write(&path, "before\n").unwrap();
        let raw = Raw::open("", path.to_str().unwrap()).unwrap().unwrap();
        let mut writer = Box::into_pin(raw.stderr.async_stream());
        tokio::io::AsyncWriteExt::write_all(&mut writer, b"after").await.unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "before\nafter");
        assert!(Raw::open("", "").unwrap().is_none());
        let missing = dir.path().join("none");
        assert!(Raw::open("", missing.to_str().unwrap()).unwrap_err().starts_with("stderr_path: "));
    }
}
