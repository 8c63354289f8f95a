//! Keeps one entry a line in a file of the pod, or in Redis; asks for the token that both services mount.

use std::env;
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write as _};

use crate::http::{Request, Response};
use crate::redis;

const ENTRIES: &str = "/data/entries";
/// Where the Secret is mounted.
pub const TOKEN: &str = "/secrets/token";

pub fn answer(request: &Request) -> Response {
    if request.path == "/healthz" {
        return Response::text(200, "ok\n");
    }
    match fs::read_to_string(TOKEN) {
        Err(error) => return Response::text(500, format!("{TOKEN}: {error}\n")),
        Ok(token) if request.token.as_deref() != Some(token.trim()) => {
            return Response::text(403, "wrong token\n");
        }
        Ok(_) => {}
    }
    if request.post {
        let line = request.body.replace(['\r', '\n'], " ");
        if line.trim().is_empty() {
            return Response::text(400, "the entry is empty\n");
        }
        if let Err(error) = append(&line) {
            return Response::text(500, format!("{}: {error}\n", place()));
        }
        println!("entry of {} bytes", line.len());
    }
    match entries() {
        Ok(entries) => Response::text(200, entries),
        Err(error) => Response::text(500, format!("{}: {error}\n", place())),
    }
}

fn place() -> String {
    env::var("REDIS").unwrap_or_else(|_| ENTRIES.to_owned())
}

fn append(line: &str) -> io::Result<()> {
    match env::var("REDIS") {
        Ok(address) => redis::append(&address, line),
        Err(_) => {
            let mut file = OpenOptions::new().create(true).append(true).open(ENTRIES)?;
            writeln!(file, "{line}")
        }
    }
}

fn entries() -> io::Result<String> {
    match env::var("REDIS") {
        Ok(address) => Ok(redis::entries(&address)?.into_iter().map(|entry| entry + "\n").collect()),
        Err(_) => match fs::read_to_string(ENTRIES) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
            entries => entries,
        },
    }
}
