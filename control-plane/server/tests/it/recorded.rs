//! Replays exchanges recorded from kube-apiserver v1.36.2 and compares the answers.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use axum::body::Body;
use http::{Method, Request};
use http_body_util::BodyExt;
use regex::Regex;
use sampan_server::Identity;
use serde_json::{Map, Value, json};

use crate::harness::Harness;

const RECORDED: &str = include_str!("../fixtures/recorded.json");

/// Fields that differ from run to run, and what stands for them; `None`: left out.
const VOLATILE: &[(&str, Option<&str>)] = &[
    ("uid", Some("UID")),
    ("creationTimestamp", Some("T")),
    ("deletionTimestamp", Some("T")),
    ("resourceVersion", Some("RV")),
    ("time", Some("T")),
    ("continue", Some("C")),
    ("selfLink", None),
    ("storageVersionHash", None),
    ("clusterIP", Some("IP")),
    ("clusterIPs", Some("IP")),
    ("nodePort", Some("PORT")),
    ("healthCheckNodePort", Some("PORT")),
    ("holder", None),
    ("token", Some("TOKEN")),
    ("expirationTimestamp", Some("T")),
    ("jwks_uri", Some("URL")),
    ("serverAddress", Some("ADDR")),
    ("retryAfterSeconds", None),
];

static REPLACED: LazyLock<Vec<(Regex, &'static str)>> = LazyLock::new(|| {
    [
        ("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "UID"),
        (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "T"),
        (r"\b10\.\d+\.\d+\.\d+\b|\b127\.\d+\.\d+\.\d+(:\d+)?\b", "IP"),
        (r"(resource version: |resourceVersion: )\d+( \(\d+\))?", "${1}RV"),
        (r"(current: |record \()\d+", "${1}RV"),
    ]
    .map(|(pattern, with)| (Regex::new(pattern).unwrap(), with))
    .into()
});

static AGE: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"^(\d+[smhd]|<invalid>|<unknown>)$").unwrap());

type Names = Vec<(String, String)>;

fn normal(value: &Value, names: &Names) -> Value {
    match value {
        Value::Object(map) => {
            let mut out = Map::new();
            for (key, value) in map {
                // Prose of column definitions is each server's own.
                if key == "description" && value.is_string() {
                    continue;
                }
                let mut value = value.clone();
                if key == "managedFields"
                    && let Some(list) = value.as_array_mut()
                {
                    list.retain(|entry| entry["subresource"] != "status");
                }
                if let Some((_, stands)) = VOLATILE.iter().find(|(name, _)| name == key)
                    && !value.is_object()
                {
                    if key == "clusterIP" && (value == "None" || value == "") {
                        out.insert(key.clone(), value);
                    } else if let Some(stands) = stands {
                        out.insert(key.clone(), (*stands).into());
                    }
                    continue;
                }
                out.insert(key.clone(), normal(&value, names));
            }
            Value::Object(out)
        }
        Value::Array(list) => list.iter().map(|value| normal(value, names)).collect(),
        Value::String(text) => {
            let mut text = text.clone();
            for (real, name) in names {
                text = text.replace(real.as_str(), name);
            }
            for (pattern, with) in REPLACED.iter() {
                text = pattern.replace_all(&text, *with).into_owned();
            }
            if AGE.is_match(&text) { "AGE".into() } else { text.into() }
        }
        other => other.clone(),
    }
}

fn at(value: &Value, path: &str) -> Value {
    let mut found = Some(value);
    for part in path.split('.') {
        found = found.and_then(|found| match found {
            Value::Array(list) => list.get(part.parse::<usize>().ok()?),
            other => other.get(part),
        });
    }
    found.cloned().unwrap_or_default()
}

fn diff(want: &Value, got: &Value, path: &str, out: &mut Vec<String>) {
    let short = |value: &Value| value.to_string().chars().take(300).collect::<String>();
    match (want, got) {
        (Value::Object(want), Value::Object(got)) => {
            let mut keys: Vec<&String> = want.keys().chain(got.keys()).collect();
            keys.sort();
            keys.dedup();
            for key in keys {
                match (want.get(key), got.get(key)) {
                    (Some(want), Some(got)) => diff(want, got, &format!("{path}.{key}"), out),
                    (Some(want), None) => out.push(format!("{path}.{key}: missing, want {}", short(want))),
                    (None, Some(got)) => out.push(format!("{path}.{key}: extra {}", short(got))),
                    (None, None) => {}
                }
            }
        }
        (Value::Array(want), Value::Array(got)) => {
            if want.len() != got.len() {
                out.push(format!("{path}: {} items, want {}", got.len(), want.len()));
            }
            for (position, (want, got)) in want.iter().zip(got).enumerate() {
                diff(want, got, &format!("{path}[{position}]"), out);
            }
        }
        (want, got) if want == got => {}
        (want, got) => out.push(format!("{path}: want {}, got {}", short(want), short(got))),
    }
}

/// A request in the administrator's name: code, warnings, body.
async fn send(
    harness: &Harness,
    method: &str,
    path: &str,
    accept: &str,
    media: &str,
    body: Option<String>,
) -> (u16, Vec<String>, String) {
    // A recorded path may hold what has to be escaped in a URL.
    let path = path.replace(' ', "%20");
    let mut request = Request::builder()
        .method(Method::from_bytes(method.as_bytes()).unwrap())
        .uri(path)
        .header("user-agent", "recorder")
        .header("accept", accept);
    if body.is_some() {
        request = request.header("content-type", media);
    }
    let request = request.body(body.map_or_else(Body::empty, Body::from)).unwrap();
    let response = harness.send(Identity::admin(), request).await;
    let code = response.status().as_u16();
    let warnings =
        response.headers().get_all("warning").iter().map(|value| value.to_str().unwrap().to_owned()).collect();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (code, warnings, String::from_utf8_lossy(&bytes).into_owned())
}

async fn replay(harness: &Harness, case: &Value, number: usize) -> Vec<Value> {
    const JSON: &str = "application/json";
    let namespace = format!("recorded-{number}");
    let metadata = |name: &str| Some(json!({"metadata": {"name": name}}).to_string());
    send(harness, "POST", "/api/v1/namespaces", JSON, JSON, metadata(&namespace)).await;
    let accounts = format!("/api/v1/namespaces/{namespace}/serviceaccounts");
    send(harness, "POST", &accounts, JSON, JSON, metadata("default")).await;
    let mut names: Names = vec![(namespace.clone(), "NS".to_owned())];
    let mut saved: BTreeMap<String, String> = BTreeMap::new();
    let mut answers = Vec::new();
    for step in case["steps"].as_array().unwrap() {
        let fill = |text: &str| {
            let mut text = text.replace("{ns}", &namespace);
            for (key, value) in &saved {
                text = text.replace(&format!("{{{key}}}"), value);
            }
            text
        };
        let text = |key: &str, other: &str| step[key].as_str().unwrap_or(other).to_owned();
        let path = fill(step["path"].as_str().unwrap());
        let body = match &step["body"] {
            Value::Null => None,
            Value::String(text) => Some(fill(text)),
            other => Some(fill(&other.to_string())),
        };
        let (status, warnings, body) =
            send(harness, &text("method", ""), &path, &text("accept", JSON), &text("type", JSON), body).await;
        let parsed: Value = serde_json::from_str(&body).unwrap_or_else(|_| {
            let lines: Result<Vec<Value>, _> =
                body.lines().filter(|line| !line.trim().is_empty()).map(serde_json::from_str).collect();
            match lines {
                Ok(lines) if !lines.is_empty() && path.contains("watch=") => Value::from(lines),
                _ => Value::from(body.clone()),
            }
        });
        for (key, from) in step["save"].as_object().into_iter().flatten() {
            let value = at(&parsed, from.as_str().unwrap());
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            if key == "name" {
                names.push((value.clone(), "GEN".to_owned()));
            }
            saved.insert(key.clone(), value);
        }
        if step["quiet"] == true {
            continue;
        }
        let body = if step["ignore_body"] == true {
            Value::Null
        } else if let Some(pick) = step["pick"].as_array() {
            let pick = pick.iter().map(|path| path.as_str().unwrap());
            Value::Object(pick.map(|path| (path.to_owned(), normal(&at(&parsed, path), &names))).collect())
        } else {
            normal(&parsed, &names)
        };
        let mut warnings: Vec<Value> =
            warnings.iter().map(|text| normal(&Value::from(text.as_str()), &names)).collect();
        warnings.sort_by_key(ToString::to_string);
        answers.push(json!({"status": status, "warnings": warnings, "body": body}));
    }
    send(harness, "DELETE", &format!("/api/v1/namespaces/{namespace}"), JSON, JSON, None).await;
    for path in case["cleanup"].as_array().into_iter().flatten() {
        send(harness, "DELETE", path.as_str().unwrap(), JSON, JSON, None).await;
    }
    answers
}

/// A watch that closes by itself takes its whole time: cases run side by side.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_equal_the_recorded() {
    let harness = Harness::start().await;
    let recorded: Value = serde_json::from_str(RECORDED).unwrap();
    let cases = recorded["cases"].as_array().unwrap();
    let only = std::env::var("RECORDED_ONLY").unwrap_or_default();
    let selected = cases.iter().enumerate().filter(|(_, case)| case["name"].as_str().unwrap().contains(&only));
    let results = futures::future::join_all(selected.map(|(number, case)| {
        let harness = &harness;
        async move {
            let got = Value::from(replay(harness, case, number).await);
            let mut differences = Vec::new();
            diff(&case["answers"], &got, "", &mut differences);
            (case["name"].as_str().unwrap(), differences)
        }
    }))
    .await;
    let total = results.len();
    let different: Vec<String> = results
        .into_iter()
        .filter(|(_, differences)| !differences.is_empty())
        .map(|(name, differences)| {
            let shown: Vec<String> = differences.iter().take(4).map(|line| format!("    {line}")).collect();
            format!("{name}\n{}", shown.join("\n"))
        })
        .collect();
    assert!(different.is_empty(), "{} of {total} cases differ:\n{}", different.len(), different.join("\n"));
}
