//! Calls from the server to nodes: HTTPS, verified against the cluster's own authority.

use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use sampan_api::Error;
use serde_json::Value;

use crate::app::App;
use crate::pki::{self, Pki};

const CONNECT: Duration = Duration::from_secs(5);

pub struct NodeClient {
    client: Client<hyper_rustls::HttpsConnector<HttpConnector>, Body>,
}

impl NodeClient {
    pub fn new(pki: &Pki) -> Result<Self, pki::Error> {
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_connect_timeout(Some(CONNECT));
        http.set_nodelay(true);
        let https = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(pki.node_tls()?)
            .https_only()
            .enable_http1()
            .wrap_connector(http);
        Ok(Self { client: Client::builder(TokioExecutor::new()).build(https) })
    }

    /// Sends a request to a node and hands its answer on as it comes.
    pub async fn send(&self, request: Request) -> Result<Response, Error> {
        let to = request.uri().authority().map(ToString::to_string).unwrap_or_default();
        match self.client.request(request).await {
            Ok(response) => Ok(response.map(Body::new)),
            Err(error) => {
                let mut why = error.to_string();
                let mut source = std::error::Error::source(&error);
                while let Some(inner) = source {
                    why = format!("{why}: {inner}");
                    source = inner.source();
                }
                Err(Error::ServiceUnavailable(format!("error trying to reach node at {to}: {why}")))
            }
        }
    }
}

/// Where a node's own API answers: `ADDRESS:PORT`.
pub fn endpoint(app: &App, name: &str) -> Result<String, Error> {
    let node = app
        .find("", "nodes", "", name)
        .ok_or_else(|| Error::NotFound { resource: "nodes".to_owned(), name: name.to_owned() })?
        .value();
    let addresses = node.pointer("/status/addresses").and_then(Value::as_array).cloned().unwrap_or_default();
    let of = |kind: &str| {
        let found = addresses.iter().find(|address| address.get("type").and_then(Value::as_str) == Some(kind));
        found.and_then(|address| address.get("address")).and_then(Value::as_str).map(str::to_owned)
    };
    let address = of("InternalIP").or_else(|| of("ExternalIP")).or_else(|| of("Hostname"));
    let port = node.pointer("/status/daemonEndpoints/kubeletEndpoint/Port").and_then(Value::as_u64);
    match (address, port.filter(|port| *port != 0)) {
        (Some(address), Some(port)) if address.contains(':') => Ok(format!("[{address}]:{port}")),
        (Some(address), Some(port)) => Ok(format!("{address}:{port}")),
        (None, _) => Err(Error::ServiceUnavailable(format!("node {name} has no address of type InternalIP yet"))),
        (_, None) => Err(Error::ServiceUnavailable(format!("node {name} does not say at which port it answers yet"))),
    }
}
