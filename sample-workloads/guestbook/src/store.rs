//! Keeps one entry a line in a file of the pod; asks for the token that both services mount.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write as _};

use crate::http::{Request, Response};

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
        let written =
            OpenOptions::new().create(true).append(true).open(ENTRIES).and_then(|mut file| writeln!(file, "{line}"));
        if let Err(error) = written {
            return Response::text(500, format!("{ENTRIES}: {error}\n"));
        }
        println!("entry of {} bytes", line.len());
    }
    match fs::read_to_string(ENTRIES) {
        Ok(entries) => Response::text(200, entries),
        Err(error) if error.kind() == ErrorKind::NotFound => Response::text(200, ""),
        Err(error) => Response::text(500, format!("{ENTRIES}: {error}\n")),
    }
}
