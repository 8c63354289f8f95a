//! Just enough of HTTP over wasi:http: whole bodies in, whole bodies out.

use std::io::{self, Read as _, Write as _};

use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    Fields, IncomingBody, IncomingRequest, Method, OutgoingBody, OutgoingRequest, OutgoingResponse, ResponseOutparam,
    Scheme,
};

/// Longest body taken, bytes.
const MAX_BODY: u64 = 64 * 1024;

pub struct Request {
    pub post: bool,
    pub path: String,
    pub token: Option<String>,
    pub body: String,
}

impl Request {
    pub fn read(request: &IncomingRequest) -> io::Result<Self> {
        let body = request.consume().map_err(|()| io::Error::other("the body is gone"))?;
        let token = request.headers().get("x-guestbook-token").into_iter().next();
        Ok(Self {
            post: matches!(request.method(), Method::Post),
            path: request.path_with_query().unwrap_or_else(|| "/".to_owned()),
            token: token.map(|value| String::from_utf8_lossy(&value).into_owned()),
            body: read_body(body)?,
        })
    }
}

fn read_body(body: IncomingBody) -> io::Result<String> {
    let mut bytes = Vec::new();
    let stream = body.stream().map_err(|()| io::Error::other("the body is gone"))?;
    stream.take(MAX_BODY + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BODY {
        return Err(io::Error::other(format!("a body may have {MAX_BODY} bytes")));
    }
    String::from_utf8(bytes).map_err(io::Error::other)
}

pub struct Response {
    pub status: u16,
    content_type: &'static str,
    location: Option<&'static str>,
    pub body: String,
}

impl Response {
    pub fn text(status: u16, body: impl Into<String>) -> Self {
        Self { status, content_type: "text/plain; charset=utf-8", location: None, body: body.into() }
    }

    pub fn html(body: String) -> Self {
        Self { status: 200, content_type: "text/html; charset=utf-8", location: None, body }
    }

    pub fn see_other(location: &'static str) -> Self {
        Self { location: Some(location), ..Self::text(303, "") }
    }

    pub fn send(self, out: ResponseOutparam) {
        let headers = Fields::new();
        // A fresh set of headers takes any well-formed one.
        let _ = headers.append("content-type", self.content_type.as_bytes());
        if let Some(location) = self.location {
            let _ = headers.append("location", location.as_bytes());
        }
        let response = OutgoingResponse::new(headers);
        let _ = response.set_status_code(self.status);
        let Ok(body) = response.body() else { return };
        ResponseOutparam::set(out, Ok(response));
        let _ = write_body(body, &self.body);
    }
}

fn write_body(body: OutgoingBody, text: &str) -> io::Result<()> {
    {
        let mut stream = body.write().map_err(|()| io::Error::other("the body is gone"))?;
        stream.write_all(text.as_bytes())?;
        io::Write::flush(&mut stream)?;
    }
    OutgoingBody::finish(body, None).map_err(io::Error::other)
}

/// Calls `http://authority/path`; a body makes it a POST.
pub fn call(authority: &str, path: &str, token: &str, body: Option<&str>) -> io::Result<Response> {
    let bad = |()| io::Error::other(format!("not a request: http://{authority}{path}"));
    let headers = Fields::new();
    headers.append("x-guestbook-token", token.as_bytes()).map_err(io::Error::other)?;
    let request = OutgoingRequest::new(headers);
    request.set_scheme(Some(&Scheme::Http)).map_err(bad)?;
    request.set_authority(Some(authority)).map_err(bad)?;
    request.set_path_with_query(Some(path)).map_err(bad)?;
    request.set_method(if body.is_some() { &Method::Post } else { &Method::Get }).map_err(bad)?;
    let outgoing = request.body().map_err(bad)?;
    let future = outgoing_handler::handle(request, None).map_err(io::Error::other)?;
    write_body(outgoing, body.unwrap_or_default())?;
    future.subscribe().block();
    let response = future
        .get()
        .ok_or_else(|| io::Error::other("no answer"))?
        .map_err(|()| io::Error::other("the answer was taken already"))?
        .map_err(io::Error::other)?;
    let body = response.consume().map_err(|()| io::Error::other("the body is gone"))?;
    Ok(Response::text(response.status(), read_body(body)?))
}
