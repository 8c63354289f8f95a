//! A session against a peer that is only frames.

use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use super::*;
use crate::spdy::{Decoder, Encoder, Frame, Headers, Incoming, Role, Session};

struct Peer {
    io: DuplexStream,
    encoder: Encoder,
    decoder: Decoder,
    buffer: BytesMut,
}

impl Peer {
    fn start() -> (Peer, Session, Incoming) {
        Self::of(Role::Server)
    }

    fn of(role: Role) -> (Peer, Session, Incoming) {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let (session, incoming) = Session::start(ours, role, Default::default());
        let peer =
            Peer { io: theirs, encoder: Encoder::default(), decoder: Decoder::default(), buffer: BytesMut::new() };
        (peer, session, incoming)
    }

    async fn send(&mut self, frame: Frame) {
        let mut bytes = BytesMut::new();
        self.encoder.encode(&frame, &mut bytes).unwrap();
        self.io.write_all(&bytes).await.unwrap();
    }

    async fn open(&mut self, id: u32) {
        let headers = Headers::from([("streamtype", "data")]);
        self.send(Frame::SynStream { id, associated: 0, priority: 0, fin: false, unidirectional: false, headers })
            .await;
    }

    /// None: the connection is over.
    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.decode(&mut self.buffer).unwrap() {
                return Some(frame);
            }
            if soon(self.io.read_buf(&mut self.buffer)).await.unwrap_or(0) == 0 {
                return None;
            }
        }
    }
}

#[tokio::test]
async fn a_peer_with_windows_is_given_what_fits() {
    let (mut peer, _session, mut incoming) = Peer::start();
    peer.send(Frame::Settings(vec![(0, 7, 10)])).await;
    peer.open(1).await;
    let (headers, mut stream) = soon(incoming.recv()).await.unwrap();
    assert_eq!(headers.get("streamType"), Some("data"));
    assert_eq!(peer.next().await, Some(Frame::SynReply { id: 1, fin: false, headers: Headers::default() }));
    let writing = tokio::spawn(async move {
        stream.write_all(&pattern(25)).await.unwrap();
        stream.shutdown().await.unwrap();
        stream
    });
    let mut got = Vec::new();
    for (expected, delta) in [(10, 10), (10, 100), (5, 0)] {
        let Some(Frame::Data { id: 1, fin: false, data }) = peer.next().await else { panic!("no data") };
        assert_eq!(data.len(), expected);
        got.extend_from_slice(&data);
        peer.send(Frame::WindowUpdate { id: 1, delta }).await;
    }
    assert_eq!(got, pattern(25));
    assert!(matches!(peer.next().await, Some(Frame::Data { fin: true, .. })));
    drop(soon(writing).await.unwrap());
    // It was cancelled: the peer had not ended its half.
    assert_eq!(peer.next().await, Some(Frame::RstStream { id: 1, status: 5 }));
}

#[tokio::test]
async fn what_was_read_opens_the_peers_window() {
    let (mut peer, _session, mut incoming) = Peer::start();
    peer.open(1).await;
    let (_, mut stream) = soon(incoming.recv()).await.unwrap();
    peer.next().await;
    peer.send(Frame::Data { id: 1, fin: true, data: vec![7; 40_000].into() }).await;
    let mut buffer = vec![0; 40_000];
    soon(stream.read_exact(&mut buffer[..39_999])).await.unwrap();
    let Some(Frame::WindowUpdate { id: 1, delta }) = peer.next().await else { panic!("no window") };
    assert!((32 << 10..40_000).contains(&delta), "{delta}");
    soon(stream.read_exact(&mut buffer[39_999..])).await.unwrap();
    assert_eq!(soon(stream.read(&mut buffer)).await.unwrap(), 0);
}

#[tokio::test]
async fn pings_are_answered_and_wrong_streams_refused() {
    let (mut peer, _session, mut incoming) = Peer::start();
    peer.send(Frame::Ping(1)).await;
    assert_eq!(peer.next().await, Some(Frame::Ping(1)));
    // A server's own number, one that never was, and one twice.
    peer.open(2).await;
    assert_eq!(peer.next().await, Some(Frame::RstStream { id: 2, status: 1 }));
    peer.send(Frame::Data { id: 9, fin: false, data: Bytes::from_static(b"x") }).await;
    assert_eq!(peer.next().await, Some(Frame::RstStream { id: 9, status: 9 }));
    peer.open(3).await;
    let _open = soon(incoming.recv()).await.unwrap();
    assert!(matches!(peer.next().await, Some(Frame::SynReply { id: 3, .. })));
    peer.open(3).await;
    assert_eq!(peer.next().await, Some(Frame::RstStream { id: 3, status: 1 }));
}

#[tokio::test]
async fn a_reset_ends_both_halves() {
    let (mut peer, _session, mut incoming) = Peer::start();
    peer.open(1).await;
    let (_, mut stream) = soon(incoming.recv()).await.unwrap();
    peer.send(Frame::Data { id: 1, fin: false, data: Bytes::from_static(b"last words") }).await;
    peer.send(Frame::RstStream { id: 1, status: 5 }).await;
    let mut said = String::new();
    soon(stream.read_to_string(&mut said)).await.unwrap();
    assert_eq!(said, "last words");
    assert_eq!(stream.write(b"x").await.unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn garbage_ends_the_connection_and_its_streams() {
    let (mut peer, session, mut incoming) = Peer::start();
    peer.open(1).await;
    let (_, mut stream) = soon(incoming.recv()).await.unwrap();
    peer.io.write_all(&[0x80, 9, 9, 9, 9, 9, 9, 9]).await.unwrap();
    soon(session.closed()).await;
    let cut = soon(stream.read(&mut [0; 8])).await.unwrap_err();
    assert_eq!(cut.kind(), std::io::ErrorKind::ConnectionAborted);
    assert!(stream.write(b"x").await.is_err());
    assert!(soon(incoming.recv()).await.is_none());
    assert!(soon(session.open(Headers::default())).await.is_err());
}

#[tokio::test]
async fn a_stream_that_nobody_reads_does_not_stop_the_others() {
    let (mut peer, _session, mut incoming) = Peer::start();
    peer.open(1).await;
    let _stalled = soon(incoming.recv()).await.unwrap();
    peer.open(3).await;
    let (_, mut other) = soon(incoming.recv()).await.unwrap();
    for _ in 0..32 {
        soon(peer.send(Frame::Data { id: 1, fin: false, data: vec![0; 64 << 10].into() })).await;
    }
    peer.send(Frame::Data { id: 3, fin: true, data: Bytes::from_static(b"through") }).await;
    let mut said = String::new();
    soon(other.read_to_string(&mut said)).await.unwrap();
    assert_eq!(said, "through");
}

/// As containerd does when its command has ended.
#[tokio::test]
async fn what_a_server_said_before_it_closed_is_heard() {
    let (mut peer, session, _) = Peer::of(Role::Client);
    let opening = tokio::spawn(async move {
        let out = session.open(Headers::from([("streamtype", "stdout")])).await.unwrap();
        let status = session.open(Headers::from([("streamtype", "error")])).await.unwrap();
        (session, out, status)
    });
    for id in [1, 3] {
        assert!(matches!(peer.next().await, Some(Frame::SynStream { .. })));
        peer.send(Frame::SynReply { id, fin: false, headers: Headers::default() }).await;
    }
    let (session, mut out, mut status) = soon(opening).await.unwrap();
    // More than the session holds unread: the end is still in the socket when writing fails.
    let output = pattern((4 << 20) + 300_000);
    for part in output.chunks(32 << 10) {
        peer.send(Frame::Data { id: 1, fin: false, data: part.to_vec().into() }).await;
    }
    peer.send(Frame::Data { id: 3, fin: false, data: Bytes::from_static(b"Success") }).await;
    let mut heard = vec![0; output.len()];
    let (first, rest) = heard.split_at_mut(100_000);
    soon(out.read_exact(first)).await.unwrap();
    // Nothing that the peer would leave unread: that would be a reset instead of an end.
    let quiet = futures::FutureExt::now_or_never(peer.io.read_buf(&mut peer.buffer));
    assert!(quiet.is_none(), "{:?}", peer.decoder.decode(&mut peer.buffer));
    // It is gone, and writing to it fails, before its last words are read.
    drop(peer);
    while out.write_all(b"too late").await.is_ok() {
        tokio::task::yield_now().await;
    }
    soon(out.read_exact(rest)).await.unwrap();
    assert!(heard == output);
    let mut told = String::new();
    soon(status.read_to_string(&mut told)).await.unwrap();
    assert_eq!(told, "Success");
    soon(session.closed()).await;
}

#[tokio::test]
async fn goodbye_comes_after_everything() {
    let (mut peer, session, mut incoming) = Peer::start();
    peer.open(1).await;
    let (_, mut stream) = soon(incoming.recv()).await.unwrap();
    peer.next().await;
    stream.write_all(b"all of it").await.unwrap();
    let closing = tokio::spawn(session.close());
    assert!(matches!(peer.next().await, Some(Frame::Data { .. })));
    assert_eq!(peer.next().await, Some(Frame::GoAway { last: 1, status: 0 }));
    assert_eq!(peer.next().await, None);
    drop(peer);
    soon(closing).await.unwrap();
}
