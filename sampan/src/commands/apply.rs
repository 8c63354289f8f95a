//! `sampan apply`: server-side apply, nothing else.

use anyhow::{Context as _, Result};
use http::{Request, header};
use kube::Client;
use serde_json::Value;

use super::manifests::{self, Manifest};
use super::resources::Resources;
use super::{FIELD_MANAGER, escape, explain, print_json};
use crate::cli::{ApplyArgs, Output};
use crate::kubeconfig;

pub async fn run(args: ApplyArgs) -> Result<()> {
    let manifests = manifests::read(&args.files)?;
    let client = kubeconfig::client(args.cluster.kubeconfig.as_deref()).await?;
    let resources = Resources::discover(&client).await?;
    let mut applied = Vec::new();
    for manifest in &manifests {
        let object = apply(&client, &resources, manifest, &args.namespace, args.force_conflicts)
            .await
            .with_context(|| format!("{}: {} {:?}", manifest.origin, manifest.kind(), manifest.name()))?;
        match args.output {
            Some(Output::Json) => applied.push(object),
            _ => {
                let resource = resources.of_kind(manifest.api_version(), manifest.kind())?;
                println!("{} serverside-applied", resource.describe(manifest.name()));
            }
        }
    }
    if args.output == Some(Output::Json) {
        print_json(&serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": applied }))?;
    }
    Ok(())
}

/// Applies one object and answers with what it became.
pub async fn apply(
    client: &Client,
    resources: &Resources,
    manifest: &Manifest,
    namespace: &str,
    force: bool,
) -> Result<Value> {
    let resource = resources.of_kind(manifest.api_version(), manifest.kind())?;
    let path = resource.path(Some(manifest.namespace().unwrap_or(namespace)));
    let uri =
        format!("{path}/{}?fieldManager={FIELD_MANAGER}&force={force}&fieldValidation=Strict", escape(manifest.name()));
    let request = Request::patch(uri)
        .header(header::CONTENT_TYPE, "application/apply-patch+yaml")
        .body(serde_json::to_vec(&manifest.object)?)?;
    client.request(request).await.map_err(explain)
}
