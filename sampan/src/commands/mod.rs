//! Commands that talk to a cluster: each only through the Kubernetes API that its kubeconfig names.

pub mod apply;
pub mod delete;
pub mod get;
pub mod image;
pub mod logs;
mod manifests;
mod resources;
pub mod run;
pub mod status;
pub mod token;
pub mod version;
mod wait;
mod warnings;

use anyhow::{Context as _, Result};
use http::{Request, header};
use kube::Client;
use serde::de::DeserializeOwned;

use crate::unreachable::Unreachable;

/// Who writes fields through these commands.
const FIELD_MANAGER: &str = "sampan";

/// A GET whose answer is JSON; `accept` chooses the representation.
async fn get<T: DeserializeOwned>(client: &Client, path: &str, accept: &str) -> Result<T> {
    let request = Request::get(path).header(header::ACCEPT, accept).body(Vec::new())?;
    client.request(request).await.map_err(explain)
}

/// An API error in the server's own words, without the layers around it.
fn explain(error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) if status.code == 401 => {
            anyhow::anyhow!("{}: the cluster does not take the credentials of this kubeconfig", status.message)
        }
        kube::Error::Api(status) => anyhow::anyhow!("{}", status.message),
        kube::Error::Service(error) if error.is::<Unreachable>() => anyhow::anyhow!("{error}"),
        error => anyhow::anyhow!("that is no answer of a cluster: {error}"),
    }
}

fn json<T: serde::Serialize>(value: &T) -> Result<String> {
    serde_json::to_string_pretty(value).context("output")
}

/// Prints a value as a program reads it.
fn print_json<T: serde::Serialize>(value: &T) -> Result<()> {
    println!("{}", json(value)?);
    Ok(())
}

/// A part of a path or query, with what is special there escaped.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => escaped.push(char::from(byte)),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    #[test]
    fn escapes_what_is_special() {
        assert_eq!(super::escape("localhost/hello:v1"), "localhost%2Fhello%3Av1");
    }
}
