//! The client of a container runtime's streaming URL, as CRI's Exec, Attach and PortForward answer
//! it: SPDY/3.1 over plain HTTP.

use std::io;

use bytes::Bytes;
use futures::FutureExt as _;
use http::header::{CONNECTION, HOST, UPGRADE};
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::activity::Activity;
use crate::spdy::{Headers, Incoming, Role, Session, Stream};
use crate::status::Outcome;
use crate::upgrade::FORWARD;
use crate::{Size, Streams, Wanted, forward};

/// The protocol whose end is told as a status.
const VERSION: &str = "v4.channel.k8s.io";
/// Most of a refusal, and of a status, that is read.
const TEXT: u64 = 64 << 10;

/// Why a streaming URL could not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("streaming URL {0:?}: {1}; it has to be http://ADDRESS:PORT/PATH")]
    Url(String, &'static str),
    #[error("connecting to the runtime's streaming server at {0}: {1}")]
    Connect(String, io::Error),
    #[error("the runtime's streaming server: {0}")]
    Http(#[from] hyper::Error),
    #[error("the runtime's streaming server answered {0}: {1}")]
    Refused(StatusCode, String),
    #[error("the runtime's streaming server: {0}")]
    Stream(#[from] io::Error),
}

async fn connect(url: &str, protocol: &'static str) -> Result<(Session, Incoming), Error> {
    let wrong = |why| Error::Url(url.to_owned(), why);
    let uri: Uri = url.parse().map_err(|_| wrong("not a URL"))?;
    if uri.scheme_str() != Some("http") {
        return Err(wrong("another scheme than http"));
    }
    let authority = uri.authority().ok_or_else(|| wrong("no address"))?.clone();
    let address = (authority.host().trim_matches(['[', ']']), authority.port_u16().unwrap_or(80));
    let failed = |error| Error::Connect(authority.to_string(), error);
    let stream = TcpStream::connect(address).await.map_err(failed)?;
    let _ = stream.set_nodelay(true);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "streaming connection");
        }
    });
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.method_mut() = Method::POST;
    *request.uri_mut() =
        uri.path_and_query().map_or("/", |path| path.as_str()).parse().map_err(|_| wrong("no path"))?;
    let headers = request.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
    headers.insert("x-stream-protocol-version", HeaderValue::from_static(protocol));
    headers.insert(HOST, HeaderValue::from_str(authority.as_str()).map_err(|_| wrong("no address"))?);
    let response = sender.send_request(request).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let status = response.status();
        let body = http_body_util::Limited::new(response.into_body(), TEXT as usize).collect().await;
        let text = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).trim().to_owned()).unwrap_or_default();
        return Err(Error::Refused(status, text));
    }
    let agreed = response.headers().get("x-stream-protocol-version").map(|agreed| agreed.as_bytes().to_vec());
    if agreed.is_some_and(|agreed| agreed != protocol.as_bytes()) {
        return Err(Error::Refused(StatusCode::SWITCHING_PROTOCOLS, format!("but does not speak {protocol}")));
    }
    let io = TokioIo::new(hyper::upgrade::on(response).await?);
    Ok(Session::start(io, Role::Client, Activity::default()))
}

/// Runs the command, or attaches to the container, that the URL is for. `wanted` has to be what the
/// runtime was asked for.
pub async fn remote_command(url: &str, wanted: Wanted) -> Result<Streams, Error> {
    let (session, _) = connect(url, VERSION).await?;
    let open = async |kind: &str, wanted: bool| -> Result<Option<Stream>, Error> {
        if !wanted {
            return Ok(None);
        }
        Ok(Some(session.open(Headers::from([("streamtype", kind)])).await?))
    };
    // The order in which other clients open theirs.
    let error = open("error", true).await?;
    let stdin = open("stdin", wanted.stdin).await?;
    let stdout = open("stdout", wanted.stdout).await?;
    let stderr = open("stderr", wanted.has_stderr()).await?;
    let resize = open("resize", wanted.tty).await?;
    let resize = resize.map(|mut stream| {
        let (sender, mut sizes) = mpsc::channel::<Size>(4);
        tokio::spawn(async move {
            while let Some(size) = sizes.recv().await {
                let text = serde_json::to_vec(&size).unwrap_or_default();
                if stream.write_all(&text).await.is_err() {
                    return;
                }
            }
        });
        sender
    });
    let outcome = async move {
        let Some(error) = error else { return Outcome::Success };
        let mut text = Vec::new();
        let read = error.take(TEXT).read_to_end(&mut text).await;
        drop(session);
        match read {
            // In this version of the protocol even success has its words.
            _ if !text.is_empty() => Outcome::decode(&text),
            Ok(_) => Outcome::Failed("the runtime's streaming server ended without a status".to_owned()),
            Err(problem) => Outcome::Failed(format!("the runtime's streaming server: {problem}")),
        }
    };
    Ok(Streams {
        stdin: stdin.map(|stream| Box::pin(stream) as _),
        stdout: stdout.map(|stream| Box::pin(stream) as _),
        stderr: stderr.map(|stream| Box::pin(stream) as _),
        resize,
        outcome: outcome.boxed(),
    })
}

/// Connections to ports through a runtime's streaming URL.
pub struct PortForward {
    session: Session,
    requests: u64,
}

impl PortForward {
    pub async fn connect(url: &str) -> Result<Self, Error> {
        let (session, _) = connect(url, FORWARD).await?;
        Ok(Self { session, requests: 0 })
    }

    /// A connection to a port, and what the runtime complains of, if it does.
    pub async fn open(&mut self, port: u16) -> Result<(Stream, impl Future<Output = Option<String>> + use<>), Error> {
        let (port, request) = (port.to_string(), self.requests.to_string());
        self.requests += 1;
        let headers = |kind: &str| -> Headers {
            Headers::from([("streamtype", kind), ("port", port.as_str()), ("requestid", request.as_str())])
        };
        let mut error = self.session.open(headers("error")).await?;
        // Nothing is said on it from this side.
        error.shutdown().await?;
        let data = self.session.open(headers("data")).await?;
        Ok((data, forward::complaint(error)))
    }
}
