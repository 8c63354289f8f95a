//! `sampan delete`: by name or by manifest.

use anyhow::{Context as _, Result, bail, ensure};
use http::Request;
use kube::Client;
use serde_json::Value;

use super::resources::{Resource, Resources};
use super::{escape, explain, manifests};
use crate::cli::DeleteArgs;
use crate::kubeconfig;

pub async fn run(args: DeleteArgs) -> Result<()> {
    ensure!(
        !args.objects.is_empty() || !args.files.is_empty(),
        "nothing is named: give KIND NAME, KIND/NAME or -f FILE"
    );
    let manifests = if args.files.is_empty() { Vec::new() } else { manifests::read(&args.files)? };
    let client = kubeconfig::client(args.cluster.kubeconfig.as_deref()).await?;
    let resources = Resources::discover(&client).await?;
    for manifest in &manifests {
        let resource = resources.of_kind(manifest.api_version(), manifest.kind())?;
        let namespace = manifest.namespace().unwrap_or(&args.namespace);
        delete(&client, resource, namespace, manifest.name()).await?;
    }
    for (kind, name) in named(&args.objects)? {
        let [resource] = resources.called(kind)?[..] else { bail!("{kind:?} is several kinds: name one") };
        delete(&client, resource, &args.namespace, name).await?;
    }
    Ok(())
}

/// `pod a b` or `pod/a svc/b`.
fn named(words: &[String]) -> Result<Vec<(&str, &str)>> {
    if words.iter().any(|word| word.contains('/')) {
        return words
            .iter()
            .map(|word| word.split_once('/').with_context(|| format!("{word:?} is not KIND/NAME, as the others are")))
            .collect();
    }
    let Some((kind, names)) = words.split_first() else { return Ok(Vec::new()) };
    ensure!(!names.is_empty(), "which {kind}? give a name");
    Ok(names.iter().map(|name| (kind.as_str(), name.as_str())).collect())
}

async fn delete(client: &Client, resource: &Resource, namespace: &str, name: &str) -> Result<()> {
    let path = format!("{}/{}?propagationPolicy=Background", resource.path(Some(namespace)), escape(name));
    let _: Value = client.request(Request::delete(path).body(Vec::new())?).await.map_err(explain)?;
    println!("{} deleted", resource.describe(name));
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn both_ways_of_naming() {
        assert_eq!(super::named(&words(&["pod", "a", "b"])).unwrap(), [("pod", "a"), ("pod", "b")]);
        assert_eq!(super::named(&words(&["pod/a", "svc/b"])).unwrap(), [("pod", "a"), ("svc", "b")]);
        assert!(super::named(&words(&["pod"])).is_err());
        assert!(super::named(&words(&["pod/a", "b"])).is_err());
    }
}
