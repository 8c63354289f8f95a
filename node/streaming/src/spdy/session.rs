//! A connection that carries streams: one task reads frames, one writes them.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::frame::{Decoder, Encoder, Frame};
use super::headers::Headers;
use super::stream::{Inbound, Stream};
use super::window::{INITIAL, Window};
use crate::activity::Activity;

/// Streams at once.
const STREAMS: usize = 4096;
/// Bytes that streams may hold unread, over all of them. Who reads nothing stops the others only
/// when this is full.
const BUFFER: usize = 4 << 20;
/// Answers to pings and windows that wait to be sent.
const CONTROL: usize = 1024;
const OUTBOUND: usize = 16;
/// Bytes gathered into one write.
const BATCH: usize = 128 << 10;
/// How long the peer may take to close after we did.
const LINGER: Duration = Duration::from_secs(2);
const OPEN: Duration = Duration::from_secs(30);
const CREDIT: usize = 1 << 20;

const PROTOCOL_ERROR: u32 = 1;
const REFUSED_STREAM: u32 = 3;
const STREAM_CLOSED: u32 = 9;
const INITIAL_WINDOW_SIZE: u32 = 7;

/// Which streams are whose: a client's are odd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Client,
    Server,
}

struct Entry {
    inbound: mpsc::UnboundedSender<Inbound>,
    window: Arc<Window>,
    dead: Arc<AtomicBool>,
    replied: Option<oneshot::Sender<()>>,
}

impl Entry {
    fn reset(self) {
        self.dead.store(true, Ordering::Release);
        let _ = self.inbound.send(Inbound::Reset);
        self.window.wake();
    }
}

#[derive(Default)]
struct Streams {
    open: HashMap<u32, Entry>,
    next: u32,
    last: u32,
    /// Window of new streams, once the peer has announced one.
    initial: Option<i64>,
}

pub struct Shared {
    role: Role,
    streams: Mutex<Streams>,
    /// Of the whole session.
    window: Window,
    waiting: Mutex<Vec<Waker>>,
    control: mpsc::Sender<Frame>,
    consumed: AtomicUsize,
    buffer: Arc<Semaphore>,
    closed: CancellationToken,
    activity: Activity,
}

impl Shared {
    fn streams(&self) -> std::sync::MutexGuard<'_, Streams> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a frame that goes before data; false: no room.
    pub fn control(&self, frame: Frame) -> bool {
        self.control.try_send(frame).is_ok()
    }

    pub fn forget(&self, id: u32) {
        self.streams().open.remove(&id);
    }

    /// Whether the peer is told of windows. A runtime's server keeps none, and an update that it has
    /// not read when it closes would reset the connection and cost its last words.
    pub fn opens_windows(&self) -> bool {
        self.role == Role::Server
    }

    /// Counts what was read, and opens the session's window for the peer again.
    pub fn credit(&self, length: usize) {
        let consumed = self.consumed.fetch_add(length, Ordering::Relaxed) + length;
        if consumed >= CREDIT
            && self.control(Frame::WindowUpdate { id: 0, delta: u32::try_from(consumed).unwrap_or(u32::MAX) })
        {
            self.consumed.fetch_sub(consumed, Ordering::Relaxed);
        }
    }

    /// As [`Window::poll_take`], of the window that many streams may wait for.
    pub fn poll_window(&self, context: &mut Context<'_>, wanted: usize) -> Poll<usize> {
        if let Poll::Ready(taken) = self.window.poll_take(context, wanted) {
            return Poll::Ready(taken);
        }
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(context.waker().clone());
        // It may have opened before we were in the list.
        self.window.poll_take(context, wanted)
    }

    fn window_opened(&self) {
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        waiting.into_iter().for_each(Waker::wake);
    }

    fn is_ours(&self, id: u32) -> bool {
        (id % 2 == 1) == (self.role == Role::Client)
    }
}

/// Streams that the peer opens, each already answered.
pub type Incoming = mpsc::Receiver<(Headers, Stream)>;

/// A SPDY connection. It ends when this and all of its streams are dropped, by [`Session::close`],
/// or with the peer.
pub struct Session {
    shared: Arc<Shared>,
    outbound: mpsc::Sender<Frame>,
}

impl Session {
    /// Takes over a connection. `activity` is told of data both ways.
    pub fn start(
        io: impl AsyncRead + AsyncWrite + Send + 'static,
        role: Role,
        activity: Activity,
    ) -> (Session, Incoming) {
        let (reader, writer) = tokio::io::split(io);
        let (outbound, queue) = mpsc::channel(OUTBOUND);
        let (control, urgent) = mpsc::channel(CONTROL);
        let (accept, incoming) = mpsc::channel(16);
        let shared = Arc::new(Shared {
            role,
            streams: Mutex::new(Streams { next: if role == Role::Client { 1 } else { 2 }, ..Streams::default() }),
            window: Window::new(None),
            waiting: Mutex::default(),
            control,
            consumed: AtomicUsize::new(0),
            buffer: Arc::new(Semaphore::new(BUFFER)),
            closed: CancellationToken::new(),
            activity,
        });
        tokio::spawn(write(writer, queue, urgent, shared.closed.clone(), shared.activity.clone()));
        let receiving = Receiving { shared: shared.clone(), outbound: outbound.downgrade(), accept };
        tokio::spawn(async move {
            let result = tokio::select! {
                () = receiving.shared.closed.cancelled() => Ok(()),
                result = receiving.run(reader) => result,
            };
            // A server that closes has sent all it had to say, each stream's end or not.
            let whole = result.is_ok() && role == Role::Client;
            if let Err(error) = result {
                tracing::debug!(%error, "SPDY connection ended");
            }
            receiving.shared.closed.cancel();
            let streams = std::mem::take(&mut receiving.shared.streams().open);
            for (_, entry) in streams {
                if whole {
                    let _ = entry.inbound.send(Inbound::Fin);
                }
                entry.dead.store(true, Ordering::Release);
                entry.window.wake();
            }
            receiving.shared.window_opened();
        });
        (Session { shared, outbound }, incoming)
    }

    /// Opens a stream and waits until the peer has taken it.
    pub async fn open(&self, headers: Headers) -> io::Result<Stream> {
        let (replied, answer) = oneshot::channel();
        let (id, stream) = {
            let mut streams = self.shared.streams();
            let id = streams.next;
            if id >= 1 << 31 {
                return Err(io::Error::other("the SPDY session has no stream numbers left"));
            }
            streams.next += 2;
            (id, entry(&mut streams, &self.shared, &self.outbound, id, Some(replied)))
        };
        let frame = Frame::SynStream { id, associated: 0, priority: 0, fin: false, unidirectional: false, headers };
        self.outbound.send(frame).await.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        match tokio::time::timeout(OPEN, answer).await {
            Ok(Ok(())) => Ok(stream),
            Ok(Err(_)) => Err(io::Error::new(io::ErrorKind::ConnectionReset, "the peer refused the stream")),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Until the connection is over.
    pub async fn closed(&self) {
        self.shared.closed.cancelled().await;
    }

    /// Sends what was written, says goodbye, and waits until the peer has closed too or does not.
    pub async fn close(self) {
        let last = self.shared.streams().last;
        if self.outbound.send(Frame::GoAway { last, status: 0 }).await.is_ok() {
            self.shared.closed.cancelled().await;
        }
    }
}

fn entry(
    streams: &mut Streams,
    shared: &Arc<Shared>,
    outbound: &mpsc::Sender<Frame>,
    id: u32,
    replied: Option<oneshot::Sender<()>>,
) -> Stream {
    let (inbound, receiver) = mpsc::unbounded_channel();
    let window = Arc::new(Window::new(streams.initial));
    let dead = Arc::new(AtomicBool::new(false));
    streams.open.insert(id, Entry { inbound, window: window.clone(), dead: dead.clone(), replied });
    Stream::new(id, receiver, outbound.clone(), window, dead, shared.clone())
}

async fn write(
    mut io: impl AsyncWrite + Unpin,
    mut queue: mpsc::Receiver<Frame>,
    mut urgent: mpsc::Receiver<Frame>,
    closed: CancellationToken,
    activity: Activity,
) {
    let mut encoder = Encoder::default();
    let mut buffer = BytesMut::new();
    let mut ending = false;
    while !ending {
        let frame = tokio::select! {
            biased;
            () = closed.cancelled() => return,
            Some(frame) = urgent.recv() => frame,
            frame = queue.recv() => match frame {
                Some(frame) => frame,
                None => Frame::GoAway { last: 0, status: 0 },
            },
        };
        let mut next = Some(frame);
        while let Some(frame) = next.take() {
            match &frame {
                Frame::GoAway { .. } => ending = true,
                Frame::Data { .. } => activity.touch(),
                _ => {}
            }
            if let Err(error) = encoder.encode(&frame, &mut buffer) {
                tracing::debug!(%error, "SPDY frame not sent");
                return closed.cancel();
            }
            if !ending && buffer.len() < BATCH {
                next = urgent.try_recv().or_else(|_| queue.try_recv()).ok();
            }
        }
        let sent = async {
            io.write_all(&buffer).await?;
            io.flush().await
        };
        tokio::select! {
            () = closed.cancelled() => return,
            // What the peer said before it closed is still to be read: the reader ends the session.
            result = sent => if let Err(error) = result {
                tracing::debug!(%error, "SPDY frames not sent");
                return;
            },
        }
        buffer.clear();
    }
    let _ = io.shutdown().await;
    // Closing with bytes unread would cost the peer what is still on its way.
    let _ = tokio::time::timeout(LINGER, closed.cancelled()).await;
    closed.cancel();
}

struct Receiving {
    shared: Arc<Shared>,
    outbound: mpsc::WeakSender<Frame>,
    accept: mpsc::Sender<(Headers, Stream)>,
}

fn against(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

impl Receiving {
    async fn run(&self, mut io: impl AsyncRead + Unpin) -> io::Result<()> {
        let mut decoder = Decoder::default();
        let mut buffer = BytesMut::with_capacity(BATCH);
        loop {
            while let Some(frame) =
                decoder.decode(&mut buffer).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?
            {
                self.take(frame).await?;
            }
            if buffer.capacity() - buffer.len() < BATCH / 4 {
                buffer.reserve(BATCH);
            }
            if io.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        }
    }

    fn answer(&self, frame: Frame) -> io::Result<()> {
        if self.shared.control(frame) { Ok(()) } else { Err(against("more to answer than is read")) }
    }

    async fn take(&self, frame: Frame) -> io::Result<()> {
        match frame {
            Frame::SynStream { id, fin, headers, .. } => self.opened(id, fin, headers).await,
            Frame::SynReply { id, fin, .. } => {
                let replied = self.shared.streams().open.get_mut(&id).and_then(|entry| entry.replied.take());
                if let Some(replied) = replied {
                    let _ = replied.send(());
                }
                self.data(id, fin, Bytes::new()).await
            }
            Frame::Headers { id, fin, .. } => self.data(id, fin, Bytes::new()).await,
            Frame::Data { id, fin, data } => {
                self.shared.activity.touch();
                self.data(id, fin, data).await
            }
            Frame::RstStream { id, .. } => {
                let entry = self.shared.streams().open.remove(&id);
                entry.into_iter().for_each(Entry::reset);
                Ok(())
            }
            Frame::Ping(id) if !self.shared.is_ours(id) => self.answer(Frame::Ping(id)),
            Frame::Settings(settings) => {
                for (_, id, value) in settings {
                    if id == INITIAL_WINDOW_SIZE {
                        self.announced(i64::from(value));
                    }
                }
                Ok(())
            }
            Frame::WindowUpdate { id: 0, delta } => {
                let fits = self.shared.window.change(i64::from(delta));
                self.shared.window_opened();
                if fits { Ok(()) } else { Err(against("the session's window is too wide")) }
            }
            Frame::WindowUpdate { id, delta } => {
                let window = self.shared.streams().open.get(&id).map(|entry| entry.window.clone());
                match window.is_none_or(|window| window.change(i64::from(delta))) {
                    true => Ok(()),
                    false => Err(against("a stream's window is too wide")),
                }
            }
            // What is open goes on until the connection ends.
            Frame::GoAway { .. } | Frame::Ping(_) => Ok(()),
        }
    }

    /// The peer keeps windows, and ours for new and open streams are so wide.
    fn announced(&self, size: i64) {
        let mut streams = self.shared.streams();
        let before = streams.initial.replace(size);
        if before.is_none() {
            self.shared.window.enforce(INITIAL);
        }
        for entry in streams.open.values() {
            match before {
                Some(before) => drop(entry.window.change(size - before)),
                None => entry.window.enforce(size),
            }
        }
    }

    async fn opened(&self, id: u32, fin: bool, headers: Headers) -> io::Result<()> {
        let stream = {
            let mut streams = self.shared.streams();
            if self.shared.is_ours(id) || id <= streams.last {
                Err(PROTOCOL_ERROR)
            } else if streams.open.len() >= STREAMS {
                Err(REFUSED_STREAM)
            } else {
                streams.last = id;
                match self.outbound.upgrade() {
                    Some(outbound) => Ok(entry(&mut streams, &self.shared, &outbound, id, None)),
                    None => Err(REFUSED_STREAM),
                }
            }
        };
        let stream = match stream {
            Ok(stream) => stream,
            Err(status) => return self.answer(Frame::RstStream { id, status }),
        };
        // Control goes before data: nobody sees a stream's bytes before its answer.
        self.answer(Frame::SynReply { id, fin: false, headers: Headers::default() })?;
        if fin {
            self.data(id, true, Bytes::new()).await?;
        }
        // Nobody takes streams: dropping it cancels it.
        let _ = self.accept.send((headers, stream)).await;
        Ok(())
    }

    async fn data(&self, id: u32, fin: bool, data: Bytes) -> io::Result<()> {
        let inbound = self.shared.streams().open.get(&id).map(|entry| entry.inbound.clone());
        let Some(inbound) = inbound else {
            // Cancelled here while it was on its way, or never there.
            let known = {
                let streams = self.shared.streams();
                if self.shared.is_ours(id) { id < streams.next } else { id <= streams.last }
            };
            return if known { Ok(()) } else { self.answer(Frame::RstStream { id, status: STREAM_CLOSED }) };
        };
        if !data.is_empty() {
            let size = u32::try_from(data.len()).unwrap_or(u32::MAX);
            let permit = self.shared.buffer.clone().acquire_many_owned(size).await;
            let _ = inbound.send(Inbound::Data(data, permit.map_err(io::Error::other)?));
        }
        if fin {
            let _ = inbound.send(Inbound::Fin);
        }
        Ok(())
    }
}
