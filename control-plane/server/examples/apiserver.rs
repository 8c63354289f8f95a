//! The API server alone, for trying it by hand: writes an administrator's kubeconfig into DIR and
//! serves until interrupted.
//!
//!     cargo run -p sampan-server --example apiserver -- DIR

use std::path::PathBuf;

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sampan_server::{Config, Server};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let dir = PathBuf::from(std::env::args().nth(1).context("usage: apiserver DIR")?);
    let shutdown = CancellationToken::new();
    let config = Config {
        dir: dir.clone(),
        listen: ([127, 0, 0, 1], 0).into(),
        advertise: None,
        names: Vec::new(),
        service_cidr: "10.96.0.0/16".parse()?,
        cluster_cidr: "10.244.0.0/16".parse()?,
        node_ports: 30000..=32767,
    };
    let server = Server::start(config, shutdown.clone()).await?;
    let (certificate, key) = server.client_certificate("kubernetes-admin", &["system:masters"])?;
    let kubeconfig = serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "it",
        "clusters": [{"name": "it", "cluster": {
            "server": format!("https://{}", server.local_addr()),
            "certificate-authority-data": STANDARD.encode(server.ca_pem()),
        }}],
        "users": [{"name": "it", "user": {
            "client-certificate-data": STANDARD.encode(certificate),
            "client-key-data": STANDARD.encode(key),
        }}],
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
    });
    let path = dir.join("kubeconfig");
    std::fs::write(&path, kubeconfig.to_string())?;
    println!("ready {}", path.display());
    tokio::signal::ctrl_c().await?;
    shutdown.cancel();
    server.finished().await;
    Ok(())
}
