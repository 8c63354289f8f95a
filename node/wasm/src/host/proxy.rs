//! `wasi:http/proxy` components: a listener, and a fresh instance for each request.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wasmtime_wasi::filesystem::WasiFilesystemCtx;
use wasmtime_wasi_http::WasiHttpView as _;
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p2::bindings::http::types::{ErrorCode, Scheme};
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;

use super::command::{cause, explain};
use super::container::{Container, Exit};
use super::state::{State, Template};
use crate::engine::Ticker;
use crate::limits::Metered;

const REQUESTS: usize = 256;
const CONNECTIONS: usize = 1024;
const TIMEOUT: Duration = Duration::from_secs(300);
/// How long a client may take to send a request's head.
const HEAD: Duration = Duration::from_secs(30);
/// How long a proxy that was asked to end goes on taking connections: until every node has heard
/// that it is no endpoint any more. A guest cannot wait by itself, it gets no signal.
const LINGER: Duration = Duration::from_millis(500);
const SIGKILL: i32 = 9;

/// What serving one container's requests needs.
struct Service {
    template: Arc<Template>,
    pre: ProxyPre<State>,
    ticker: Ticker,
    /// Opened by the first request, for all: an idle container holds no descriptor for them.
    mounts: OnceLock<WasiFilesystemCtx>,
    requests: Semaphore,
    timeout: Duration,
    address: SocketAddr,
    /// Instances at work; they may outlive their connection.
    guests: TaskTracker,
    /// An instance wanted more memory than the container may have.
    starved: CancellationToken,
    kill: CancellationToken,
}

pub fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
        SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(1024)
}

pub async fn serve(container: &Container, pre: ProxyPre<State>, listener: TcpListener) -> Exit {
    let spec = &container.template.spec;
    let service = Arc::new(Service {
        template: container.template.clone(),
        pre,
        ticker: container.ticker(),
        mounts: OnceLock::new(),
        requests: Semaphore::new(match spec.max_requests {
            0 => REQUESTS,
            most => most as usize,
        }),
        timeout: match spec.request_timeout_seconds {
            0 => TIMEOUT,
            seconds => Duration::from_secs(seconds.into()),
        },
        address: match listener.local_addr() {
            Ok(address) => address,
            Err(error) => return Exit::cannot_run(error.to_string()),
        },
        guests: TaskTracker::new(),
        starved: CancellationToken::new(),
        kill: container.kill.clone(),
    });
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    let open = TaskTracker::new();
    let closing = CancellationToken::new();
    let lingered = async {
        container.drain.cancelled().await;
        tokio::time::sleep(LINGER).await;
    };
    tokio::pin!(lingered);
    let out_of_memory = || Exit::out_of_memory(container.template.memory.limit());
    let killed = || Exit::signal(SIGKILL, "killed");
    loop {
        let accepted = async {
            let permit = connections.clone().acquire_owned().await;
            (listener.accept().await, permit)
        };
        tokio::select! {
            biased;
            () = container.kill.cancelled() => return killed(),
            () = service.starved.cancelled() => {
                container.kill.cancel();
                return out_of_memory();
            }
            () = &mut lingered => break,
            (stream, permit) = accepted => match stream {
                Ok((stream, _)) => {
                    let service = service.clone();
                    let closing = closing.clone();
                    open.spawn(async move {
                        converse(service, stream, closing).await;
                        drop(permit);
                    });
                }
                // Out of descriptors, or a connection that failed before it was ours.
                Err(error) => {
                    tracing::debug!(%error, "accept");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            },
        }
    }
    // From here on new connections are refused; those that are open finish their request.
    drop(listener);
    closing.cancel();
    open.close();
    service.guests.close();
    let drained = async {
        open.wait().await;
        service.guests.wait().await;
    };
    tokio::select! {
        biased;
        () = container.kill.cancelled() => killed(),
        () = service.starved.cancelled() => out_of_memory(),
        () = drained => Exit::code(0),
    }
}

/// One connection: HTTP/1.1 with keep-alive, or HTTP/2 without TLS.
async fn converse(service: Arc<Service>, stream: TcpStream, closing: CancellationToken) {
    let _ = stream.set_nodelay(true);
    let kill = service.kill.clone();
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD).keep_alive(true);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(100);
    let handler = hyper::service::service_fn(move |request| {
        let service = service.clone();
        async move { Ok::<_, std::convert::Infallible>(service.answer(request).await) }
    });
    let connection = builder.serve_connection(TokioIo::new(stream), handler);
    tokio::pin!(connection);
    let mut draining = false;
    loop {
        tokio::select! {
            biased;
            () = kill.cancelled() => return,
            result = connection.as_mut() => {
                if let Err(error) = result {
                    tracing::debug!(error, "connection");
                }
                return;
            }
            () = closing.cancelled(), if !draining => {
                draining = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<HyperOutgoingBody> {
    let body = Full::new(Bytes::from_static(text.as_bytes())).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

impl Service {
    async fn answer(self: Arc<Self>, mut request: Request<Incoming>) -> Response<HyperOutgoingBody> {
        if request.uri().authority().is_none() && !request.headers().contains_key(header::HOST) {
            // Of HTTP/1.0; guests are promised an authority.
            if let Ok(host) = HeaderValue::try_from(self.address.to_string()) {
                request.headers_mut().insert(header::HOST, host);
            }
        }
        let (sender, mut receiver) = oneshot::channel();
        let service = self.clone();
        let mut guest = Box::pin(async move {
            let kill = service.kill.clone();
            tokio::select! {
                biased;
                () = kill.cancelled() => Err(anyhow::anyhow!("container stopped")),
                result = service.handle(request, sender) => result,
            }
        });
        // Within the connection's task until the answer has begun: no thread has to be woken for it, and most
        // guests are done by then.
        let (answer, ended) = tokio::select! {
            biased;
            result = &mut guest => (receiver.try_recv().ok(), Some(result)),
            answer = &mut receiver => (answer.ok(), None),
        };
        let Some(answer) = answer else {
            // The sender went with the store, which goes with the guest.
            let result = match ended {
                Some(result) => result,
                None => guest.await,
            };
            let error = match result {
                Ok(()) => anyhow::anyhow!("the guest ended without an answer"),
                Err(error) => error,
            };
            self.report(&error);
            return match error.is::<TimedOut>() {
                true => plain(StatusCode::GATEWAY_TIMEOUT, "the guest took too long\n"),
                false => plain(StatusCode::INTERNAL_SERVER_ERROR, "internal error\n"),
            };
        };
        match ended {
            Some(Ok(())) => {}
            Some(Err(error)) => self.report(&error),
            // It goes on after its answer has begun, and its failure is still told.
            None => {
                let service = self.clone();
                self.guests.spawn(async move {
                    if let Err(error) = guest.await {
                        service.report(&error);
                    }
                });
            }
        }
        answer.unwrap_or_else(|error| {
            self.template.say(&format!("the guest answered with an error: {error}"));
            plain(StatusCode::INTERNAL_SERVER_ERROR, "internal error\n")
        })
    }

    fn mounts(&self) -> anyhow::Result<WasiFilesystemCtx> {
        if let Some(open) = self.mounts.get() {
            return Ok(open.clone());
        }
        let open = self.template.mounts()?;
        Ok(self.mounts.get_or_init(|| open).clone())
    }

    fn report(&self, error: &anyhow::Error) {
        if self.kill.is_cancelled() {
            return;
        }
        self.template.say(&explain(error));
        tracing::debug!(container = self.template.spec.id, cause = cause(error), "request");
        if self.template.memory.refused() {
            self.starved.cancel();
        }
    }

    async fn handle(
        &self,
        request: Request<Incoming>,
        sender: oneshot::Sender<Result<Response<HyperOutgoingBody>, ErrorCode>>,
    ) -> anyhow::Result<()> {
        let _permit = self.requests.acquire().await?;
        self.template.memory.room().await;
        let guest = async {
            let mut store = self.template.component(self.template.stdio(), self.mounts()?);
            let mut view = store.data_mut().http();
            let request = view.new_incoming_request(Scheme::Http, request)?;
            let out = view.new_response_outparam(sender)?;
            let proxy = self.pre.instantiate_async(&mut store).await?;
            proxy.wasi_http_incoming_handler().call_handle(&mut store, request, out).await?;
            Ok(())
        };
        let guest = Metered::new(guest, self.template.cpu.clone(), self.ticker.clone());
        match tokio::time::timeout(self.timeout, guest).await {
            Ok(result) => result,
            Err(_) => Err(TimedOut(self.timeout.as_secs()).into()),
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the guest took more than {0} s for a request")]
struct TimedOut(u64);
