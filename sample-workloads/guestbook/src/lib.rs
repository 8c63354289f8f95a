//! A guestbook of two services out of one module: `ROLE=front` renders the page and calls the
//! store by its Service's name; `ROLE=store` keeps the entries in a file of its pod, or in the Redis
//! that `REDIS` names.

mod front;
mod http;
mod redis;
mod store;

use std::env;

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{IncomingRequest, ResponseOutparam};

wasip2::http::proxy::export!(Guestbook);

struct Guestbook;

impl Guest for Guestbook {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let answer = match http::Request::read(&request) {
            Err(error) => http::Response::text(400, format!("unreadable request: {error}\n")),
            Ok(request) => match env::var("ROLE").as_deref() {
                Ok("front") => front::answer(&request),
                Ok("store") => store::answer(&request),
                _ => http::Response::text(500, "set ROLE to front or store\n"),
            },
        };
        answer.send(out);
    }
}
