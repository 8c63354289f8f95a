//! WebSocket channels, from a client that is only WebSocket.

use futures::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use super::*;

async fn connect(address: SocketAddr, query: &str, protocol: &str) -> WebSocketStream<TcpStream> {
    let mut request = format!("ws://{address}/?{query}").into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
    let stream = TcpStream::connect(address).await.unwrap();
    let (socket, response) = soon(tokio_tungstenite::client_async(request, stream)).await.unwrap();
    let agreed = response.headers().get("sec-websocket-protocol").unwrap().to_str().unwrap().to_owned();
    assert!(protocol.split(", ").any(|offer| offer == agreed), "{agreed}");
    socket
}

/// What came on each channel until the server closed.
async fn gather(socket: &mut WebSocketStream<TcpStream>) -> [Vec<u8>; 5] {
    let mut channels: [Vec<u8>; 5] = Default::default();
    loop {
        match soon(socket.next()).await {
            Some(Ok(Message::Binary(bytes))) => channels[usize::from(bytes[0])].extend_from_slice(&bytes[1..]),
            Some(Ok(Message::Close(frame))) => {
                assert_eq!(u16::from(frame.unwrap().code), 1000);
                return channels;
            }
            Some(Ok(_)) => {}
            other => panic!("{other:?}"),
        }
    }
}

fn message(channel: u8, bytes: &[u8]) -> Message {
    Message::Binary([&[channel], bytes].concat().into())
}

#[tokio::test]
async fn a_command_by_websocket() {
    let (address, mut watched) = server().await;
    let socket = connect(address, "stdin&stdout&stderr", "v5.channel.k8s.io, v4.channel.k8s.io").await;
    let (mut sink, messages) = socket.split();
    let sent = pattern(3 << 20);
    let feeding = async {
        for part in sent.chunks(30_000) {
            sink.send(message(0, part)).await.unwrap();
        }
        sink.send(Message::Ping("still here?".into())).await.unwrap();
        // v5: the input has ended.
        sink.send(message(255, &[0])).await.unwrap();
        sink
    };
    let gathering = async {
        let (mut channels, mut messages): ([Vec<u8>; 5], _) = (Default::default(), messages);
        while let Some(Ok(message)) = soon(messages.next()).await {
            match message {
                Message::Binary(bytes) => channels[usize::from(bytes[0])].extend_from_slice(&bytes[1..]),
                Message::Close(_) => break,
                _ => {}
            }
        }
        channels
    };
    let (_sink, channels) = tokio::join!(feeding, gathering);
    assert!(channels[1] == sent, "{} bytes came back", channels[1].len());
    assert_eq!(channels[2], format!("{} bytes", sent.len()).as_bytes());
    let status: serde_json::Value = serde_json::from_slice(&channels[3]).unwrap();
    assert_eq!(
        (&status["reason"], &status["details"]["causes"][0]["message"]),
        (&"NonZeroExitCode".into(), &"3".into())
    );

    let mut socket = connect(address, "stdin&stdout&tty", "v4.channel.k8s.io").await;
    socket.send(message(4, br#"{"Width":80,"Height":24}{"Width":81,"#)).await.unwrap();
    socket.send(message(4, br#""Height":25}"#)).await.unwrap();
    assert_eq!(soon(watched.sizes.recv()).await, Some(Size { width: 80, height: 24 }));
    assert_eq!(soon(watched.sizes.recv()).await, Some(Size { width: 81, height: 25 }));
}

#[tokio::test]
async fn the_oldest_protocol_is_told_in_words() {
    let (address, _watched) = server().await;
    let mut socket = connect(address, "stdout&stderr", "channel.k8s.io").await;
    let [_, stdout, stderr, error, _] = gather(&mut socket).await;
    assert_eq!((stdout.as_slice(), stderr.as_slice()), (&b"no input"[..], &b"0 bytes"[..]));
    assert!(error.starts_with(b"command terminated with non-zero exit code"), "{error:?}");
}

#[tokio::test]
async fn base64_for_those_who_cannot_else() {
    let (address, _watched) = server().await;
    let mut socket = connect(address, "stdout", "v4.base64.channel.k8s.io").await;
    let mut seen = Vec::new();
    while let Some(Ok(message)) = soon(socket.next()).await {
        match message {
            Message::Text(text) => seen.push(text.to_string()),
            Message::Close(_) => break,
            _ => {}
        }
    }
    assert_eq!(seen[..2], ["1", "1bm8gaW5wdXQ="]);
    assert!(seen[2].starts_with("3ey"), "{seen:?}");
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_command() {
    let (address, watched) = server().await;
    let socket = connect(address, "stdin&stdout", "v4.channel.k8s.io").await;
    drop(socket);
    soon(watched.dropped.cancelled()).await;
}

#[tokio::test]
async fn ports_by_websocket() {
    let (address, _watched) = server().await;
    let (port, closed) = (echo().await, closed_port().await);
    let mut socket = connect(address, &format!("forward&{port}&{closed}"), "v4.channel.k8s.io").await;
    socket.send(message(0, b"hello")).await.unwrap();
    let mut channels: [Vec<u8>; 4] = Default::default();
    while channels[0].len() < 7 || channels[3].len() < 9 {
        let Some(Ok(Message::Binary(bytes))) = soon(socket.next()).await else { panic!("closed") };
        channels[usize::from(bytes[0])].extend_from_slice(&bytes[1..]);
    }
    // Each channel begins with its port.
    assert_eq!(channels[0], [&port.to_le_bytes()[..], b"hello"].concat());
    assert_eq!(channels[1], port.to_le_bytes());
    assert_eq!(channels[3], [&closed.to_le_bytes()[..], b"refused"].concat());
}

#[tokio::test]
async fn spdy_through_a_websocket() {
    let (address, _watched) = server().await;
    let socket = connect(address, "forward", "SPDY/3.1+portforward.k8s.io").await;
    let tunnel = crate::websocket::Tunnel::new(socket);
    let (session, _incoming) = crate::spdy::Session::start(tunnel, crate::spdy::Role::Client, Default::default());
    let port = echo().await.to_string();
    let headers =
        |kind: &str| crate::spdy::Headers::from([("streamtype", kind), ("port", port.as_str()), ("requestid", "0")]);
    let _error = soon(session.open(headers("error"))).await.unwrap();
    let mut data = soon(session.open(headers("data"))).await.unwrap();
    let sent = pattern(200_000);
    let (mut from, mut to) = tokio::io::split(&mut data);
    let feeding = async {
        to.write_all(&sent).await.unwrap();
        to.shutdown().await.unwrap();
    };
    let mut back = Vec::new();
    soon(async { tokio::join!(feeding, from.read_to_end(&mut back)) }).await.1.unwrap();
    assert!(back == sent);
}

#[tokio::test]
async fn what_is_no_upgrade_is_refused() {
    let asked = |headers: &[(&'static str, &str)], wanted| {
        let mut request = Request::new(());
        for (name, value) in headers {
            request.headers_mut().append(*name, value.parse().unwrap());
        }
        crate::remote_command(&mut request, wanted)
            .map(|pending| pending.response)
            .map_err(|error| Box::new(error.response()))
    };
    let wanted = Wanted { stdout: true, ..Wanted::default() };
    assert_eq!(asked(&[], wanted).unwrap_err().status(), 400);
    let websocket = [("connection", "keep-alive, Upgrade"), ("upgrade", "websocket"), ("sec-websocket-version", "13")];
    assert!(asked(&websocket, wanted).unwrap_err().body().contains("Sec-WebSocket-Key"));
    let spdy = [("connection", "upgrade"), ("upgrade", "SPDY/3.1"), ("x-stream-protocol-version", "v9.channel.k8s.io")];
    let response = asked(&spdy, wanted).unwrap_err();
    assert_eq!(response.status(), 403);
    let accepted = response.headers()["x-accepted-stream-protocol-versions"].to_str().unwrap();
    assert!(accepted.contains("v4.channel.k8s.io, v3.channel.k8s.io"), "{accepted}");
}
