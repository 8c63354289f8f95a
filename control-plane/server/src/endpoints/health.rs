//! Health, version and metrics.

use axum::response::Response;
use http::{HeaderMap, StatusCode};
use serde_json::json;

use crate::app::App;
use crate::request::Query;
use crate::respond::{self, Form, Shape};

/// The Kubernetes version whose API is served.
pub const VERSION: (&str, &str, &str) = ("1", "36", "2");

/// `v1.36.2+sampan`
pub fn git_version() -> String {
    let (major, minor, patch) = VERSION;
    format!("v{major}.{minor}.{patch}+sampan")
}

pub fn version(_: &App, headers: &HeaderMap, query: &Query) -> Response {
    let form =
        respond::negotiate(headers, query, false).unwrap_or(Form { shape: Shape::Object, yaml: false, pretty: true });
    let body = json!({
        "major": VERSION.0,
        "minor": VERSION.1,
        "emulationMajor": VERSION.0,
        "emulationMinor": VERSION.1,
        "minCompatibilityMajor": VERSION.0,
        "minCompatibilityMinor": "35",
        "gitVersion": git_version(),
        "gitCommit": "",
        "gitTreeState": "",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none",
        "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, architecture()),
    });
    respond::value(Form { shape: Shape::Object, ..form }, StatusCode::OK, &body)
}

/// As Go names it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// `/healthz`, `/livez` and `/readyz`, whole or one check; `None`: no such path.
pub fn check(app: &App, path: &str, query: &Query) -> Option<Response> {
    let (endpoint, rest) = ["healthz", "livez", "readyz"].iter().find_map(|name| {
        let rest = path.strip_prefix('/')?.strip_prefix(name)?;
        (rest.is_empty() || rest.starts_with('/')).then_some((*name, rest.trim_start_matches('/')))
    })?;
    let following = !app.cache.has_failed();
    let mut checks = vec![("ping", true), ("log", true), ("store", following), ("watch-cache", following)];
    if endpoint != "livez" {
        checks.push(("poststarthook/initial-objects", app.ready.load(std::sync::atomic::Ordering::Acquire)));
    }
    if endpoint == "readyz" {
        checks.push(("shutdown", !app.shutdown.is_cancelled()));
    }
    if !rest.is_empty() {
        let (_, good) = checks.into_iter().find(|(name, _)| *name == rest)?;
        return Some(if good {
            respond::text(StatusCode::OK, "ok")
        } else {
            respond::text(StatusCode::INTERNAL_SERVER_ERROR, "internal server error: failed\n")
        });
    }
    let excluded: Vec<&str> = query.all("exclude").collect();
    let good = checks.iter().all(|(name, good)| *good || excluded.contains(name));
    if good && query.get("verbose").is_none() {
        return Some(respond::text(StatusCode::OK, "ok"));
    }
    let mut text = String::new();
    for (name, passed) in &checks {
        text += &match (excluded.contains(name), passed) {
            (true, _) => format!("[+]{name} excluded: ok\n"),
            (false, true) => format!("[+]{name} ok\n"),
            (false, false) => format!("[-]{name} failed: reason withheld\n"),
        };
    }
    text += &format!("{endpoint} check {}\n", if good { "passed" } else { "failed" });
    let code = if good { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
    Some(respond::text(code, text))
}

pub fn metrics(app: &App) -> Response {
    let text = app.metrics.encode(&app.cache);
    respond::with_body(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", text)
}
