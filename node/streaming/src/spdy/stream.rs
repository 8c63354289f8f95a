//! One stream of a session, to be read from and written to.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::sync::PollSender;

use super::frame::Frame;
use super::session::Shared;
use super::window::Window;

/// Most bytes of one frame that is sent.
const CHUNK: usize = 32 << 10;
/// The peer's window is opened again once so much was read.
const CREDIT: usize = 32 << 10;
const CANCEL: u32 = 5;

pub enum Inbound {
    /// Bytes, and their part of what the session may hold.
    Data(Bytes, OwnedSemaphorePermit),
    Fin,
    Reset,
}

/// Reads end with the peer's half, [`AsyncWrite::poll_shutdown`] ends ours. A stream that is
/// dropped before both have ended is cancelled.
pub struct Stream {
    id: u32,
    inbound: mpsc::UnboundedReceiver<Inbound>,
    current: Option<(Bytes, OwnedSemaphorePermit)>,
    outbound: PollSender<Frame>,
    window: Arc<Window>,
    /// The peer has reset it, or the session is over.
    dead: Arc<AtomicBool>,
    shared: Arc<Shared>,
    read_ended: bool,
    write_ended: bool,
    consumed: usize,
}

impl Stream {
    pub(super) fn new(
        id: u32,
        inbound: mpsc::UnboundedReceiver<Inbound>,
        outbound: mpsc::Sender<Frame>,
        window: Arc<Window>,
        dead: Arc<AtomicBool>,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            id,
            inbound,
            current: None,
            outbound: PollSender::new(outbound),
            window,
            dead,
            shared,
            read_ended: false,
            write_ended: false,
            consumed: 0,
        }
    }

    pub fn id(&self) -> u32 {
        self.id
    }

    fn credit(&mut self, length: usize) {
        if !self.shared.opens_windows() {
            return;
        }
        self.consumed += length;
        if self.consumed >= CREDIT && !self.read_ended {
            let delta = u32::try_from(self.consumed).unwrap_or(u32::MAX);
            // No room: with the next read.
            if self.shared.control(Frame::WindowUpdate { id: self.id, delta }) {
                self.consumed = 0;
            }
        }
        self.shared.credit(length);
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if let Some((data, _)) = &mut self.current {
                let length = data.len().min(buffer.remaining());
                buffer.put_slice(data.get(..length).unwrap_or_default());
                data.advance(length);
                if data.is_empty() {
                    self.current = None;
                }
                self.credit(length);
                return Poll::Ready(Ok(()));
            }
            if self.read_ended {
                return Poll::Ready(Ok(()));
            }
            match ready!(self.inbound.poll_recv(context)) {
                Some(Inbound::Data(data, permit)) => {
                    if !data.is_empty() {
                        self.current = Some((data, permit));
                    }
                }
                // A reset is how some peers end what they have sent all of.
                Some(Inbound::Fin | Inbound::Reset) => self.read_ended = true,
                None => return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into())),
            }
        }
    }
}

fn broken() -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.write_ended || self.dead.load(Ordering::Acquire) {
            return Poll::Ready(Err(broken()));
        }
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        ready!(self.outbound.poll_reserve(context)).map_err(|_| broken())?;
        let wanted = bytes.len().min(CHUNK);
        let taken = ready!(self.window.poll_take(context, wanted));
        let sent = match self.shared.poll_window(context, taken) {
            Poll::Ready(sent) => sent,
            Poll::Pending => {
                self.window.change(i64::try_from(taken).unwrap_or(0));
                return Poll::Pending;
            }
        };
        if sent < taken {
            self.window.change(i64::try_from(taken - sent).unwrap_or(0));
        }
        let data = Bytes::copy_from_slice(bytes.get(..sent).unwrap_or_default());
        let id = self.id;
        self.outbound.send_item(Frame::Data { id, fin: false, data }).map_err(|_| broken())?;
        Poll::Ready(Ok(sent))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.write_ended || self.dead.load(Ordering::Acquire) {
            return Poll::Ready(Ok(()));
        }
        ready!(self.outbound.poll_reserve(context)).map_err(|_| broken())?;
        let id = self.id;
        self.outbound.send_item(Frame::Data { id, fin: true, data: Bytes::new() }).map_err(|_| broken())?;
        self.write_ended = true;
        Poll::Ready(Ok(()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        while !self.read_ended {
            match self.inbound.try_recv() {
                Ok(Inbound::Fin | Inbound::Reset) => self.read_ended = true,
                Ok(Inbound::Data(..)) => {}
                Err(_) => break,
            }
        }
        self.shared.forget(self.id);
        if (self.read_ended && self.write_ended) || self.dead.load(Ordering::Acquire) {
            return;
        }
        // Behind what was written: a reset overtakes nothing.
        let frame = Frame::RstStream { id: self.id, status: CANCEL };
        let Some(sender) = self.outbound.get_ref().cloned() else { return };
        if let Err(mpsc::error::TrySendError::Full(frame)) = sender.try_send(frame)
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(async move { sender.send(frame).await });
        }
    }
}
