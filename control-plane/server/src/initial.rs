//! The objects that every cluster has, made when the server starts: namespaces, RuntimeClasses, the
//! Service of the API itself, and the ConfigMap that says how the cluster is set up.

use rand::Rng;
use sampan_api::{Error, Kind, kinds};
use serde_json::{Value, json};

use crate::CLUSTER_DOMAIN;
use crate::app::App;
use crate::identity::Identity;
use crate::registry::{Preconditions, Write, metadata};

const NAMESPACES: &[&str] = &["default", "kube-node-lease", "kube-public", "kube-system"];
/// What every node has, by the name of its handler.
const RUNTIME_CLASSES: &[&str] = &["wasm", "wasm-isolated"];
const MANAGER: &str = "kube-apiserver";
const KUBERNETES: &str = "kubernetes";

pub async fn make(app: &App) -> Result<(), Error> {
    for name in NAMESPACES {
        let object = json!({"metadata": {"name": name}});
        ensure(app, ("", "namespaces"), "", name, object).await?;
    }
    for handler in RUNTIME_CLASSES {
        let object = json!({"metadata": {"name": handler}, "handler": handler});
        ensure(app, ("node.k8s.io", "runtimeclasses"), "", handler, object).await?;
    }
    let endpoint = app.config.endpoint();
    let family = if app.config.service_cidr.addr().is_ipv4() { "IPv4" } else { "IPv6" };
    let service = json!({
        "metadata": {"name": KUBERNETES, "labels": {"component": "apiserver", "provider": KUBERNETES}},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": app.config.kubernetes_address().to_string(),
            "clusterIPs": [app.config.kubernetes_address().to_string()],
            "ipFamilies": [family],
            "ipFamilyPolicy": "SingleStack",
            "sessionAffinity": "None",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": endpoint.port()}],
        },
    });
    ensure(app, ("", "services"), "default", KUBERNETES, service).await?;
    // The port may be another one after a restart.
    let ports = json!([{"name": "https", "port": 443, "protocol": "TCP", "targetPort": endpoint.port()}]);
    merge(app, ("", "services"), "default", KUBERNETES, |object| {
        if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
            spec.insert("ports".to_owned(), ports.clone());
        }
    })
    .await?;
    let subsets = json!([{
        "addresses": [{"ip": endpoint.ip().to_string()}],
        "ports": [{"name": "https", "port": endpoint.port(), "protocol": "TCP"}],
    }]);
    let endpoints = json!({
        "metadata": {"name": KUBERNETES, "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": subsets,
    });
    ensure(app, ("", "endpoints"), "default", KUBERNETES, endpoints).await?;
    merge(app, ("", "endpoints"), "default", KUBERNETES, |object| {
        if let Some(map) = object.as_object_mut() {
            map.insert("subsets".to_owned(), subsets.clone());
        }
    })
    .await?;
    let addresses = json!([{"addresses": [endpoint.ip().to_string()], "conditions": {"ready": true}}]);
    let slice_ports = json!([{"name": "https", "port": endpoint.port(), "protocol": "TCP"}]);
    let slice = json!({
        "metadata": {"name": KUBERNETES, "labels": {"kubernetes.io/service-name": KUBERNETES}},
        "addressType": if endpoint.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": addresses,
        "ports": slice_ports,
    });
    ensure(app, ("discovery.k8s.io", "endpointslices"), "default", KUBERNETES, slice).await?;
    merge(app, ("discovery.k8s.io", "endpointslices"), "default", KUBERNETES, |object| {
        if let Some(map) = object.as_object_mut() {
            map.insert("endpoints".to_owned(), addresses.clone());
            map.insert("ports".to_owned(), slice_ports.clone());
        }
    })
    .await?;
    config_map(app).await
}

/// What nodes must know of the cluster. Its identity and ranges stay what they were at first.
async fn config_map(app: &App) -> Result<(), Error> {
    const NAME: &str = "sampan-cluster";
    let id: u32 = rand::rng().random();
    let config = &app.config;
    let object = json!({
        "metadata": {"name": NAME},
        "data": {
            "clusterID": format!("{id:08x}"),
            "clusterCIDR": config.cluster_cidr.trunc().to_string(),
            "serviceCIDR": config.service_cidr.trunc().to_string(),
            "clusterDNS": config.dns_address().to_string(),
            "clusterDomain": CLUSTER_DOMAIN,
        },
    });
    ensure(app, ("", "configmaps"), "kube-system", NAME, object).await?;
    let kept = app.find("", "configmaps", "kube-system", NAME).map(|object| object.value()).unwrap_or_default();
    for (key, wanted, option) in [
        ("clusterCIDR", config.cluster_cidr.trunc().to_string(), "--cluster-cidr"),
        ("serviceCIDR", config.service_cidr.trunc().to_string(), "--service-cidr"),
    ] {
        let had = kept.pointer(&format!("/data/{key}")).and_then(Value::as_str).unwrap_or_default();
        if had != wanted {
            return Err(Error::BadRequest(format!(
                "{option} {wanted}: this data directory's cluster was made with {had}, and its objects have addresses \
                 of it; use {option} {had}, or another data directory"
            )));
        }
    }
    Ok(())
}

fn kind((group, plural): (&str, &str)) -> Result<&'static Kind, Error> {
    let found = kinds::ALL.iter().copied().find(|kind| kind.group == group && kind.plural == plural);
    found.ok_or(Error::UnknownPath)
}

/// Makes an object where there is none of its name.
async fn ensure(app: &App, of: (&str, &str), namespace: &str, name: &str, mut object: Value) -> Result<(), Error> {
    let kind = kind(of)?;
    if app.cache.of(kind).is_some_and(|cache| cache.get(namespace, name).is_some()) {
        return Ok(());
    }
    if let Some(map) = object.as_object_mut() {
        map.insert("kind".to_owned(), kind.kind.into());
        map.insert("apiVersion".to_owned(), kind.api_version().into());
    }
    metadata(&mut object)?.insert("name".to_owned(), name.into());
    (kind.strategy.default)(&mut object);
    let identity = Identity::admin();
    let write = Write {
        app,
        identity: &identity,
        kind,
        namespace,
        subresource: "",
        manager: Some(MANAGER),
        dry_run: false,
        trusted: true,
    };
    write.create(object, &mut Vec::new()).await.map(|_| ())
}

async fn merge(
    app: &App,
    of: (&str, &str),
    namespace: &str,
    name: &str,
    change: impl Fn(&mut Value),
) -> Result<(), Error> {
    let identity = Identity::admin();
    let kind = kind(of)?;
    let write = Write {
        app,
        identity: &identity,
        kind,
        namespace,
        subresource: "",
        manager: Some(MANAGER),
        dry_run: false,
        trusted: true,
    };
    let mut warnings = Vec::new();
    let changed = |old: &Value, _: &mut Vec<String>| {
        let mut new = old.clone();
        change(&mut new);
        Ok(new)
    };
    write.update(name, Preconditions::default(), &mut warnings, changed).await.map(|_| ())
}
