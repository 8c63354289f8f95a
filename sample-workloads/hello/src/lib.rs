//! The smallest useful microservice: says which pod answers, and what it was asked.

use std::env;
use std::io::{self, Write as _};

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};

wasip2::http::proxy::export!(Hello);

struct Hello;

impl Guest for Hello {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let pod = env::var("POD_NAME").unwrap_or_else(|_| "a pod without a name".to_owned());
        let address = env::var("POD_IP").unwrap_or_else(|_| "an unknown address".to_owned());
        let path = request.path_with_query().unwrap_or_else(|| "/".to_owned());
        let text = format!("Hello from {pod} at {address}: you asked for {path}\n");

        let headers = Fields::new();
        // A fresh set of headers takes any well-formed one.
        let _ = headers.append("content-type", b"text/plain; charset=utf-8");
        let response = OutgoingResponse::new(headers);
        let Ok(body) = response.body() else { return };
        ResponseOutparam::set(out, Ok(response));
        if let Ok(mut stream) = body.write() {
            let _ = stream.write_all(text.as_bytes()).and_then(|()| io::Write::flush(&mut stream));
        }
        let _ = OutgoingBody::finish(body, None);
    }
}
