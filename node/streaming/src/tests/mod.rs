//! Both sides against each other, over real connections on loopback.

#![allow(clippy::unwrap_used)]

mod channels;
mod frames;
mod spdy;

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{Outcome, Size, Streams, Wanted};

const PATIENCE: Duration = Duration::from_secs(20);

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("in time")
}

/// Serves upgrades until the test's runtime ends. Query: `stdin`, `stdout`, `stderr`, `tty`, or
/// `forward` with ports.
async fn server() -> (SocketAddr, Watched) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sizes, seen) = mpsc::channel(8);
    let dropped = CancellationToken::new();
    let watched = Watched { sizes: seen, dropped: dropped.clone() };
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (sizes, dropped) = (sizes.clone(), dropped.clone());
            let service = hyper::service::service_fn(move |request| answer(request, sizes.clone(), dropped.clone()));
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::spawn(connection.with_upgrades());
        }
    });
    (address, watched)
}

/// What the server saw.
struct Watched {
    sizes: mpsc::Receiver<Size>,
    /// A command's streams were dropped.
    dropped: CancellationToken,
}

async fn answer(
    mut request: Request<Incoming>,
    sizes: mpsc::Sender<Size>,
    dropped: CancellationToken,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let query = request.uri().query().unwrap_or_default().to_owned();
    let has = |name: &str| query.split('&').any(|word| word == name);
    if has("forward") {
        let ports = query.split('&').filter_map(|word| word.parse().ok()).collect();
        let pending = match crate::port_forward(&mut request, ports) {
            Ok(pending) => pending,
            Err(error) => return Ok(error.response().map(Full::from)),
        };
        let response = pending.response.clone().map(|()| Full::default());
        tokio::spawn(async move {
            let mut forwards = pending.open(PATIENCE).await.unwrap();
            while let Some(forward) = forwards.next().await {
                tokio::spawn(async move {
                    match TcpStream::connect(("127.0.0.1", forward.port)).await {
                        Ok(stream) => drop(forward.copy(stream).await),
                        Err(_) => forward.fail("refused").await,
                    }
                });
            }
        });
        return Ok(response);
    }
    let wanted = Wanted { stdin: has("stdin"), stdout: has("stdout"), stderr: has("stderr"), tty: has("tty") };
    let pending = match crate::remote_command(&mut request, wanted) {
        Ok(pending) => pending,
        Err(error) => return Ok(error.response().map(Full::from)),
    };
    let response = pending.response.clone().map(|()| Full::default());
    tokio::spawn(async move {
        let Ok(client) = pending.open(PATIENCE).await else { return };
        client.run(command(wanted, sizes, dropped), PATIENCE).await;
    });
    Ok(response)
}

/// A command that copies its input to its output, says how much it was, and exits with 3.
fn command(wanted: Wanted, sizes: mpsc::Sender<Size>, dropped: CancellationToken) -> Streams {
    let (stdin, mut input) = tokio::io::duplex(4096);
    let (mut output, stdout) = tokio::io::duplex(4096);
    let (mut complaints, stderr) = tokio::io::duplex(4096);
    let guard = dropped.drop_guard();
    let outcome = async move {
        let mut all = 0;
        if wanted.stdin {
            let mut buffer = vec![0; 8192];
            while let Ok(length @ 1..) = input.read(&mut buffer).await {
                all += length;
                output.write_all(&buffer[..length]).await.unwrap();
            }
        } else {
            output.write_all(b"no input").await.unwrap();
        }
        if wanted.has_stderr() {
            complaints.write_all(format!("{all} bytes").as_bytes()).await.unwrap();
        }
        drop((output, complaints));
        let outcome = Outcome::exit(&["test".to_owned()], 3);
        drop(guard);
        outcome
    };
    Streams {
        stdin: wanted.stdin.then(|| Box::pin(stdin) as _),
        stdout: Some(Box::pin(stdout)),
        stderr: wanted.has_stderr().then(|| Box::pin(stderr) as _),
        resize: Some(sizes),
        outcome: outcome.boxed(),
    }
}

/// A server that sends back what it gets.
async fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (mut from, mut to) = stream.into_split();
            tokio::spawn(async move { tokio::io::copy(&mut from, &mut to).await });
        }
    });
    port
}

/// A port that nobody listens on.
async fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n / 7 + n) as u8).collect()
}
