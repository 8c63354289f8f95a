//! A client's side of `exec` or `attach`: its streams, whatever they travel on.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;

use crate::activity::Activity;
use crate::channels::{Channels, Codec};
use crate::spdy::{Incoming, Session, Stream};
use crate::status::Outcome;
use crate::{Reader, Size, Streams, Wanted, Writer};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// As much of a client's changes of size as may come at once.
const SIZES: usize = 4096;

enum Link {
    Channels(Channels),
    Spdy { session: Session, error: Box<Stream> },
}

/// A client that runs a command or is attached.
pub struct RemoteCommand {
    pub stdin: Option<Reader>,
    pub stdout: Option<Writer>,
    pub stderr: Option<Writer>,
    /// Sizes of the client's terminal, the first at once.
    pub resize: mpsc::Receiver<Size>,
    /// Whether the outcome is told as a status or in words.
    as_status: bool,
    link: Link,
    activity: Activity,
}

pub(crate) fn over_channels<T>(socket: WebSocketStream<T>, codec: Codec, version: u8, wanted: Wanted) -> RemoteCommand
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let activity = Activity::default();
    let mut channels = Channels::start(socket, codec, &[STDIN, RESIZE], activity.clone());
    let stdin = channels.reader(STDIN).filter(|_| wanted.stdin);
    let resize = sizes(channels.reader(RESIZE).filter(|_| wanted.tty));
    let writer = |channel| -> Writer { Box::pin(channels.writer(channel)) };
    let stdout = wanted.stdout.then(|| writer(STDOUT));
    let stderr = wanted.has_stderr().then(|| writer(STDERR));
    RemoteCommand { stdin, stdout, stderr, resize, as_status: version >= 4, link: Link::Channels(channels), activity }
}

pub(crate) async fn over_spdy(
    session: Session,
    mut incoming: Incoming,
    activity: Activity,
    version: u8,
    wanted: Wanted,
) -> io::Result<RemoteCommand> {
    let resizes = wanted.tty && version >= 3;
    let mut missing = vec!["error"];
    let all =
        [("stdin", wanted.stdin), ("stdout", wanted.stdout), ("stderr", wanted.has_stderr()), ("resize", resizes)];
    missing.extend(all.iter().filter(|(_, wanted)| *wanted).map(|(name, _)| *name));
    let mut streams: Vec<(&str, Stream)> = Vec::new();
    while !missing.is_empty() {
        let Some((headers, stream)) = incoming.recv().await else {
            return Err(io::ErrorKind::ConnectionAborted.into());
        };
        let kind = headers.get("streamtype").unwrap_or_default();
        match missing.iter().position(|name| *name == kind) {
            Some(index) => streams.push((missing.swap_remove(index), stream)),
            None => return Err(io::Error::other(format!("a stream of type {kind:?} was not asked for"))),
        }
    }
    let mut take = |kind: &str| {
        let index = streams.iter().position(|(name, _)| *name == kind)?;
        Some(Box::new(streams.swap_remove(index).1))
    };
    let error = take("error").ok_or(io::ErrorKind::ConnectionAborted)?;
    Ok(RemoteCommand {
        stdin: take("stdin").map(|stream| Box::into_pin(stream) as Reader),
        stdout: take("stdout").map(|stream| Box::into_pin(stream) as Writer),
        stderr: take("stderr").map(|stream| Box::into_pin(stream) as Writer),
        resize: sizes(take("resize").map(|stream| Box::into_pin(stream) as Reader)),
        as_status: version >= 4,
        link: Link::Spdy { session, error },
        activity,
    })
}

/// Sizes out of JSON texts, one after another.
fn sizes(reader: Option<Reader>) -> mpsc::Receiver<Size> {
    let (sender, receiver) = mpsc::channel(4);
    let Some(mut reader) = reader else { return receiver };
    tokio::spawn(async move {
        let mut buffer = Vec::new();
        loop {
            let read = tokio::select! {
                () = sender.closed() => return,
                read = reader.read_buf(&mut buffer) => read,
            };
            if !matches!(read, Ok(1..)) || buffer.len() > SIZES {
                return;
            }
            let mut texts = serde_json::Deserializer::from_slice(&buffer).into_iter::<Size>();
            let mut found = Vec::new();
            while let Some(Ok(size)) = texts.next() {
                found.push(size);
            }
            let used = texts.byte_offset();
            buffer.drain(..used);
            for size in found {
                if sender.send(size).await.is_err() {
                    return;
                }
            }
        }
    });
    receiver
}

impl RemoteCommand {
    /// Until the client is gone.
    pub async fn closed(&self) {
        self.link.closed().await;
    }

    /// Tells the client how it ended, and closes the connection. Drop the streams first, or what
    /// they hold of SPDY is cancelled after.
    pub async fn finish(mut self, outcome: &Outcome) {
        for stream in [&mut self.stdout, &mut self.stderr].into_iter().flatten() {
            let _ = stream.shutdown().await;
        }
        let text = outcome.encode(self.as_status);
        match self.link {
            Link::Channels(channels) => {
                if !text.is_empty() {
                    channels.send(ERROR, text).await;
                }
                channels.close().await;
            }
            Link::Spdy { session, mut error } => {
                let _ = error.write_all(text.as_bytes()).await;
                let _ = error.shutdown().await;
                // A client closes the connection when it has read all streams to their end.
                let _ = tokio::time::timeout(Duration::from_secs(2), session.closed()).await;
                session.close().await;
            }
        }
    }

    /// Moves everything between the client and what it runs, until that has ended, the client is
    /// gone, or nothing has moved for `idle`.
    pub async fn run(mut self, streams: Streams, idle: Duration) {
        if let Link::Channels(channels) = &self.link {
            // An empty message tells clients that the way is open.
            let first = [self.stdout.is_some(), self.stderr.is_some()].iter().position(|is| *is);
            let first = first.and_then(|first| u8::try_from(first).ok()).map_or(ERROR, |first| first + STDOUT);
            channels.send(first, Vec::new()).await;
        }
        let (sent, got) = (self.stdin.take(), streams.stdin);
        let (mut resize, sizes) = (std::mem::replace(&mut self.resize, mpsc::channel(1).1), streams.resize);
        let input = async {
            let stdin = async {
                if let (Some(mut from), Some(mut to)) = (sent, got) {
                    match tokio::io::copy(&mut from, &mut to).await {
                        Ok(_) => drop(to.shutdown().await),
                        // What was cut off is no end: the client is gone, which ends all of this.
                        Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {
                            std::future::pending::<()>().await;
                        }
                        Err(_) => {}
                    }
                    drop(to);
                    // The client may send more than anybody wants.
                    let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
                }
            };
            let sizes = async {
                while let Some(size) = resize.recv().await {
                    if let Some(sizes) = &sizes {
                        let _ = sizes.send(size).await;
                    }
                }
            };
            tokio::join!(stdin, sizes);
            std::future::pending::<()>().await;
        };
        let (mut stdout, mut stderr) = (self.stdout.take(), self.stderr.take());
        let output = async {
            let (_, _, outcome) =
                tokio::join!(pump(streams.stdout, &mut stdout), pump(streams.stderr, &mut stderr), streams.outcome);
            outcome
        };
        let outcome = tokio::select! {
            outcome = output => Some(outcome),
            () = input => None,
            () = self.link.closed() => None,
            () = self.activity.idle(idle) => {
                Some(Outcome::Failed(format!("nothing was sent for {} s", idle.as_secs())))
            }
        };
        if let Some(outcome) = outcome {
            (self.stdout, self.stderr) = (stdout, stderr);
            self.finish(&outcome).await;
        }
    }
}

impl Link {
    async fn closed(&self) {
        match self {
            Self::Channels(channels) => channels.closed.cancelled().await,
            Self::Spdy { session, .. } => session.closed().await,
        }
    }
}

/// All of a reader into a client's stream, which then ends. A command whose output nobody takes
/// still runs to its end.
async fn pump(from: Option<Reader>, to: &mut Option<Writer>) -> io::Result<()> {
    let Some(mut from) = from else { return Ok(()) };
    if let Some(to) = to
        && tokio::io::copy(&mut from, to).await.is_ok()
    {
        return to.shutdown().await;
    }
    tokio::io::copy(&mut from, &mut tokio::io::sink()).await.map(drop)
}
