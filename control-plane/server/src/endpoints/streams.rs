//! `pods/NAME/exec`, `attach` and `portforward`: checked here, then a connection through to the
//! node, which speaks WebSocket and SPDY itself.

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http::header::{
    CONNECTION, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, Method, StatusCode};
use hyper_util::rt::TokioIo;
use sampan_api::Error;
use serde_json::Value;

use super::Context;
use super::log::{container, escape};
use crate::authorization::{self, Attributes};
use crate::nodes;

/// Headers that belong to the agreement between client and node.
const PASSED: [HeaderName; 9] = [
    CONNECTION,
    UPGRADE,
    SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_ACCEPT,
    SEC_WEBSOCKET_VERSION,
    SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_EXTENSIONS,
    HeaderName::from_static("x-stream-protocol-version"),
    http::header::ORIGIN,
];
/// Bytes under way in each direction.
const BUFFER: usize = 64 << 10;

pub async fn serve(context: &mut Context, subresource: &'static str, mut request: Request) -> Result<Response, Error> {
    // A WebSocket is asked for by GET, which is no mere reading here.
    if context.verb != "create" {
        let attributes = Attributes {
            verb: "create",
            resource: "pods",
            subresource,
            namespace: &context.path.namespace,
            name: &context.path.name,
            ..Attributes::default()
        };
        authorization::require(&context.app, &context.identity, &attributes)?;
    }
    let target = target(context, subresource)?;
    if !is_upgrade(request.headers()) {
        return Err(Error::BadRequest("Upgrade request required".to_owned()));
    }
    let client = hyper::upgrade::on(&mut request);
    let mut passed = Request::new(Body::empty());
    *passed.method_mut() = if request.method() == Method::POST { Method::POST } else { Method::GET };
    *passed.uri_mut() = target.parse().map_err(|error| Error::BadRequest(format!("path: {error}")))?;
    copy(request.headers(), passed.headers_mut());
    let mut answer = context.app.nodes.send(passed).await?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(answer);
    }
    let node = hyper::upgrade::on(&mut answer);
    let shutdown = context.app.shutdown.clone();
    tokio::spawn(async move {
        let through = async {
            let (client, node) = tokio::try_join!(client, node).map_err(std::io::Error::other)?;
            let (mut client, mut node) = (TokioIo::new(client), TokioIo::new(node));
            tokio::io::copy_bidirectional_with_sizes(&mut client, &mut node, BUFFER, BUFFER).await
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            result = through => if let Err(error) = result {
                tracing::debug!(subresource, %error, "stream ended");
            },
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    copy(answer.headers(), response.headers_mut());
    Ok(response)
}

fn copy(from: &HeaderMap, to: &mut HeaderMap) {
    for name in PASSED {
        for value in from.get_all(&name) {
            to.append(&name, value.clone());
        }
    }
}

fn is_upgrade(headers: &HeaderMap) -> bool {
    let values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    headers.contains_key(UPGRADE)
        && values.flat_map(|value| value.split(',')).any(|word| word.trim().eq_ignore_ascii_case("upgrade"))
}

/// Where on which node this is served.
fn target(context: &Context, subresource: &str) -> Result<String, Error> {
    let (namespace, name, query) = (&context.path.namespace, &context.path.name, &context.query);
    let pod = context.app.find("", "pods", namespace, name);
    let pod = pod.ok_or_else(|| Error::NotFound { resource: "pods".to_owned(), name: name.clone() })?.value();
    let (path, parameters) = match subresource {
        "portforward" => {
            let ports: Vec<&str> = query.all("ports").flat_map(|ports| ports.split(',')).collect();
            for port in &ports {
                if port.parse::<i32>().is_err() {
                    return Err(Error::BadRequest(format!("strconv.ParseInt: parsing {port:?}: invalid syntax")));
                }
            }
            let ports = if ports.is_empty() { String::new() } else { format!("port={}", escape(&ports.join(","))) };
            (format!("portForward/{namespace}/{name}"), ports)
        }
        _ => {
            let container = container(&pod, name, query.text("container"))?;
            let flags = [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")];
            let mut parameters: Vec<String> = flags
                .iter()
                .filter(|(ours, _)| query.flag(ours) == Some(true))
                .map(|(_, nodes)| format!("{nodes}=1"))
                .collect();
            if subresource == "exec" {
                parameters.extend(query.all("command").map(|word| format!("command={}", escape(word))));
            }
            (format!("{subresource}/{namespace}/{name}/{container}"), parameters.join("&"))
        }
    };
    let node = pod.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or_default();
    if node.is_empty() {
        return Err(Error::BadRequest(format!("pod {name} does not have a host assigned")));
    }
    let endpoint = nodes::endpoint(&context.app, node)?;
    Ok(format!("https://{endpoint}/{path}?{parameters}"))
}
