//! A server in this process, on a store in memory.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use sampan_server::{Config, Identity, Server};
use sampan_store::{Options, RedbStore};
use serde_json::Value;
use tokio_util::sync::{CancellationToken, DropGuard};
use tower::ServiceExt;

pub struct Harness {
    pub server: Server,
    pub shutdown: CancellationToken,
    _dir: tempfile::TempDir,
    _guard: DropGuard,
}

impl Harness {
    pub async fn start() -> Self {
        Self::start_on(Arc::new(RedbStore::in_memory(Options::default()).unwrap())).await
    }

    /// On a store that another server may have written.
    pub async fn start_on(store: Arc<RedbStore>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let shutdown = CancellationToken::new();
        let config = Config {
            dir: dir.path().to_owned(),
            listen: ([127, 0, 0, 1], 0).into(),
            advertise: None,
            names: vec!["api.example".to_owned()],
            service_cidr: "10.96.0.0/16".parse().unwrap(),
            cluster_cidr: "10.244.0.0/16".parse().unwrap(),
            node_ports: 30000..=32767,
        };
        let server = Server::start_with(config, store, Arc::new(jiff::Timestamp::now), shutdown.clone()).await.unwrap();
        Self { server, shutdown: shutdown.clone(), _dir: dir, _guard: shutdown.drop_guard() }
    }

    /// One request as an identity, straight into the router.
    pub async fn send(&self, identity: Identity, request: Request<Body>) -> Response {
        self.server.router(identity).oneshot(request).await.unwrap()
    }

    /// A request with a JSON body as the administrator: code and decoded answer.
    pub async fn call(&self, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
        self.call_as(Identity::admin(), method, path, body).await
    }

    pub async fn call_as(&self, identity: Identity, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
        let media = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", media)
            .header("user-agent", "tests/1")
            .body(body)
            .unwrap();
        let response = self.send(identity, request).await;
        let code = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (code, serde_json::from_slice(&bytes).unwrap_or_else(|_| Value::from(String::from_utf8_lossy(&bytes))))
    }
}
