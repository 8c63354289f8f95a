//! `sampan apply`: server-side apply, nothing else.

use anyhow::{Context as _, Result};
use http::{Request, header};
use kube::Client;
use serde_json::Value;

use super::manifests::{self, Manifest};
use super::resources::Resources;
use super::{FIELD_MANAGER, escape, explain, print_json};
use crate::cli::ApplyArgs;
use crate::kubeconfig;

pub async fn run(args: ApplyArgs) -> Result<()> {
    let manifests = manifests::read(&args.files)?;
    let client = kubeconfig::client(args.cluster.kubeconfig.as_deref()).await?;
    let resources = Resources::discover(&client).await?;
    let mut applied = Vec::new();
    for manifest in &manifests {
        let how = How { manager: FIELD_MANAGER, force: args.force_conflicts, dry_run: false };
        let object = apply(&client, &resources, manifest, &args.namespace, how)
            .await
            .with_context(|| format!("{}: {} {:?}", manifest.origin, manifest.kind(), manifest.name()))?;
        if args.output.is_some() {
            applied.push(object);
        } else {
            let resource = resources.of_kind(manifest.api_version(), manifest.kind())?;
            println!("{} serverside-applied", resource.describe(manifest.name()));
        }
    }
    if args.output.is_some() {
        print_json(&serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": applied }))?;
    }
    Ok(())
}

#[derive(Clone, Copy)]
pub struct How {
    /// Who owns the fields.
    pub manager: &'static str,
    /// Whether fields that others own are taken.
    pub force: bool,
    /// Everything but the write.
    pub dry_run: bool,
}

/// Applies one object and answers with what it became.
pub async fn apply(
    client: &Client,
    resources: &Resources,
    manifest: &Manifest,
    namespace: &str,
    how: How,
) -> Result<Value> {
    let resource = resources.of_kind(manifest.api_version(), manifest.kind())?;
    let path = resource.path(Some(manifest.namespace().unwrap_or(namespace)));
    let How { manager, force, dry_run } = how;
    let mut uri =
        format!("{path}/{}?fieldManager={manager}&force={force}&fieldValidation=Strict", escape(manifest.name()));
    if dry_run {
        uri.push_str("&dryRun=All");
    }
    let request = Request::patch(uri)
        .header(header::CONTENT_TYPE, "application/apply-patch+yaml")
        .body(serde_json::to_vec(&manifest.object)?)?;
    client.request(request).await.map_err(explain)
}
