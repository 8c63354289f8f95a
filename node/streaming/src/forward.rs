//! A client's side of `port-forward`: connections to ports, each with a stream for what went wrong.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_util::sync::CancellationToken;
use tokio_util::time::DelayQueue;

use crate::activity::Activity;
use crate::channels::{Channels, Codec};
use crate::spdy::{Headers, Incoming, Session, Stream};
use crate::{Reader, Writer};

/// A client that forwards ports: it opens connections one after another.
pub struct PortForward {
    forwards: mpsc::Receiver<Forward>,
    closed: CancellationToken,
    activity: Activity,
}

impl PortForward {
    /// The next connection; none once the client is gone.
    pub async fn next(&mut self) -> Option<Forward> {
        self.forwards.recv().await
    }

    /// Until nothing has moved for so long.
    pub fn idle(&self, limit: Duration) -> impl Future<Output = ()> + Send + use<> {
        let activity = self.activity.clone();
        async move { activity.idle(limit).await }
    }

    /// Cancelled when the client is gone.
    pub fn closed(&self) -> CancellationToken {
        self.closed.clone()
    }
}

/// One connection to a port.
pub struct Forward {
    pub port: u16,
    pub reader: Reader,
    pub writer: Writer,
    error: Writer,
}

impl Forward {
    /// Moves bytes both ways until both sides have ended.
    pub async fn copy(mut self, stream: impl AsyncRead + AsyncWrite) -> io::Result<()> {
        let (mut from, mut to) = tokio::io::split(stream);
        let up = async {
            tokio::io::copy(&mut self.reader, &mut to).await?;
            to.shutdown().await
        };
        let down = async {
            tokio::io::copy(&mut from, &mut self.writer).await?;
            self.writer.shutdown().await?;
            // Before the client has ended its half: kubectl before 1.31 waits for this with closing.
            self.error.shutdown().await
        };
        let result = tokio::try_join!(up, down).map(drop);
        let _ = self.writer.shutdown().await;
        let _ = self.error.shutdown().await;
        result
    }

    /// Tells the client why there is no connection.
    pub async fn fail(mut self, message: &str) {
        let _ = self.error.write_all(message.as_bytes()).await;
        let _ = self.error.shutdown().await;
        let _ = self.writer.shutdown().await;
    }
}

/// Streams of one request that has not all of them yet.
#[derive(Default)]
struct Pair {
    port: Option<u16>,
    data: Option<Box<Stream>>,
    error: Option<Box<Stream>>,
}

impl Pair {
    fn add(&mut self, headers: &Headers, stream: Stream) -> Result<(), String> {
        let text = headers.get("port").unwrap_or_default();
        let port = text.parse().ok().filter(|port| *port != 0);
        let port = port.ok_or_else(|| format!("{text:?} is no port"))?;
        if self.port.is_some_and(|known| known != port) {
            return Err(format!("one request for port {port} and another"));
        }
        self.port = Some(port);
        let slot = match headers.get("streamtype") {
            Some("data") => &mut self.data,
            Some("error") => &mut self.error,
            other => return Err(format!("a stream of type {other:?} was not asked for")),
        };
        if slot.is_some() {
            return Err("one stream twice".to_owned());
        }
        *slot = Some(Box::new(stream));
        Ok(())
    }

    fn into_forward(self) -> Option<Forward> {
        let (reader, writer) = tokio::io::split(Box::into_pin(self.data?));
        let error = Box::into_pin(self.error?);
        Some(Forward { port: self.port?, reader: Box::pin(reader), writer: Box::pin(writer), error })
    }
}

/// The name of a request: its own, or for clients of old the number of its error stream.
fn request(headers: &Headers, id: u32) -> String {
    match headers.get("requestid") {
        Some(name) => name.to_owned(),
        None if headers.get("streamtype") == Some("error") => format!("#{id}"),
        None => format!("#{}", id.saturating_sub(2)),
    }
}

pub(crate) fn over_spdy(session: Session, mut incoming: Incoming, activity: Activity, limit: Duration) -> PortForward {
    let (sender, forwards) = mpsc::channel(1);
    let closed = CancellationToken::new();
    let token = closed.clone();
    tokio::spawn(async move {
        let mut pairs: HashMap<String, (Pair, tokio_util::time::delay_queue::Key)> = HashMap::new();
        let mut late = DelayQueue::new();
        loop {
            let (headers, stream) = tokio::select! {
                next = incoming.recv() => match next {
                    Some(next) => next,
                    None => break,
                },
                () = sender.closed() => break,
                Some(expired) = futures::future::poll_fn(|context| late.poll_expired(context)), if !late.is_empty() => {
                    let name: String = expired.into_inner();
                    tracing::debug!(request = name, "a port's second stream did not come in time");
                    pairs.remove(&name);
                    continue;
                }
            };
            let name = request(&headers, stream.id());
            let (pair, _) =
                pairs.entry(name.clone()).or_insert_with(|| (Pair::default(), late.insert(name.clone(), limit)));
            let whole = match pair.add(&headers, stream) {
                Ok(()) => pair.data.is_some() && pair.error.is_some(),
                Err(error) => {
                    tracing::debug!(request = name, error, "port-forward stream refused");
                    false
                }
            };
            if whole && let Some((pair, key)) = pairs.remove(&name) {
                late.remove(&key);
                if let Some(forward) = pair.into_forward()
                    && sender.send(forward).await.is_err()
                {
                    break;
                }
            }
        }
        // Nobody takes any more: what is under way ends with the connection.
        if sender.is_closed() {
            session.close().await;
        }
        token.cancel();
    });
    PortForward { forwards, closed, activity }
}

/// Two channels for each port: its data, and what went wrong. One connection to each.
pub(crate) fn over_channels<T>(
    socket: WebSocketStream<T>,
    codec: Codec,
    activity: Activity,
    ports: Vec<u16>,
) -> PortForward
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let numbers = |index: usize| u8::try_from(2 * index).ok().filter(|number| *number < 254);
    let data: Vec<u8> = (0..ports.len()).map_while(numbers).collect();
    let mut channels = Channels::start(socket, codec, &data, activity.clone());
    let closed = channels.closed.clone();
    let (sender, forwards) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut open = Vec::new();
        for (number, port) in data.into_iter().zip(ports) {
            // The client learns which channel is whose.
            channels.send(number, port.to_le_bytes().to_vec()).await;
            channels.send(number + 1, port.to_le_bytes().to_vec()).await;
            let Some(reader) = channels.reader(number) else { continue };
            // A channel's writer has no end; when all are dropped the connection is closed.
            let (end, ended) = mpsc::channel::<()>(1);
            open.push(ended);
            let writer = WithGuard { writer: channels.writer(number), _guard: end };
            let error = channels.writer(number + 1);
            let forward = Forward { port, reader, writer: Box::pin(writer), error: Box::pin(error) };
            if sender.send(forward).await.is_err() {
                break;
            }
        }
        for mut ended in open {
            ended.recv().await;
        }
        channels.close().await;
    });
    PortForward { forwards, closed, activity }
}

/// Says by being dropped that a connection has ended.
struct WithGuard<W> {
    writer: W,
    _guard: mpsc::Sender<()>,
}

impl<W: AsyncWrite + Unpin> AsyncWrite for WithGuard<W> {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<io::Result<usize>> {
        std::pin::Pin::new(&mut self.writer).poll_write(context, bytes)
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.writer).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.writer).poll_shutdown(context)
    }
}

/// Reads what a server says on an error stream, which is nothing when all went well.
pub(crate) async fn complaint(mut error: impl AsyncRead + Unpin) -> Option<String> {
    let mut text = Vec::new();
    let _ = (&mut error).take(64 << 10).read_to_end(&mut text).await;
    (!text.is_empty()).then(|| String::from_utf8_lossy(&text).into_owned())
}
