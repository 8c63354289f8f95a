//! `pods/NAME/log`: the log of a container, fetched from its node.

use axum::body::Body;
use axum::response::Response;
use http::{Method, StatusCode};
use sampan_api::Error;
use sampan_api::validation::requests::LogOptions;
use serde_json::Value;

use super::Context;
use crate::nodes;
use crate::respond;

/// Options that the node is told.
const PASSED: &[&str] = &[
    "follow",
    "previous",
    "timestamps",
    "tailLines",
    "limitBytes",
    "sinceSeconds",
    "sinceTime",
    "stream",
    "insecureSkipTLSVerifyBackend",
];

pub async fn serve(context: &mut Context) -> Result<Response, Error> {
    let (namespace, name) = (&context.path.namespace, &context.path.name);
    let query = &context.query;
    let pod = context.app.find("", "pods", namespace, name);
    let pod = pod.ok_or_else(|| Error::NotFound { resource: "pods".to_owned(), name: name.clone() })?.value();
    LogOptions {
        tail_lines: query.int("tailLines")?,
        limit_bytes: query.int("limitBytes")?,
        since_seconds: query.int("sinceSeconds")?,
        since_time: query.get("sinceTime"),
        stream: query.get("stream"),
    }
    .validate(name)?;
    let container = container(&pod, name, query.text("container"))?;
    let node = pod.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or_default();
    if node.is_empty() {
        // It runs nowhere yet: there is nothing to show.
        return Ok(respond::text(StatusCode::NO_CONTENT, Body::empty()));
    }
    let endpoint = nodes::endpoint(&context.app, node)?;
    let options: Vec<String> = PASSED
        .iter()
        .filter_map(|option| query.get(option).map(|value| format!("{option}={}", escape(value))))
        .collect();
    let uri = format!("https://{endpoint}/containerLogs/{namespace}/{name}/{container}?{}", options.join("&"));
    let request = http::Request::builder()
        .method(Method::GET)
        .uri(uri)
        .body(Body::empty())
        .map_err(|error| Error::BadRequest(error.to_string()))?;
    let response = context.app.nodes.send(request).await?;
    if response.status().is_success() {
        let (_, body) = response.into_parts();
        return Ok(respond::with_body(StatusCode::OK, "text/plain", body));
    }
    Err(refused(response).await)
}

/// What a node says is wrong, as a `Status`.
async fn refused(response: Response) -> Error {
    let code = response.status();
    let body = axum::body::to_bytes(response.into_body(), 64 << 10).await.unwrap_or_default();
    if let Ok(status) = serde_json::from_slice::<Value>(&body)
        && status.get("kind").and_then(Value::as_str) == Some("Status")
    {
        return Error::Status(Box::new(status));
    }
    let text = String::from_utf8_lossy(&body).trim().to_owned();
    let text = if text.is_empty() { format!("the node answered {code}") } else { text };
    match code {
        StatusCode::BAD_REQUEST => Error::BadRequest(text),
        StatusCode::NOT_FOUND => Error::Status(Box::new(serde_json::json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "NotFound",
            "message": text, "code": 404,
        }))),
        _ => Error::Internal(text),
    }
}

pub fn escape(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// The container a client means: its only one, the annotated default, or the one it names.
pub fn container(pod: &Value, name: &str, wanted: &str) -> Result<String, Error> {
    let names = |key: &str| -> Vec<String> {
        let list = pod.pointer(&format!("/spec/{key}")).and_then(Value::as_array);
        list.into_iter()
            .flatten()
            .filter_map(|container| container.get("name").and_then(Value::as_str))
            .map(str::to_owned)
            .collect()
    };
    let [own, init, ephemeral] = ["containers", "initContainers", "ephemeralContainers"].map(names);
    if !wanted.is_empty() {
        if own.iter().chain(&init).chain(&ephemeral).any(|known| known == wanted) {
            return Ok(wanted.to_owned());
        }
        return Err(Error::BadRequest(format!("container {wanted} is not valid for pod {name}")));
    }
    match own.as_slice() {
        [only] if init.is_empty() && ephemeral.is_empty() => return Ok(only.clone()),
        [] => {
            return Err(Error::BadRequest(format!("a container name must be specified for pod {name}")));
        }
        _ => {}
    }
    let annotated = pod
        .pointer("/metadata/annotations")
        .and_then(|annotations| annotations.get("kubectl.kubernetes.io/default-container"))
        .and_then(Value::as_str);
    if let Some(annotated) = annotated.filter(|annotated| own.iter().any(|known| known == annotated)) {
        return Ok(annotated.to_owned());
    }
    let mut message = format!("a container name must be specified for pod {name}, choose one of: [{}]", own.join(" "));
    if !init.is_empty() {
        message += &format!(" or one of the init containers: [{}]", init.join(" "));
    }
    if !ephemeral.is_empty() {
        message += &format!(" or one of the ephemeral containers: [{}]", ephemeral.join(" "));
    }
    Err(Error::BadRequest(message))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn which_container() {
        let one = json!({"spec": {"containers": [{"name": "a"}]}});
        assert_eq!(container(&one, "p", "").ok().as_deref(), Some("a"));
        let two = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]}});
        let message = container(&two, "p", "").map_err(|error| error.to_string());
        assert_eq!(
            message.err().as_deref(),
            Some(
                "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]"
            )
        );
        assert_eq!(container(&two, "p", "i").ok().as_deref(), Some("i"));
        assert!(container(&two, "p", "x").is_err());
    }
}
