//! `sampan run`: from a file to an address that answers.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Event, Service};
use kube::api::{Api, ListParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::manifests::Manifest;
use super::resources::Resources;
use super::{explain, image, print_json};
use crate::cli::{Output, RunArgs};
use crate::kubeconfig;
use crate::terminal::Progress;

pub async fn run(args: RunArgs) -> Result<()> {
    let path = Path::new(&args.source);
    let from_file = path.is_file();
    if !from_file && (args.source.ends_with(".wasm") || args.source.starts_with(['.', '/'])) {
        bail!("{}: there is no such file", args.source);
    }
    let name = match &args.name {
        Some(name) => name.clone(),
        None => name_from(&args.source)?,
    };
    let env = args.env.iter().map(|pair| variable(pair)).collect::<Result<Vec<Value>>>()?;
    let client = kubeconfig::client(args.cluster.kubeconfig.as_deref()).await?;
    let reference = if from_file {
        let bytes = std::fs::read(path).with_context(|| args.source.clone())?;
        // Named by content: running a changed file rolls the pods over.
        let digest: String = Sha256::digest(&bytes).iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        let reference = format!("localhost/{name}:{digest}");
        image::import(&client, path, &reference, None).await?;
        reference
    } else {
        args.source.clone()
    };

    let resources = Resources::discover(&client).await?;
    for object in [deployment(&name, &reference, &args, env), service(&name, &args)] {
        let manifest = Manifest { object, origin: "sampan run".to_owned() };
        super::apply::apply(&client, &resources, &manifest, &args.namespace, true).await?;
    }
    wait(&client, &name, &args).await?;
    let services: Api<Service> = Api::namespaced(client, &args.namespace);
    let service = services.get(&name).await.map_err(explain)?;
    let address = service.spec.and_then(|spec| spec.cluster_ip).context("the Service has no address")?;
    let authority = format!("{address}:{}", reachable_port(&address, args.port));
    if args.replicas > 0 {
        programmed(&authority).await;
    }
    if args.output == Some(Output::Json) {
        return print_json(&json!({
            "name": name, "namespace": args.namespace, "image": reference, "replicas": args.replicas,
            "address": authority, "url": format!("http://{authority}"),
        }));
    }
    println!("{name} is ready: http://{authority}");
    Ok(())
}

/// Gives the node a moment to program the Service: no watch tells of it. From a machine that cannot
/// reach the address, the answer is only late.
async fn programmed(authority: &str) {
    const LIMIT: Duration = Duration::from_secs(2);
    let connected = async {
        while tokio::net::TcpStream::connect(authority).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let _ = tokio::time::timeout(LIMIT, connected).await;
}

/// Where a program of this machine finds a Service port: without root the low ones lie 10,000 higher.
fn reachable_port(address: &str, port: u16) -> u16 {
    let first: u16 = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(1024);
    if address.starts_with("127.") && port < first { port + 10_000 } else { port }
}

/// A name out of `./dir/My_App.wasm` or `registry/team/app:v1`.
fn name_from(source: &str) -> Result<String> {
    let last = source.rsplit('/').next().unwrap_or(source);
    let stem = last.split(['@', ':']).next().unwrap_or(last);
    let stem = stem.strip_suffix(".wasm").unwrap_or(stem).to_lowercase();
    let name: String = stem.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' }).collect();
    let name = name.trim_matches('-');
    ensure!(!name.is_empty() && name.len() <= 63, "{source:?} gives no name; say one with --name");
    ensure!(
        !name.starts_with(|first: char| first.is_ascii_digit()),
        "a Service's name begins with a letter: say one with --name"
    );
    Ok(name.to_owned())
}

fn variable(pair: &str) -> Result<Value> {
    match pair.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok(json!({ "name": name, "value": value })),
        _ => bail!("--env {pair:?} is not K=V"),
    }
}

fn deployment(name: &str, reference: &str, args: &RunArgs, mut env: Vec<Value>) -> Value {
    // Programs that choose their own port read it here.
    if !env.iter().any(|variable| variable["name"] == "PORT") {
        env.push(json!({ "name": "PORT", "value": args.port.to_string() }));
    }
    let labels = json!({ "app.kubernetes.io/name": name });
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": name, "labels": labels },
        "spec": {
            "replicas": args.replicas,
            "selector": { "matchLabels": labels },
            "template": {
                "metadata": { "labels": labels },
                "spec": { "containers": [{
                    "name": name,
                    "image": reference,
                    "imagePullPolicy": "IfNotPresent",
                    "ports": [{ "name": "main", "containerPort": args.port }],
                    "env": env,
                    "readinessProbe": { "tcpSocket": { "port": args.port }, "periodSeconds": 2 },
                }] },
            },
        },
    })
}

fn service(name: &str, args: &RunArgs) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": name, "labels": { "app.kubernetes.io/name": name } },
        "spec": {
            "selector": { "app.kubernetes.io/name": name },
            "ports": [{ "name": "main", "port": args.port, "targetPort": args.port }],
        },
    })
}

/// Waits until the Deployment's newest pods are available; says why not when the time is over.
async fn wait(client: &Client, name: &str, args: &RunArgs) -> Result<()> {
    let total = u64::from(args.replicas);
    let message = |ready: i32| format!("waiting for {name}: {ready} of {total} pods are ready");
    let mut progress = Progress::new(total, &message(0));
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), &args.namespace);
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut changes = watcher(deployments, config).default_backoff().applied_objects().boxed();
    let waiting = async {
        while let Some(deployment) = changes.try_next().await? {
            let generation = deployment.metadata.generation;
            let status = deployment.status.unwrap_or_default();
            let current = status.observed_generation >= generation;
            let ready = if current { status.updated_replicas.min(status.available_replicas).unwrap_or(0) } else { 0 };
            progress.update(ready.try_into().unwrap_or(0), &message(ready));
            let surplus = status.replicas.unwrap_or(0) > ready;
            if current && i64::from(ready) >= i64::from(args.replicas) && !surplus {
                return Ok(());
            }
        }
        bail!("the watch of Deployment {name} ended")
    };
    let outcome = tokio::time::timeout(Duration::from_secs(args.timeout), waiting).await;
    progress.finish();
    match outcome {
        Ok(result) => result,
        Err(_) => {
            let why = last_warning(client, name, &args.namespace).await.unwrap_or_default();
            bail!("{name} was not ready after {} s{why}", args.timeout)
        }
    }
}

async fn last_warning(client: &Client, name: &str, namespace: &str) -> Option<String> {
    let events: Api<Event> = Api::namespaced(client.clone(), namespace);
    let found = events.list(&ListParams::default().fields("type=Warning")).await.ok()?;
    let prefix = format!("{name}-");
    let newest = found
        .items
        .into_iter()
        .filter(|event| {
            event.involved_object.name.as_deref().is_some_and(|about| about == name || about.starts_with(&prefix))
        })
        .max_by_key(|event| (event.last_timestamp.as_ref().map(|time| time.0), event.name_any()))?;
    Some(format!(": {}: {}", newest.reason.unwrap_or_default(), newest.message.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_come_from_files_and_references() {
        for (source, name) in [
            ("./app.wasm", "app"),
            ("/x/My_App.wasm", "my-app"),
            ("localhost/team/web:v1", "web"),
            ("web@sha256:0", "web"),
        ] {
            assert_eq!(name_from(source).unwrap(), name);
        }
        assert!(name_from("---.wasm").is_err());
        assert!(name_from("9lives.wasm").is_err());
    }

    #[test]
    fn variables() {
        assert_eq!(variable("A=b=c").unwrap(), json!({ "name": "A", "value": "b=c" }));
        assert!(variable("A").is_err());
        assert!(variable("=b").is_err());
    }
}
