//! The socket: TLS, who is behind it, HTTP/1.1 and h2, and an end that lets answers finish.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use crate::app::App;
use crate::authentication;
use crate::identity::Identity;
use crate::pki;
use crate::request::Query;
use crate::respond;

const HANDSHAKE: Duration = Duration::from_secs(10);
const HEADERS: Duration = Duration::from_secs(30);
/// How long answers may take to finish once the server ends.
const DRAIN: Duration = Duration::from_secs(10);
const KEEPALIVE: Duration = Duration::from_secs(30);
const STREAMS: u32 = 1000;

/// Serves until `shutdown`, then waits for what is still being answered.
pub async fn serve(app: Arc<App>, listener: TcpListener, tls: rustls::ServerConfig, router: Router) {
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let graceful = GracefulShutdown::new();
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE);
    let (handshakes, mut ready) = tokio::sync::mpsc::channel(64);
    loop {
        tokio::select! {
            () = app.shutdown.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let (acceptor, handshakes) = (acceptor.clone(), handshakes.clone());
                    tokio::spawn(async move {
                        if let Some(connection) = handshake(acceptor, stream).await {
                            let _ = handshakes.send(connection).await;
                        }
                    });
                }
                Err(error) => {
                    // Out of descriptors, most likely: trying again at once would not help.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some((stream, certificate)) = ready.recv() => {
                let service = TowerToHyperService::new(entrance(app.clone(), certificate, router.clone()));
                let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
                let connection = graceful.watch(connection);
                tokio::spawn(async move {
                    if let Err(error) = connection.await {
                        tracing::debug!(%error, "connection ended");
                    }
                });
            }
        }
    }
    drop(listener);
    if tokio::time::timeout(DRAIN, graceful.shutdown()).await.is_err() {
        tracing::warn!("connections were still open at the end");
    }
}

type Stream = tokio_rustls::server::TlsStream<TcpStream>;

async fn handshake(acceptor: TlsAcceptor, stream: TcpStream) -> Option<(Stream, Option<Identity>)> {
    let _ = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%error, "TLS handshake failed");
            return None;
        }
        Err(_) => return None,
    };
    let (_, session) = stream.get_ref();
    let certificate = session.peer_certificates().and_then(|chain| chain.first()).and_then(pki::identity_of);
    Some((stream, certificate))
}

/// Authentication in front of the router.
fn entrance(
    app: Arc<App>,
    certificate: Option<Identity>,
    router: Router,
) -> impl tower::Service<
    http::Request<hyper::body::Incoming>,
    Response = Response,
    Error = std::convert::Infallible,
    Future: Send,
> + Clone {
    tower::service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let (app, certificate, router) = (app.clone(), certificate.clone(), router.clone());
        async move {
            let mut request: Request = request.map(axum::body::Body::new);
            match authentication::authenticate(&app, certificate, request.headers()) {
                Ok(identity) => {
                    request.extensions_mut().insert(identity);
                    router.oneshot(request).await
                }
                Err(error) => {
                    let query = Query::parse(request.uri());
                    Ok(respond::error(request.headers(), &query, &error))
                }
            }
        }
    })
}
