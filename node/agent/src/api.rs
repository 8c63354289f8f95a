//! The node's HTTPS API: logs, pods, images and streams, for the cluster's API server and nobody else.

mod images;

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path as Route, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1 as core;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use sampan_client::Informer;
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::logs::{self, Log};
use crate::pod::paths;
use crate::pod::shared::Shared;
use crate::pod::spec;
use crate::runtime::ContainerId;
use crate::streams;

const USER: &str = "system:kube-apiserver";
const GROUP: &str = "system:masters";
const HANDSHAKE: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub struct Api {
    pub shared: Arc<Shared>,
    pub pods: Informer<core::Pod>,
}

pub fn router(shared: Arc<Shared>, pods: Informer<core::Pod>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/pods", get(list_pods))
        .route("/containerLogs/{namespace}/{pod}/{container}", get(container_logs))
        .merge(images::routes())
        .merge(streams::routes())
        .layer(DefaultBodyLimit::disable())
        .with_state(Api { shared, pods })
}

/// TLS that takes only certificates of the cluster's CA.
pub fn tls(ca_pem: &str, cert_pem: &str, key_pem: &str) -> anyhow::Result<rustls::ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        roots.add(certificate.context("the cluster's CA")?)?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build()?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(cert_pem.as_bytes())
        .collect::<Result<_, _>>()
        .context("the node's certificate")?;
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).context("the node's key")?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Serves until shutdown.
pub async fn serve(listener: TcpListener, tls: rustls::ServerConfig, router: Router, shutdown: CancellationToken) {
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    loop {
        let (stream, peer) = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, most likely: not a reason to spin.
                    tracing::warn!(%error, "no connection taken");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let (acceptor, router, shutdown) = (acceptor.clone(), router.clone(), shutdown.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = connection(stream, peer, acceptor, router) => {}
            }
        });
    }
}

async fn connection(
    stream: tokio::net::TcpStream,
    peer: SocketAddr,
    acceptor: tokio_rustls::TlsAcceptor,
    router: Router,
) {
    let _ = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%peer, %error, "TLS refused");
            return;
        }
        Err(_) => return,
    };
    let known = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).is_some_and(is_api_server);
    let router = if known { router } else { Router::new().fallback(|| async { forbidden() }) };
    let service = TowerToHyperService::new(router);
    let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    if let Err(error) = server.serve_connection_with_upgrades(TokioIo::new(stream), service).await {
        tracing::debug!(%peer, error = %error, "connection ended");
    }
}

/// Whether a certificate, already verified, is the API server's.
fn is_api_server(certificate: &CertificateDer<'_>) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return false };
    let subject = certificate.subject();
    let user = subject.iter_common_name().filter_map(|name| name.as_str().ok()).any(|name| name == USER);
    let group = subject.iter_organization().filter_map(|name| name.as_str().ok()).any(|name| name == GROUP);
    user || group
}

fn forbidden() -> Response {
    status(StatusCode::FORBIDDEN, "Forbidden", &format!("only {USER} may use the API of a node"))
}

/// A Kubernetes Status, as clients behind the API server's proxy expect it.
pub(super) fn status(code: StatusCode, reason: &str, message: &str) -> Response {
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "reason": reason, "message": message, "code": code.as_u16(),
    });
    (code, Json(body)).into_response()
}

async fn list_pods(State(api): State<Api>) -> Response {
    let pods: Vec<_> = api.pods.list();
    Json(json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": pods })).into_response()
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct LogQuery {
    follow: Option<String>,
    previous: Option<String>,
    timestamps: Option<String>,
    tail_lines: Option<u64>,
    since_seconds: Option<i64>,
    since_time: Option<String>,
    limit_bytes: Option<u64>,
    stream: Option<String>,
}

fn flag(value: Option<&String>) -> bool {
    value.is_some_and(|value| !matches!(value.as_str(), "false" | "0" | "f" | "F" | "False" | "FALSE"))
}

async fn container_logs(
    State(api): State<Api>,
    Route((namespace, pod, container)): Route<(String, String, String)>,
    Query(query): Query<LogQuery>,
) -> Response {
    match log(&api, &namespace, &pod, &container, &query) {
        Ok((log, options, ended)) => {
            let (sender, receiver) = mpsc::channel::<io::Result<bytes::Bytes>>(4);
            tokio::spawn(async move { log.read(options, sender, ended).await });
            let body = Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(receiver));
            ([("content-type", "text/plain")], body).into_response()
        }
        Err((code, message)) => (code, message).into_response(),
    }
}

type LogParts = (Log, logs::Options, CancellationToken);

fn log(
    api: &Api,
    namespace: &str,
    name: &str,
    container: &str,
    query: &LogQuery,
) -> Result<LogParts, (StatusCode, String)> {
    let bad = |message: String| (StatusCode::BAD_REQUEST, message);
    let pod =
        api.pods.get(namespace, name).ok_or_else(|| (StatusCode::NOT_FOUND, format!("pod \"{name}\" not found\n")))?;
    let uid = spec::uid(&pod);
    let runs = api.shared.runs.lock().unwrap_or_else(PoisonError::into_inner);
    let run = runs
        .get(uid)
        .and_then(|pod| pod.get(container))
        .cloned()
        .ok_or_else(|| bad(format!("container \"{container}\" in pod \"{name}\" is not available")))?;
    drop(runs);
    let previous = flag(query.previous.as_ref());
    let attempt = if previous {
        run.previous
            .ok_or_else(|| bad(format!("previous terminated container \"{container}\" in pod \"{name}\" not found")))?
    } else {
        run.current.ok_or_else(|| {
            let reason = run.waiting.clone().unwrap_or_else(|| "ContainerCreating".to_owned());
            bad(format!("container \"{container}\" in pod \"{name}\" is waiting to start: {reason}"))
        })?
    };
    let since = match (&query.since_time, query.since_seconds) {
        (Some(time), _) => Some(
            time.parse().map_err(|_| bad(format!("sinceTime: {time:?} is not a time as in 2026-01-01T00:00:00Z")))?,
        ),
        (None, Some(seconds)) => Timestamp::now().checked_sub(SignedDuration::from_secs(seconds)).ok(),
        (None, None) => None,
    };
    let options = logs::Options {
        // What has ended will not grow.
        follow: flag(query.follow.as_ref()) && !previous && run.live.is_some(),
        timestamps: flag(query.timestamps.as_ref()),
        tail: query.tail_lines,
        since,
        limit: query.limit_bytes,
        stream: match query.stream.as_deref() {
            None | Some("" | "All") => None,
            Some(stream) => Some(stream.to_lowercase()),
        },
    };
    let id =
        ContainerId { tenant: run.tenant.clone(), pod_uid: uid.to_owned(), container: container.to_owned(), attempt };
    let log = Log::new(&api.shared.paths.tenant(&run.tenant), &paths::log(&id));
    Ok((log, options, run.live.unwrap_or_default()))
}

/// Directories that everything of a node is in, readable by nobody else unless it has to be.
pub fn make_dirs(dir: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    // Host processes of other users pass through the first and read the modules.
    for (name, mode) in [("", 0o711), ("tenants", 0o711), ("modules", 0o755), ("images", 0o700), ("network", 0o755)] {
        let dir = dir.join(name);
        std::fs::create_dir_all(&dir)
            .and_then(|()| std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(mode)))
            .with_context(|| dir.display().to_string())?;
    }
    Ok(())
}
