//! `sampan version`.

use anyhow::Result;
use serde_json::{Value, json};

use super::{get, print_json};
use crate::cli::VersionArgs;
use crate::{VERSION, kubeconfig};

pub async fn run(args: VersionArgs) -> Result<()> {
    // Without a cluster this program's own version is the whole answer.
    let server = if args.client || kubeconfig::find(args.cluster.kubeconfig.as_deref()).is_err() {
        None
    } else {
        let client = kubeconfig::client(args.cluster.kubeconfig.as_deref()).await?;
        Some(get::<Value>(&client, "/version", "application/json").await)
    };
    if args.output.is_some() {
        let server = server.transpose()?;
        return print_json(&json!({ "sampan": VERSION, "server": server }));
    }
    println!("sampan {VERSION}");
    if let Some(server) = server {
        println!("server {}", server?["gitVersion"].as_str().unwrap_or("unknown"));
    }
    Ok(())
}
