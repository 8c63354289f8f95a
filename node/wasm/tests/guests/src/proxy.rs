//! Does what the path says: the tests' wasi:http guest.

use std::io::{Read as _, Write as _};

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    Fields, IncomingRequest, OutgoingBody, OutgoingRequest, OutgoingResponse, ResponseOutparam,
    Scheme,
};

wasip2::http::proxy::export!(Proxy);

struct Proxy;

impl Guest for Proxy {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = request.path_with_query().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        match path {
            "/trap" => panic!("as asked"),
            "/spin" => loop {
                std::hint::black_box(query);
            },
            "/sleep" => {
                let ms = query.parse().unwrap_or(0);
                println!("sleeping");
                std::thread::sleep(std::time::Duration::from_millis(ms));
                answer(out, 200, b"slept");
            }
            "/eat" => {
                let mut all = Vec::new();
                for _ in 0..query.parse().unwrap_or(0) {
                    all.push(vec![1_u8; 1 << 20]);
                }
                answer(out, 200, format!("{}", std::hint::black_box(&all).len()).as_bytes());
            }
            "/env" => {
                let value = std::env::var(query).unwrap_or_default();
                println!("env {query}");
                answer(out, 200, value.as_bytes());
            }
            "/read" => match std::fs::read(query) {
                Ok(bytes) => answer(out, 200, &bytes),
                Err(error) => answer(out, 404, error.to_string().as_bytes()),
            },
            "/echo" => {
                let Ok(body) = request.consume() else { return };
                let Ok(input) = body.stream() else { return };
                let response = OutgoingResponse::new(Fields::new());
                let Ok(body) = response.body() else { return };
                ResponseOutparam::set(out, Ok(response));
                if let Ok(mut output) = body.write() {
                    while let Ok(chunk) = input.blocking_read(4096) {
                        if output.write_all(&chunk).is_err() {
                            return;
                        }
                    }
                }
                let _ = OutgoingBody::finish(body, None);
            }
            "/fetch" => match fetch(query) {
                Ok((status, body)) => answer(out, status, &body),
                Err(error) => answer(out, 502, error.as_bytes()),
            },
            _ => answer(out, 200, target.as_bytes()),
        }
    }
}

/// Fetches `AUTHORITY/PATH` over plain HTTP.
fn fetch(query: &str) -> Result<(u16, Vec<u8>), String> {
    let (authority, path) = query.split_once('/').unwrap_or((query, ""));
    let request = OutgoingRequest::new(Fields::new());
    let _ = request.set_scheme(Some(&Scheme::Http));
    let _ = request.set_authority(Some(authority));
    let _ = request.set_path_with_query(Some(&format!("/{path}")));
    let future = outgoing_handler::handle(request, None).map_err(|e| format!("{e:?}"))?;
    future.subscribe().block();
    let response = future.get().ok_or("none")?.map_err(|()| "twice")?.map_err(|e| format!("{e:?}"))?;
    let status = response.status();
    let body = response.consume().map_err(|()| "body")?;
    let mut bytes = Vec::new();
    if let Ok(mut stream) = body.stream() {
        stream.read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    }
    Ok((status, bytes))
}

fn answer(out: ResponseOutparam, status: u16, text: &[u8]) {
    let response = OutgoingResponse::new(Fields::new());
    let _ = response.set_status_code(status);
    let Ok(body) = response.body() else { return };
    ResponseOutparam::set(out, Ok(response));
    if let Ok(mut stream) = body.write() {
        let _ = stream.write_all(text);
    }
    let _ = OutgoingBody::finish(body, None);
}
