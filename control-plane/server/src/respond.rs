//! Answers: negotiation of their form, and the one place where an error becomes a `Status`.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT, CONTENT_TYPE, USER_AGENT};
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body::{Frame, SizeHint};
use sampan_api::table::Include;
use sampan_api::{Error, Kind, table};
use serde_json::{Value, json};

use crate::request::Query;

/// What an answer shows of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Object,
    Table,
    Metadata,
}

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    pub shape: Shape,
    pub yaml: bool,
    pub pretty: bool,
}

const NOT_ACCEPTABLE: &str = "406: Not Acceptable\n\nAvailable representations: application/json, application/yaml, \
    application/vnd.kubernetes.protobuf, application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch";

/// One media range of an `Accept` header.
pub struct Range<'a> {
    pub media: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
}

impl Range<'_> {
    pub fn parameter(&self, name: &str) -> &str {
        self.parameters.iter().find(|(key, _)| *key == name).map_or("", |(_, value)| *value)
    }
}

/// The ranges of an `Accept` header, the wanted first.
pub fn ranges(headers: &HeaderMap) -> Vec<Range<'_>> {
    let mut found: Vec<(u32, Range<'_>)> = Vec::new();
    for value in headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()) {
        for part in value.split(',') {
            let mut pieces = part.split(';').map(str::trim);
            let Some(media) = pieces.next().filter(|media| !media.is_empty()) else {
                continue;
            };
            let parameters: Vec<_> = pieces.filter_map(|piece| piece.split_once('=')).collect();
            let quality = parameters.iter().find(|(key, _)| *key == "q").and_then(|(_, q)| q.parse::<f32>().ok());
            let order = (1000.0 - quality.unwrap_or(1.0).clamp(0.0, 1.0) * 1000.0) as u32;
            found.push((order, Range { media, parameters }));
        }
    }
    found.sort_by_key(|(order, _)| *order);
    found.into_iter().map(|(_, range)| range).collect()
}

fn wants_pretty(headers: &HeaderMap, query: &Query) -> bool {
    query.flag("pretty").unwrap_or_else(|| {
        let agent = headers.get(USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        ["curl", "Wget", "Mozilla/5.0"].iter().any(|human| agent.starts_with(human))
    })
}

/// The form a client asks for. `list`: what it reads is a list (or a watch of one).
pub fn negotiate(headers: &HeaderMap, query: &Query, list: bool) -> Result<Form, Error> {
    let pretty = wants_pretty(headers, query);
    let all = ranges(headers);
    if all.is_empty() {
        return Ok(Form { shape: Shape::Object, yaml: false, pretty });
    }
    for range in all {
        let yaml = match range.media {
            "application/json" | "*/*" | "application/*" => false,
            "application/yaml" => true,
            _ => continue,
        };
        let meta = range.parameter("g") == "meta.k8s.io" && range.parameter("v") == "v1";
        let shape = match range.parameter("as") {
            "" => Shape::Object,
            "Table" if meta => Shape::Table,
            "PartialObjectMetadata" if meta && !list => Shape::Metadata,
            "PartialObjectMetadataList" if meta && list => Shape::Metadata,
            // A watch of metadata asks for single objects.
            "PartialObjectMetadata" if meta && query.flag("watch") == Some(true) => Shape::Metadata,
            _ => continue,
        };
        return Ok(Form { shape, yaml, pretty });
    }
    Err(Error::NotAcceptable(NOT_ACCEPTABLE.to_owned()))
}

/// What is sent at once where pieces are smaller.
const CHUNK: usize = 64 << 10;

/// What comes next of shared pieces: small ones are copied together, for each that is sent is encrypted and
/// written, and wakes who reads it.
pub fn joined(pieces: &mut VecDeque<Bytes>) -> Option<Bytes> {
    let first = pieces.pop_front()?;
    let mut length = first.len();
    let more = pieces.iter().take_while(|piece| {
        length += piece.len();
        length <= CHUNK
    });
    let more = more.count();
    if more == 0 {
        return Some(first);
    }
    let length = first.len() + pieces.iter().take(more).map(Bytes::len).sum::<usize>();
    let mut chunk = BytesMut::with_capacity(length);
    chunk.extend_from_slice(&first);
    pieces.drain(..more).for_each(|piece| chunk.extend_from_slice(&piece));
    Some(chunk.freeze())
}

/// A body of shared pieces with a known length.
struct Pieces {
    pieces: VecDeque<Bytes>,
    left: u64,
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Some(chunk) = joined(&mut self.pieces) else { return Poll::Ready(None) };
        self.left -= chunk.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// A body out of shared pieces.
pub fn pieces(all: Vec<Bytes>) -> Body {
    let left = all.iter().map(|piece| piece.len() as u64).sum();
    Body::new(Pieces { pieces: all.into(), left })
}

pub fn with_body(code: StatusCode, media: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media));
    response
}

pub const JSON: &str = "application/json";
pub const TEXT: &str = "text/plain; charset=utf-8";

pub fn text(code: StatusCode, body: impl Into<Body>) -> Response {
    let mut response = with_body(code, TEXT, body);
    response.headers_mut().insert(http::header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// The answer to a path that nobody serves.
pub fn not_found_page() -> Response {
    text(StatusCode::NOT_FOUND, "404 page not found\n")
}

fn code(code: u16) -> StatusCode {
    StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// A decoded value, in the form asked for.
pub fn value(form: Form, status: StatusCode, value: &Value) -> Response {
    if form.yaml
        && let Ok(text) = serde_saphyr::to_string(value)
    {
        return with_body(status, "application/yaml", text);
    }
    let bytes = if form.pretty { serde_json::to_vec_pretty(value) } else { serde_json::to_vec(value) };
    let mut bytes = bytes.unwrap_or_default();
    bytes.push(b'\n');
    with_body(status, JSON, bytes)
}

/// Encoded JSON: shared as it is where nothing else was asked for.
pub fn encoded(form: Form, status: StatusCode, all: Vec<Bytes>) -> Response {
    if form.yaml || form.pretty {
        let whole: Vec<u8> = all.concat();
        return match serde_json::from_slice::<Value>(&whole) {
            Ok(decoded) => value(form, status, &decoded),
            Err(_) => with_body(status, JSON, whole),
        };
    }
    with_body(status, JSON, pieces(all))
}

/// The answer to a failed request: the only place where an error gets a code and a body.
pub fn error(headers: &HeaderMap, query: &Query, error: &Error) -> Response {
    let (number, status) = error.status();
    // What a client asked wrongly, or what is not built, is the client's to know.
    if number >= 500 && number != 501 {
        tracing::warn!(code = number, %error, "request failed");
    } else {
        tracing::debug!(code = number, %error, "request refused");
    }
    let yaml = ranges(headers).first().is_some_and(|range| range.media == "application/yaml");
    let form = Form { shape: Shape::Object, yaml, pretty: wants_pretty(headers, query) };
    let mut response = value(form, code(number), &status);
    if let Some(seconds) = error.retry_after() {
        response.headers_mut().insert(http::header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if number == 401 {
        response
            .headers_mut()
            .insert(http::header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"kubernetes\""));
    }
    response
}

/// Adds one `Warning` header a text.
pub fn warn(response: &mut Response, warnings: &[String]) {
    let mut told: Vec<&String> = Vec::new();
    for warning in warnings {
        if told.contains(&warning) {
            continue;
        }
        told.push(warning);
        let mut escaped = String::with_capacity(warning.len() + 8);
        for c in warning.chars() {
            match c {
                '"' | '\\' => escaped.extend(['\\', c]),
                c if c.is_control() => escaped.push(' '),
                c => escaped.push(c),
            }
        }
        if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{escaped}\"").as_bytes()) {
            response.headers_mut().append(http::header::WARNING, value);
        }
    }
}

/// `Status: Success` with what it is about.
pub fn success(kind: &Kind, name: &str, uid: &str) -> Value {
    let mut details = json!({"name": name, "kind": kind.plural, "uid": uid});
    if !kind.group.is_empty()
        && let Some(map) = details.as_object_mut()
    {
        map.insert("group".to_owned(), kind.group.into());
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

/// How much of each object a table carries.
pub fn include(query: &Query) -> Include {
    Include::parse(query.text("includeObject")).unwrap_or_default()
}

/// One object in the shape asked for.
pub fn shaped(kind: &Kind, form: Form, object: Value, query: &Query, now: i64) -> Value {
    match form.shape {
        Shape::Object => object,
        Shape::Metadata => table::partial(&object),
        Shape::Table => {
            let version = object.pointer("/metadata/resourceVersion").cloned();
            let metadata = version.map_or_else(|| json!({}), |version| json!({"resourceVersion": version}));
            table::table(kind, &[object], metadata, include(query), true, now)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Nothing is lost, nothing changes its place, and only what is large by itself is larger than a chunk.
        #[test]
        fn pieces_are_joined(sizes in prop::collection::vec(0..CHUNK * 5 / 4, 0..20)) {
            let pieces: Vec<Bytes> =
                sizes.iter().enumerate().map(|(number, size)| Bytes::from(vec![number as u8; *size])).collect();
            let mut left: VecDeque<Bytes> = pieces.iter().cloned().collect();
            let mut chunks = Vec::new();
            while let Some(chunk) = joined(&mut left) {
                prop_assert!(chunk.len() <= CHUNK || pieces.contains(&chunk));
                chunks.push(chunk);
            }
            prop_assert_eq!(chunks.concat(), pieces.concat());
            prop_assert!(chunks.windows(2).all(|two| two[0].len() + two[1].len() > CHUNK));
        }
    }
}
