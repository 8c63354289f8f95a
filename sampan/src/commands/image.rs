//! `sampan image`: a node's images, through the server to the node's own API.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use http::Request;
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client, ResourceExt};
use serde_json::Value;

use super::{escape, explain, get, print_json};
use crate::cli::{ImageCommand, JsonOutput};
use crate::kubeconfig;
use crate::terminal::{Progress, print_table};

pub async fn run(command: ImageCommand) -> Result<()> {
    match command {
        ImageCommand::Import { file, reference, node, cluster } => {
            let client = kubeconfig::client(cluster.kubeconfig.as_deref()).await?;
            let imported = import(&client, &file, &reference, node.as_deref()).await?;
            imported.nodes.iter().for_each(|node| println!("{reference} imported into node {node}"));
            Ok(())
        }
        ImageCommand::Ls { node, output, cluster } => {
            let client = kubeconfig::client(cluster.kubeconfig.as_deref()).await?;
            list(&client, node.as_deref(), output).await
        }
        ImageCommand::Rm { reference, node, cluster } => {
            let client = kubeconfig::client(cluster.kubeconfig.as_deref()).await?;
            for node in nodes(&client, node.as_deref()).await? {
                let path = format!("{}?ref={}", images(&node), escape(&reference));
                let request = Request::delete(path).body(Vec::new())?;
                client.request_text(request).await.map_err(explain).with_context(|| format!("node {node}"))?;
                println!("{reference} removed from node {node}");
            }
            Ok(())
        }
    }
}

pub struct Imported {
    pub nodes: Vec<String>,
    /// What kind of program it is, in the nodes' word.
    pub kind: Option<String>,
}

/// Brings a module onto the nodes; each checks and compiles it before it answers.
pub async fn import(client: &Client, file: &Path, reference: &str, node: Option<&str>) -> Result<Imported> {
    let show = file.display();
    let bytes = std::fs::read(file).with_context(|| show.to_string())?;
    ensure!(!bytes.is_empty(), "{show} is empty");
    let nodes = nodes(client, node).await?;
    let message = |node: &str| format!("importing {show} as {reference} into node {node}");
    let mut progress = Progress::new(nodes.len() as u64, &nodes.first().map_or_else(String::new, |node| message(node)));
    let mut kind = None;
    for (done, node) in (0..).zip(&nodes) {
        progress.update(done, &message(node));
        let request = Request::post(format!("{}?ref={}", images(node), escape(reference)))
            .header(http::header::CONTENT_TYPE, "application/wasm")
            .body(bytes.clone())?;
        let image: Value =
            client.request(request).await.map_err(explain).with_context(|| format!("{show}: node {node}"))?;
        kind = image["kind"].as_str().map(str::to_owned);
    }
    progress.finish();
    Ok(Imported { nodes, kind })
}

/// What kind of program an image is, where a node has it; `None` also where none can be asked.
pub async fn kind(client: &Client, reference: &str) -> Option<String> {
    for node in nodes(client, None).await.ok()? {
        let Ok(found) = get::<Value>(client, &images(&node), "application/json").await else { continue };
        let mut images = found["images"].as_array().into_iter().flatten();
        if let Some(image) = images.find(|image| image["name"] == reference) {
            return image["kind"].as_str().map(str::to_owned);
        }
    }
    None
}

fn images(node: &str) -> String {
    format!("/api/v1/nodes/{}/proxy/images", escape(node))
}

async fn nodes(client: &Client, only: Option<&str>) -> Result<Vec<String>> {
    if let Some(name) = only {
        return Ok(vec![name.to_owned()]);
    }
    let nodes = Api::<Node>::all(client.clone()).list(&Default::default()).await.map_err(explain)?;
    if nodes.items.is_empty() {
        bail!("the cluster has no node");
    }
    Ok(nodes.items.iter().map(ResourceExt::name_any).collect())
}

async fn list(client: &Client, node: Option<&str>, output: Option<JsonOutput>) -> Result<()> {
    let mut by_node = BTreeMap::new();
    for node in nodes(client, node).await? {
        let found: Value = get(client, &images(&node), "application/json").await.context(format!("node {node}"))?;
        by_node.insert(node, found);
    }
    if output.is_some() {
        return print_json(&by_node);
    }
    let mut rows = Vec::new();
    for (node, images) in &by_node {
        for image in images["images"].as_array().into_iter().flatten() {
            let text = |key: &str| image[key].as_str().unwrap_or("-").to_owned();
            let digest: String = text("digest").chars().take("sha256:".len() + 12).collect();
            let size =
                image["size"].as_u64().map_or_else(|| "-".to_owned(), |bytes| format!("{} kB", bytes.div_ceil(1000)));
            rows.push(vec![text("name"), digest, text("kind"), size, node.clone()]);
        }
    }
    print_table(&["IMAGE", "DIGEST", "KIND", "SIZE", "NODE"].map(str::to_owned), rows);
    Ok(())
}
