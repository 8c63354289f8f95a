//! `sampan run`: from a file to an address that answers.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Service};
use kube::api::Api;
use kube::{Client, ResourceExt as _};
use sampan_agent::image::Reference;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::apply::{How, apply};
use super::manifests::Manifest;
use super::resources::Resources;
use super::wait::wait;
use super::{explain, image, print_json};
use crate::cli::RunArgs;
use crate::kubeconfig;
use crate::names::is_service_name;

/// Who owns the fields of what `run` makes, and the mark by which it knows its own.
const MANAGER: &str = "sampan-run";

pub async fn run(args: RunArgs) -> Result<()> {
    let file = file(&args.source)?;
    let name = name(&args)?;
    let env = args.env.iter().map(|pair| variable(pair)).collect::<Result<Vec<Value>>>()?;
    let reference = match file {
        Some(path) => {
            let bytes = std::fs::read(path).with_context(|| args.source.clone())?;
            // Named by content: running a changed file rolls the pods over.
            let digest: String = Sha256::digest(&bytes).iter().take(6).map(|byte| format!("{byte:02x}")).collect();
            format!("localhost/{name}:{digest}")
        }
        None => match Reference::parse(&args.source) {
            Ok(reference) => reference.to_string(),
            Err(error) => bail!("{error}; and there is no file {:?}", args.source),
        },
    };

    let client = kubeconfig::client(args.cluster.kubeconfig.as_deref()).await?;
    let exists = own(&client, &args.namespace, &name).await?;
    let resources = Resources::discover(&client).await?;
    let manifests = [deployment(&name, &reference, &args, env), service(&name, &args)]
        .map(|object| Manifest { object, origin: "sampan run".to_owned() });
    // Fields of its own objects that others changed are set again; one that somebody makes meanwhile is theirs.
    let how = |force, dry_run| How { manager: MANAGER, force, dry_run };
    for (manifest, force) in manifests.iter().zip(exists) {
        apply(&client, &resources, manifest, &args.namespace, how(force, true)).await?;
    }
    let mut kind = None;
    if let Some(path) = file {
        let imported = image::import(&client, path, &reference, None).await?;
        if args.output.is_none() {
            imported.nodes.iter().for_each(|node| println!("{reference} imported into node {node}"));
        }
        kind = imported.kind;
    }

    let started = async {
        for (manifest, force) in manifests.iter().zip(exists) {
            apply(&client, &resources, manifest, &args.namespace, how(force, false)).await?;
        }
        wait(&client, &args.namespace, &name, args.replicas, Duration::from_secs(args.timeout)).await
    };
    if let Err(error) = started.await {
        bail!("{error:#}\n{}", left_behind(&name, file.is_some().then_some(&reference), &args));
    }
    let services: Api<Service> = Api::namespaced(client.clone(), &args.namespace);
    let service = services.get(&name).await.map_err(explain)?;
    let address = service.spec.and_then(|spec| spec.cluster_ip).context("the Service has no address")?;
    let authority = format!("{address}:{}", reachable_port(&address, args.port));
    if args.replicas > 0 {
        programmed(&authority).await;
    }
    if kind.is_none() {
        kind = image::kind(&client, &reference).await;
    }
    // Only of a module that takes requests is it known what it speaks.
    let url = (kind.as_deref() == Some("proxy")).then(|| format!("http://{authority}"));
    if args.output.is_some() {
        return print_json(&json!({
            "name": name, "namespace": args.namespace, "image": reference, "kind": kind, "replicas": args.replicas,
            "address": authority, "url": url,
        }));
    }
    println!("{name} is ready: {}", url.unwrap_or(authority));
    Ok(())
}

/// The file that is meant; `None` where it is an image's name.
fn file(source: &str) -> Result<Option<&Path>> {
    let path = Path::new(source);
    if path.is_file() {
        return Ok(Some(path));
    }
    if source.ends_with(['/']) || source.ends_with(".wasm") || source.starts_with(['.', '/', '~']) {
        ensure!(!path.is_dir(), "{source} is a directory: name the .wasm file in it");
        bail!("{source}: there is no such file");
    }
    Ok(None)
}

/// Of Deployment and Service, before anything is made.
fn name(args: &RunArgs) -> Result<String> {
    const FORM: &str = "lower-case letters, digits and '-' inside, a letter first, at most 63";
    match &args.name {
        Some(name) => {
            ensure!(is_service_name(name), "--name {name:?} is no name for a Service: {FORM}");
            Ok(name.clone())
        }
        None => name_from(&args.source)
            .filter(|name| is_service_name(name))
            .with_context(|| format!("{:?} gives no name for a Service ({FORM}); say one with --name", args.source)),
    }
}

/// Whether Deployment and Service exist. What something else made is an error, as is a missing namespace.
async fn own(client: &Client, namespace: &str, name: &str) -> Result<[bool; 2]> {
    match Api::<Namespace>::all(client.clone()).get_opt(namespace).await {
        Ok(Some(_)) => {}
        Ok(None) => bail!("there is no namespace {namespace:?}; make it first, or choose another with --namespace"),
        // Who may not read it may still work in it.
        Err(kube::Error::Api(status)) if status.code == 403 => {}
        Err(error) => return Err(explain(error)),
    }
    let deployment = Api::<Deployment>::namespaced(client.clone(), namespace).get_opt(name).await.map_err(explain)?;
    let service = Api::<Service>::namespaced(client.clone(), namespace).get_opt(name).await.map_err(explain)?;
    for (kind, of) in [
        ("deployment", deployment.as_ref().map(|it| it.managed_fields())),
        ("service", service.as_ref().map(|it| it.managed_fields())),
    ] {
        let own = of.is_none_or(|fields| fields.iter().any(|entry| entry.manager.as_deref() == Some(MANAGER)));
        ensure!(own, "{kind} {name} exists and was not made by `sampan run`; choose another with --name");
    }
    Ok([deployment.is_some(), service.is_some()])
}

/// What a run that failed leaves to be looked at, and how it goes away.
fn left_behind(name: &str, imported: Option<&String>, args: &RunArgs) -> String {
    let mut flags = String::new();
    if let Some(kubeconfig) = &args.cluster.kubeconfig {
        flags += &format!(" --kubeconfig {}", kubeconfig.display());
    }
    let image = imported.map_or_else(String::new, |image| format!(", then `sampan image rm {image}{flags}`"));
    if args.namespace != "default" {
        flags += &format!(" --namespace {}", args.namespace);
    }
    let both = format!("deployment/{name} service/{name}");
    format!(
        "{} stay, to be looked at; to remove them: `sampan delete {both}{flags}`{image}",
        both.replace(' ', " and ")
    )
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
fn name_from(source: &str) -> Option<String> {
    let last = source.rsplit('/').next()?;
    let stem = last.split(['@', ':']).next()?;
    let stem = stem.strip_suffix(".wasm").unwrap_or(stem).to_lowercase();
    let name: String = stem.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' }).collect();
    Some(name.trim_matches('-').to_owned())
}

fn variable(pair: &str) -> Result<Value> {
    match pair.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok(json!({ "name": name, "value": value })),
        _ => bail!("--env {pair:?} is not K=V"),
    }
}

fn deployment(name: &str, reference: &str, args: &RunArgs, mut env: Vec<Value>) -> Value {
    // Programs that choose their own port read it here, and those that say who they are their pod.
    let field = |path: &str| json!({ "fieldRef": { "fieldPath": path } });
    for own in [
        json!({ "name": "PORT", "value": args.port.to_string() }),
        json!({ "name": "POD_NAME", "valueFrom": field("metadata.name") }),
        json!({ "name": "POD_IP", "valueFrom": field("status.podIP") }),
    ] {
        if !env.iter().any(|variable| variable["name"] == own["name"]) {
            env.push(own);
        }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn args(arguments: &[&str]) -> RunArgs {
        match Cli::parse_from([&["sampan", "run"], arguments].concat()).command {
            Command::Run(args) => args,
            _ => unreachable!("`run` is what was parsed"),
        }
    }

    #[test]
    fn names_come_from_files_and_references() {
        for (source, expected) in [
            ("./app.wasm", "app"),
            ("/x/My_App.wasm", "my-app"),
            ("localhost/team/web:v1", "web"),
            ("web@sha256:0", "web"),
            ("docs/README.md", "readme-md"),
        ] {
            assert_eq!(name(&args(&[source])).unwrap(), expected);
        }
        for source in ["./---.wasm", "9lives.wasm", &"a".repeat(64)] {
            let error = name(&args(&[source])).unwrap_err().to_string();
            assert!(error.contains(source) && error.contains("--name"), "{error}");
        }
        for bad in ["My_App", "1a", "a.b", ""] {
            let error = name(&args(&["a.wasm", "--name", bad])).unwrap_err().to_string();
            assert!(error.starts_with(&format!("--name {bad:?}")), "{error}");
        }
    }

    #[test]
    fn a_file_or_an_image() {
        let dir = tempfile::tempdir().unwrap();
        let readme = dir.path().join("README.md");
        std::fs::write(&readme, "x").unwrap();
        assert_eq!(file(readme.to_str().unwrap()).unwrap(), Some(readme.as_path()));
        for image in ["hello", "localhost/hello:v1", "team/app"] {
            assert_eq!(file(image).unwrap(), None);
        }
        for missing in ["./app", "app.wasm", "/no/such", "~/app", "dir/"] {
            assert!(file(missing).unwrap_err().to_string().contains("no such file"), "{missing}");
        }
        assert!(file(dir.path().to_str().unwrap()).unwrap_err().to_string().contains("is a directory"));
    }

    #[test]
    fn pods_are_told_who_they_are() {
        let env = |more: &[&str]| {
            let args = args(&[&["a.wasm"], more].concat());
            let env = args.env.iter().map(|pair| variable(pair).unwrap()).collect();
            let object = deployment("a", "localhost/a:1", &args, env);
            object["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap().clone()
        };
        let names = |env: &[Value]| env.iter().map(|it| it["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
        let own = env(&[]);
        assert_eq!(names(&own), ["PORT", "POD_NAME", "POD_IP"]);
        assert_eq!(own[1]["valueFrom"]["fieldRef"]["fieldPath"], "metadata.name");
        let told = env(&["--env", "POD_NAME=me"]);
        assert_eq!(names(&told), ["POD_NAME", "PORT", "POD_IP"]);
        assert_eq!(told[0]["value"], "me");
    }

    #[test]
    fn how_to_remove_what_stays() {
        let image = "localhost/a:1".to_owned();
        assert!(left_behind("a", None, &args(&["a"])).ends_with("`sampan delete deployment/a service/a`"));
        let text = left_behind("a", Some(&image), &args(&["a", "--namespace", "b", "--kubeconfig", "/k"]));
        assert!(text.contains("`sampan delete deployment/a service/a --kubeconfig /k --namespace b`"), "{text}");
        assert!(text.ends_with("`sampan image rm localhost/a:1 --kubeconfig /k`"), "{text}");
    }

    #[test]
    fn variables() {
        assert_eq!(variable("A=b=c").unwrap(), json!({ "name": "A", "value": "b=c" }));
        assert!(variable("A").is_err());
        assert!(variable("=b").is_err());
    }
}
