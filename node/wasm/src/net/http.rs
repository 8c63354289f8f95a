//! Guests' outgoing HTTP: through the pod's resolver and from the pod's address.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{self, pki_types};
use wasmtime_wasi::p2::bindings::sockets::network::ErrorCode;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

use super::{ConnectError, PodNet, resolver};

/// Where neither guest nor default says otherwise.
const TIMEOUT: Duration = Duration::from_secs(600);
const CERTIFICATES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/ssl/certs/ca-bundle.crt", "/etc/ssl/certs/ca-bundle.trust.crt"];

/// What a store gives to `wasi:http`.
pub struct Hooks {
    pub net: Arc<PodNet>,
}

type Sent = (http::Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>);

impl WasiHttpHooks for Hooks {
    fn send_request(
        &mut self,
        request: http::Request<WasiBody>,
        options: Option<RequestOptions>,
        _: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Result<Sent, Error>> + Send> {
        Box::new(send(self.net.clone(), request, options.unwrap_or_default()))
    }

    fn p2_error_from_hyper(
        &mut self,
        error: &hyper::Error,
    ) -> wasmtime_wasi_http::p2::bindings::http::types::ErrorCode {
        tracing::debug!(%error, "outgoing request");
        wasmtime_wasi_http::p2::bindings::http::types::ErrorCode::HttpProtocolError
    }
}

async fn send(net: Arc<PodNet>, mut request: http::Request<WasiBody>, options: RequestOptions) -> Result<Sent, Error> {
    let tls = request.uri().scheme() == Some(&http::uri::Scheme::HTTPS);
    let authority = request.uri().authority().ok_or(Error::HttpRequestUriInvalid)?;
    let host = authority.host().to_owned();
    let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let path = request.uri().path_and_query().cloned();
    *request.uri_mut() = http::Uri::from(path.unwrap_or(http::uri::PathAndQuery::from_static("/")));

    let connect = async {
        let stream = net.connect(&host, port).await.map_err(failed)?;
        let _ = stream.set_nodelay(true);
        match tls {
            true => handshake(Box::new(secure(&host, stream).await?)).await,
            false => handshake(Box::new(stream)).await,
        }
    };
    let limit = options.connect_timeout.unwrap_or(TIMEOUT);
    let (mut sender, connection) =
        tokio::time::timeout(limit, connect).await.map_err(|_| Error::ConnectionTimeout)??;
    // Ends when its last user does: the answer's body holds it.
    let connection = wasmtime_wasi::runtime::spawn(connection);
    let limit = options.first_byte_timeout.unwrap_or(TIMEOUT);
    let response =
        tokio::time::timeout(limit, sender.send_request(request)).await.map_err(|_| Error::ConnectionReadTimeout)??;
    let limit = options.between_bytes_timeout.unwrap_or(TIMEOUT).max(Duration::from_nanos(1));
    let response = response.map(|body| Paced { body, limit, deadline: None }.boxed_unsync());
    let drive = Box::new(async move { connection.await.map_err(Error::from) });
    Ok((response, drive))
}

trait Stream: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Stream for T {}

type Sender = hyper::client::conn::http1::SendRequest<WasiBody>;
type Driver = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

async fn handshake(stream: Box<dyn Stream>) -> Result<(Sender, Driver), Error> {
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    Ok((sender, Box::pin(connection)))
}

async fn secure(host: &str, stream: TcpStream) -> Result<tokio_rustls::client::TlsStream<TcpStream>, Error> {
    static CONFIG: OnceLock<Result<Arc<rustls::ClientConfig>, String>> = OnceLock::new();
    let config = CONFIG.get_or_init(trust).clone().map_err(|error| Error::Tls(io::Error::other(error)))?;
    let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = pki_types::ServerName::try_from(bare).map_err(|error| Error::Tls(io::Error::other(error)))?;
    TlsConnector::from(config).connect(name, stream).await.map_err(Error::Tls)
}

/// The machine's certificate authorities.
fn trust() -> Result<Arc<rustls::ClientConfig>, String> {
    use pki_types::pem::PemObject as _;
    let mut roots = rustls::RootCertStore::empty();
    for path in CERTIFICATES {
        let Ok(certificates) = pki_types::CertificateDer::pem_file_iter(path) else {
            continue;
        };
        roots.add_parsable_certificates(certificates.flatten());
        if !roots.is_empty() {
            break;
        }
    }
    if roots.is_empty() {
        return Err("this machine has no certificate authorities in /etc/ssl/certs".into());
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

fn failed(error: ConnectError) -> Error {
    match error {
        ConnectError::Name(resolver::Error::Unanswered) => Error::DnsTimeout,
        ConnectError::Name(resolver::Error::NotFound) => {
            Error::DnsError { rcode: Some("NXDOMAIN".into()), info_code: None }
        }
        ConnectError::Name(resolver::Error::Invalid) => Error::HttpRequestUriInvalid,
        ConnectError::Name(resolver::Error::Failed) => {
            Error::DnsError { rcode: Some("SERVFAIL".into()), info_code: None }
        }
        ConnectError::Denied(ErrorCode::AccessDenied) => Error::DestinationIpProhibited,
        ConnectError::Denied(_) => Error::DestinationIpUnroutable,
        ConnectError::Io(error) => match error.kind() {
            io::ErrorKind::ConnectionRefused => Error::ConnectionRefused,
            io::ErrorKind::TimedOut => Error::ConnectionTimeout,
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Error::DestinationIpUnroutable,
            _ => Error::Connect(error),
        },
    }
}

/// An answer's body that may not pause for longer than the guest allows.
struct Paced {
    body: Incoming,
    limit: Duration,
    deadline: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Body for Paced {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Ready(frame) => {
                self.deadline = None;
                Poll::Ready(frame.map(|frame| frame.map_err(Error::from)))
            }
            Poll::Pending => {
                let limit = self.limit;
                let deadline = self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
                std::task::ready!(deadline.as_mut().poll(context));
                Poll::Ready(Some(Err(Error::ConnectionReadTimeout)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
