//! `channel.k8s.io`: streams by number over one WebSocket, the number in front of each message.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use futures::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_util::io::StreamReader;
use tokio_util::sync::{CancellationToken, PollSender};

use crate::Reader;
use crate::activity::Activity;

/// In v5: the channel named by the next byte has ended.
const CLOSE: u8 = 255;
/// Longest message that is sent.
const CHUNK: usize = 32 << 10;
/// Messages of one channel that wait to be read.
const QUEUE: usize = 16;
/// How long the client may take to close after we did.
const LINGER: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    Binary,
    /// Text messages: a digit, then base64.
    Base64,
}

impl Codec {
    fn encode(self, channel: u8, data: &[u8]) -> Message {
        match self {
            Self::Binary => {
                let mut bytes = BytesMut::with_capacity(data.len() + 1);
                bytes.put_u8(channel);
                bytes.put_slice(data);
                Message::Binary(bytes.freeze())
            }
            Self::Base64 => Message::text(format!("{}{}", char::from(b'0' + channel), STANDARD.encode(data))),
        }
    }

    fn decode(self, mut message: Bytes) -> Option<(u8, Bytes)> {
        if message.is_empty() {
            return None;
        }
        let channel = message.get_u8();
        match self {
            Self::Binary => Some((channel, message)),
            Self::Base64 => Some((channel.checked_sub(b'0')?, STANDARD.decode(&message).ok()?.into())),
        }
    }
}

enum Outbound {
    Data(u8, Bytes),
    End,
}

/// The channels of one connection.
pub struct Channels {
    outbound: mpsc::Sender<Outbound>,
    inbound: HashMap<u8, mpsc::Receiver<io::Result<Bytes>>>,
    pub closed: CancellationToken,
}

impl Channels {
    /// Takes over a connection; `inbound` are the channels that the client may write to, what comes
    /// on others is passed over.
    pub fn start<T>(socket: WebSocketStream<T>, codec: Codec, inbound: &[u8], activity: Activity) -> Self
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (mut sink, mut messages) = socket.split();
        let (outbound, mut queue) = mpsc::channel(QUEUE);
        let closed = CancellationToken::new();
        let (mut senders, mut receivers) = (HashMap::new(), HashMap::new());
        for channel in inbound {
            let (sender, receiver) = mpsc::channel(QUEUE);
            senders.insert(*channel, sender);
            receivers.insert(*channel, receiver);
        }
        let (ended, touched) = (closed.clone(), activity.clone());
        tokio::spawn(async move {
            let sending = async {
                while let Some(Outbound::Data(channel, data)) = queue.recv().await {
                    touched.touch();
                    if sink.send(codec.encode(channel, &data)).await.is_err() {
                        return;
                    }
                }
                let _ =
                    sink.send(Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }))).await;
                // The client's answer is read by the other task, which then ends this one.
                let _ = tokio::time::timeout(LINGER, ended.cancelled()).await;
            };
            tokio::select! {
                () = ended.cancelled() => {}
                () = sending => {}
            }
            ended.cancel();
        });
        let ended = closed.clone();
        tokio::spawn(async move {
            let receiving = async {
                while let Some(Ok(message)) = messages.next().await {
                    let bytes = match message {
                        Message::Binary(bytes) => bytes,
                        Message::Text(text) => Bytes::from(text),
                        // Until the connection ends, so that our answer is sent.
                        _ => continue,
                    };
                    activity.touch();
                    let Some((channel, data)) = codec.decode(bytes) else { continue };
                    if channel == CLOSE {
                        data.first().map(|channel| senders.remove(channel));
                    } else if let Some(sender) = senders.get(&channel)
                        && !data.is_empty()
                    {
                        // Who reads no more loses it, as with a pipe.
                        let _ = sender.send(Ok(data)).await;
                    }
                }
            };
            let whole = tokio::select! {
                () = ended.cancelled() => false,
                () = receiving => true,
            };
            if whole {
                // What was not ended before was cut off.
                for sender in senders.into_values() {
                    let _ = sender.try_send(Err(io::ErrorKind::ConnectionAborted.into()));
                }
            }
            ended.cancel();
        });
        Self { outbound, inbound: receivers, closed }
    }

    /// What the client writes to a channel. Once for each.
    pub fn reader(&mut self, channel: u8) -> Option<Reader> {
        let receiver = self.inbound.remove(&channel)?;
        Some(Box::pin(StreamReader::new(ReceiverStream::new(receiver))))
    }

    pub fn writer(&self, channel: u8) -> ChannelWriter {
        ChannelWriter { channel, outbound: PollSender::new(self.outbound.clone()) }
    }

    /// Sends a message as it is, also an empty one.
    pub async fn send(&self, channel: u8, data: impl Into<Bytes>) {
        let _ = self.outbound.send(Outbound::Data(channel, data.into())).await;
    }

    /// Sends what was written, and waits until the client has closed too or does not.
    pub async fn close(self) {
        if self.outbound.send(Outbound::End).await.is_ok() {
            self.closed.cancelled().await;
        }
    }
}

/// Our half of a channel. Channels have no end of their own: shutting it down does nothing.
pub struct ChannelWriter {
    channel: u8,
    outbound: PollSender<Outbound>,
}

impl AsyncWrite for ChannelWriter {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let broken = || io::Error::from(io::ErrorKind::BrokenPipe);
        ready!(self.outbound.poll_reserve(context)).map_err(|_| broken())?;
        let part = bytes.get(..bytes.len().min(CHUNK)).unwrap_or_default();
        let item = Outbound::Data(self.channel, Bytes::copy_from_slice(part));
        self.outbound.send_item(item).map_err(|_| broken())?;
        Poll::Ready(Ok(part.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn messages() {
        assert_eq!(Codec::Binary.encode(1, b"hi"), Message::Binary(Bytes::from_static(b"\x01hi")));
        assert_eq!(Codec::Base64.encode(1, b"hi"), Message::text("1aGk="));
        assert_eq!(Codec::Base64.decode(Bytes::from_static(b"0aGk=")).unwrap(), (0, Bytes::from_static(b"hi")));
        assert_eq!(Codec::Base64.decode(Bytes::from_static(b"0a*")), None);
        assert_eq!(Codec::Base64.decode(Bytes::from_static(b"\x00aGk=")), None);
        assert_eq!(Codec::Binary.decode(Bytes::new()), None);
    }
}
