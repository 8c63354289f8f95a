//! `proxy`: a request handed on to a node's own API, to a pod or to one of a Service's pods.

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http::header::{AUTHORIZATION, CONNECTION, HOST, HeaderName, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use sampan_api::{Error, Kind};
use serde_json::Value;

use super::{BODY_LIMIT, Context};
use crate::nodes;

/// Headers that belong to one hop, or to the way to this server.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [AUTHORIZATION, CONNECTION, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
    for name in [
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "impersonate-user",
        "impersonate-group",
        "impersonate-uid",
    ] {
        headers.remove(name);
    }
}

fn target(uri: &Uri, scheme: &str, authority: &str, rest: &str) -> Result<Uri, Error> {
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let rest = rest.trim_start_matches('/');
    format!("{scheme}://{authority}/{rest}{query}").parse().map_err(|error| Error::BadRequest(format!("path: {error}")))
}

pub async fn serve(context: &mut Context, kind: &'static Kind, request: Request) -> Result<Response, Error> {
    let (mut parts, body) = request.into_parts();
    strip(&mut parts.headers);
    let rest = context.path.rest.clone();
    let mut response = match kind.plural {
        "nodes" => {
            let (name, _) = split_name(&context.path.name);
            let endpoint = nodes::endpoint(&context.app, name)?;
            parts.uri = target(&parts.uri, "https", &endpoint, &rest)?;
            parts.version = http::Version::HTTP_11;
            context.app.nodes.send(Request::from_parts(parts, body)).await?
        }
        "pods" | "services" => {
            let authority = match kind.plural {
                "pods" => pod_address(context)?,
                _ => service_address(context)?,
            };
            parts.uri = target(&parts.uri, "http", &authority, &rest)?;
            parts.version = http::Version::HTTP_11;
            let limited = Body::new(http_body_util::Limited::new(body, BODY_LIMIT));
            let client: Client<_, Body> = Client::builder(TokioExecutor::new()).build_http();
            let answer = client.request(Request::from_parts(parts, limited)).await;
            answer
                .map(|response| response.map(Body::new))
                .map_err(|error| Error::ServiceUnavailable(format!("error trying to reach service: {error}")))?
        }
        _ => return Err(Error::UnknownPath),
    };
    strip(response.headers_mut());
    Ok(response)
}

/// `[scheme:]name[:port]`: name and port.
fn split_name(text: &str) -> (&str, &str) {
    match text.split(':').collect::<Vec<_>>().as_slice() {
        [_, name, port] => (name, port),
        [name, port] => (name, port),
        _ => (text, ""),
    }
}

/// Only addresses of pods and nodes are reached through here, never the server's own machine by a
/// status that somebody wrote.
fn forbidden_address(context: &Context, address: &str) -> bool {
    let Ok(ip) = address.parse::<std::net::IpAddr>() else {
        return true;
    };
    !context.app.config.cluster_cidr.contains(&ip) && (ip.is_loopback() || ip.is_unspecified() || is_link_local(ip))
}

fn is_link_local(ip: std::net::IpAddr) -> bool {
    match ip {
        std::net::IpAddr::V4(v4) => v4.is_link_local() || v4.is_multicast(),
        std::net::IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.is_multicast(),
    }
}

fn authority(context: &Context, address: &str, port: u64) -> Result<String, Error> {
    if forbidden_address(context, address) {
        return Err(Error::BadRequest(format!("address {address} is not allowed")));
    }
    Ok(if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") })
}

fn pod_address(context: &Context) -> Result<String, Error> {
    let (name, port) = split_name(&context.path.name);
    let pod = context.app.find("", "pods", &context.path.namespace, name);
    let pod = pod.ok_or_else(|| Error::NotFound { resource: "pods".to_owned(), name: name.to_owned() })?.value();
    let address = pod.pointer("/status/podIP").and_then(Value::as_str).unwrap_or_default();
    if address.is_empty() {
        return Err(Error::ServiceUnavailable(format!("pod {name} has no address yet")));
    }
    let ports = pod
        .pointer("/spec/containers")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .flat_map(|container| container.get("ports").and_then(Value::as_array).cloned().unwrap_or_default());
    let number = |entry: &Value| entry.get("containerPort").and_then(Value::as_u64);
    let port = match port {
        "" => ports.into_iter().find_map(|entry| number(&entry)).unwrap_or(80),
        text => match text.parse() {
            Ok(number) => number,
            Err(_) => ports
                .into_iter()
                .find(|entry| entry.get("name").and_then(Value::as_str) == Some(text))
                .and_then(|entry| number(&entry))
                .ok_or_else(|| Error::BadRequest(format!("pod {name} has no port {text:?}")))?,
        },
    };
    authority(context, address, port)
}

/// A ready endpoint of the Service's port.
fn service_address(context: &Context) -> Result<String, Error> {
    let (name, port) = split_name(&context.path.name);
    let namespace = &context.path.namespace;
    let service = context.app.find("", "services", namespace, name);
    let service =
        service.ok_or_else(|| Error::NotFound { resource: "services".to_owned(), name: name.to_owned() })?.value();
    let ports = service.pointer("/spec/ports").and_then(Value::as_array).cloned().unwrap_or_default();
    let text = |entry: &Value, key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let chosen = match port {
        "" if ports.len() == 1 => ports.first(),
        "" => None,
        port => ports.iter().find(|entry| {
            text(entry, "name") == port
                || entry.get("port").and_then(Value::as_u64).map(|n| n.to_string()).as_deref() == Some(port)
        }),
    };
    let chosen = chosen
        .ok_or_else(|| Error::ServiceUnavailable(format!("no service port {port:?} found for service {name:?}")))?;
    let port_name = text(chosen, "name");
    let slices = context.app.kind_cache("discovery.k8s.io", "endpointslices").ok_or(Error::UnknownPath)?;
    let (found, _) = slices.list(namespace, None, 0, |slice| slice.label("kubernetes.io/service-name") == Some(name));
    let mut candidates: Vec<(String, u64)> = Vec::new();
    for slice in found.objects.iter().map(|slice| slice.value()) {
        let port = slice
            .get("ports")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .find(|entry| text(entry, "name") == port_name);
        let Some(port) = port.and_then(|entry| entry.get("port")).and_then(Value::as_u64) else {
            continue;
        };
        for endpoint in slice.get("endpoints").and_then(Value::as_array).into_iter().flatten() {
            if endpoint.pointer("/conditions/ready").and_then(Value::as_bool) == Some(false) {
                continue;
            }
            let addresses = endpoint.get("addresses").and_then(Value::as_array).into_iter().flatten();
            candidates.extend(addresses.filter_map(Value::as_str).map(|address| (address.to_owned(), port)));
        }
    }
    if candidates.is_empty() {
        return Err(Error::ServiceUnavailable(format!("no endpoints available for service {name:?}")));
    }
    let (address, port) = candidates.swap_remove(rand::random_range(0..candidates.len()));
    authority(context, &address, port)
}
