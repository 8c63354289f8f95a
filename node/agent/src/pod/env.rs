//! A container's environment, from every source Kubernetes has.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::expand::expand;
use super::objects::{Data, Kind, Objects};
use super::{resources, spec};

/// What the environment of a pod's containers is made from.
pub struct Context<'a> {
    pub pod: &'a core::Pod,
    pub addresses: &'a [IpAddr],
    pub host: &'a [IpAddr],
    pub allocatable: &'a BTreeMap<String, Quantity>,
    /// Services of the pod's namespace, and `kubernetes`.
    pub services: &'a [Arc<core::Service>],
    pub objects: &'a dyn Source,
}

/// Where ConfigMaps and Secrets come from; tests have their own.
#[async_trait::async_trait]
pub trait Source: Send + Sync {
    async fn object(&self, kind: Kind, name: &str) -> Result<Option<Arc<Data>>, String>;
}

/// The objects that one pod may name.
pub struct PodObjects<'a> {
    pub objects: &'a Objects,
    pub namespace: &'a str,
    pub uid: &'a str,
}

#[async_trait::async_trait]
impl Source for PodObjects<'_> {
    async fn object(&self, kind: Kind, name: &str) -> Result<Option<Arc<Data>>, String> {
        self.objects.get(self.uid, kind, self.namespace, name).await
    }
}

type Variables = BTreeMap<String, String>;

/// The variables of a container, by name; the error is what the kubelet would say.
pub async fn build(context: &Context<'_>, container: &core::Container) -> Result<Variables, String> {
    let mut out = Variables::new();
    for source in container.env_from.as_deref().unwrap_or_default() {
        let (kind, name, optional) = if let Some(from) = &source.config_map_ref {
            (Kind::ConfigMap, &from.name, from.optional)
        } else if let Some(from) = &source.secret_ref {
            (Kind::Secret, &from.name, from.optional)
        } else {
            continue;
        };
        let Some(object) = object(context, kind, name, optional == Some(true)).await? else { continue };
        let prefix = source.prefix.as_deref().unwrap_or_default();
        for (key, value) in &object.data {
            out.insert(format!("{prefix}{key}"), String::from_utf8_lossy(value).into_owned());
        }
    }
    let services = services(context.pod, context.services);
    for variable in container.env.as_deref().unwrap_or_default() {
        let value = if let Some(from) = &variable.value_from {
            match value_from(context, container, from).await? {
                Some(value) => value,
                None => continue,
            }
        } else {
            let value = variable.value.as_deref().unwrap_or_default();
            expand(value, |name| out.get(name).or_else(|| services.get(name)).map(String::as_str))
        };
        out.insert(variable.name.clone(), value);
    }
    for (name, value) in services {
        out.entry(name).or_insert(value);
    }
    Ok(out)
}

async fn object(context: &Context<'_>, kind: Kind, name: &str, optional: bool) -> Result<Option<Arc<Data>>, String> {
    match context.objects.object(kind, name).await? {
        None if !optional => Err(format!("{} \"{name}\" not found", kind.resource())),
        found => Ok(found),
    }
}

async fn value_from(
    context: &Context<'_>,
    container: &core::Container,
    from: &core::EnvVarSource,
) -> Result<Option<String>, String> {
    let (kind, name, key, optional) = if let Some(from) = &from.config_map_key_ref {
        (Kind::ConfigMap, &from.name, &from.key, from.optional)
    } else if let Some(from) = &from.secret_key_ref {
        (Kind::Secret, &from.name, &from.key, from.optional)
    } else if let Some(from) = &from.field_ref {
        return field(context.pod, &from.field_path, context.addresses, context.host).map(Some);
    } else if let Some(from) = &from.resource_field_ref {
        let mut of = container;
        if let Some(name) = from.container_name.as_ref().filter(|name| !name.is_empty()) {
            of = spec::containers(context.pod)
                .map(|(container, _)| container)
                .find(|container| container.name == *name)
                .ok_or_else(|| format!("container {name} not found"))?;
        }
        return resources::field(of, &from.resource, from.divisor.as_ref(), context.allocatable).map(Some);
    } else {
        return Err("env: valueFrom names a source that this node does not have; it has configMapKeyRef, secretKeyRef, fieldRef and resourceFieldRef".to_owned());
    };
    let optional = optional == Some(true);
    let Some(object) = object(context, kind, name, optional).await? else { return Ok(None) };
    match object.data.get(key) {
        Some(value) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
        None if optional => Ok(None),
        None => Err(format!("couldn't find key {key} in {} {}/{name}", kind.title(), spec::namespace(context.pod))),
    }
}

/// What a `fieldRef` of a pod says.
pub fn field(pod: &core::Pod, path: &str, addresses: &[IpAddr], host: &[IpAddr]) -> Result<String, String> {
    let meta = &pod.metadata;
    let all = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let first = |ips: &[IpAddr]| ips.first().map(ToString::to_string).unwrap_or_default();
    let spec = pod.spec.as_ref();
    if let Some((map, key)) = path.strip_suffix("']").and_then(|path| path.split_once("['")) {
        let map = match map {
            "metadata.labels" => meta.labels.as_ref(),
            "metadata.annotations" => meta.annotations.as_ref(),
            _ => return Err(format!("unsupported fieldPath: {path}")),
        };
        return Ok(map.and_then(|map| map.get(key)).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => spec::name(pod).to_owned(),
        "metadata.namespace" => spec::namespace(pod).to_owned(),
        "metadata.uid" => spec::uid(pod).to_owned(),
        "metadata.labels" => map_lines(meta.labels.as_ref()),
        "metadata.annotations" => map_lines(meta.annotations.as_ref()),
        "spec.nodeName" => spec.and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
        "spec.serviceAccountName" => spec.and_then(|spec| spec.service_account_name.clone()).unwrap_or_default(),
        "status.hostIP" => first(host),
        "status.hostIPs" => all(host),
        "status.podIP" => first(addresses),
        "status.podIPs" => all(addresses),
        _ => return Err(format!("unsupported fieldPath: {path}")),
    })
}

/// `key="value"` lines, values quoted as Go quotes them.
fn map_lines(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map.into_iter().flatten().map(|(key, value)| format!("{key}={}", quote(value))).collect();
    lines.join("\n")
}

fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\u{b}' => out.push_str("\\v"),
            c if c.is_ascii_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// The variables that tell of Services, in the form Docker's links once had.
pub fn services(pod: &core::Pod, services: &[Arc<core::Service>]) -> Variables {
    let links = pod.spec.as_ref().and_then(|spec| spec.enable_service_links).unwrap_or(true);
    let mut out = Variables::new();
    for service in services {
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
        let master = namespace == "default" && name == "kubernetes";
        if !(master || links && namespace == spec::namespace(pod)) {
            continue;
        }
        let Some(spec) = &service.spec else { continue };
        let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") else { continue };
        let ports = spec.ports.as_deref().unwrap_or_default();
        let Some(first) = ports.first() else { continue };
        let prefix = name.replace('-', "_").to_uppercase();
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
        out.insert(format!("{prefix}_SERVICE_HOST"), ip.to_owned());
        out.insert(format!("{prefix}_SERVICE_PORT"), first.port.to_string());
        let url = |port: &core::ServicePort| {
            let protocol = port.protocol.as_deref().unwrap_or("TCP").to_lowercase();
            format!("{protocol}://{host}:{}", port.port)
        };
        out.insert(format!("{prefix}_PORT"), url(first));
        for port in ports {
            if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
                let name = name.replace('-', "_").to_uppercase();
                out.insert(format!("{prefix}_SERVICE_PORT_{name}"), port.port.to_string());
            }
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let each = format!("{prefix}_PORT_{}_{}", port.port, protocol.to_uppercase());
            out.insert(each.clone(), url(port));
            out.insert(format!("{each}_PROTO"), protocol.to_lowercase());
            out.insert(format!("{each}_PORT"), port.port.to_string());
            out.insert(format!("{each}_ADDR"), ip.to_owned());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    struct Fixed;

    #[async_trait::async_trait]
    impl Source for Fixed {
        async fn object(&self, kind: Kind, name: &str) -> Result<Option<Arc<Data>>, String> {
            let mut data = Data::default();
            match (kind, name) {
                (Kind::ConfigMap, "settings") => {
                    data.data.insert("colour".to_owned(), b"blue".to_vec());
                    data.data.insert("size".to_owned(), b"9".to_vec());
                }
                (Kind::Secret, "login") => {
                    data.data.insert("password".to_owned(), b"hush".to_vec());
                }
                _ => return Ok(None),
            }
            Ok(Some(Arc::new(data)))
        }
    }

    fn run(container: serde_json::Value, list: &[Arc<core::Service>]) -> Result<Variables, String> {
        let pod: core::Pod = serde_json::from_value(json!({
            "metadata": { "name": "web", "namespace": "shop", "uid": "u1", "labels": { "app": "web" } },
            "spec": { "nodeName": "n1", "serviceAccountName": "default", "containers": [container] },
        }))
        .unwrap();
        let context = Context {
            pod: &pod,
            addresses: &["10.0.0.7".parse().unwrap()],
            host: &["192.0.2.1".parse().unwrap()],
            allocatable: &BTreeMap::new(),
            services: list,
            objects: &Fixed,
        };
        let container = spec::container(&pod, 0).unwrap();
        futures::executor::block_on(build(&context, &container))
    }

    #[test]
    fn every_source() {
        let got = run(
            json!({ "name": "a",
                "envFrom": [{ "prefix": "S_", "configMapRef": { "name": "settings" } }, { "secretRef": { "name": "no", "optional": true } }],
                "resources": { "limits": { "memory": "64Mi" } },
                "env": [
                    { "name": "COLOUR", "valueFrom": { "configMapKeyRef": { "name": "settings", "key": "colour" } } },
                    { "name": "PASSWORD", "valueFrom": { "secretKeyRef": { "name": "login", "key": "password" } } },
                    { "name": "IP", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } },
                    { "name": "APP", "valueFrom": { "fieldRef": { "fieldPath": "metadata.labels['app']" } } },
                    { "name": "MEMORY", "valueFrom": { "resourceFieldRef": { "resource": "limits.memory", "divisor": "1Mi" } } },
                    { "name": "MAYBE", "valueFrom": { "secretKeyRef": { "name": "login", "key": "nope", "optional": true } } },
                    { "name": "URL", "value": "http://$(IP):$(S_size)/$(UNKNOWN)" },
                ] }),
            &[],
        )
        .unwrap();
        let expected = [
            ("APP", "web"),
            ("COLOUR", "blue"),
            ("IP", "10.0.0.7"),
            ("MEMORY", "64"),
            ("PASSWORD", "hush"),
            ("S_colour", "blue"),
            ("S_size", "9"),
            ("URL", "http://10.0.0.7:9/$(UNKNOWN)"),
        ];
        assert_eq!(got, expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
    }

    #[test]
    fn what_is_missing_is_named() {
        let with = |from: serde_json::Value| {
            run(json!({ "name": "a", "env": [{ "name": "X", "valueFrom": from }] }), &[]).unwrap_err()
        };
        assert_eq!(with(json!({ "configMapKeyRef": { "name": "no", "key": "k" } })), "configmap \"no\" not found");
        assert_eq!(with(json!({ "secretKeyRef": { "name": "no", "key": "k" } })), "secret \"no\" not found");
        assert_eq!(
            with(json!({ "secretKeyRef": { "name": "login", "key": "k" } })),
            "couldn't find key k in Secret shop/login"
        );
    }

    #[test]
    fn service_links() {
        let service: core::Service = serde_json::from_value(json!({
            "metadata": { "name": "guest-book", "namespace": "shop" },
            "spec": { "clusterIP": "10.96.0.9", "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }] },
        }))
        .unwrap();
        let got = run(json!({ "name": "a", "env": [{ "name": "GUEST_BOOK_PORT", "value": "mine" }, { "name": "AT", "value": "$(GUEST_BOOK_SERVICE_HOST)" }] }), &[Arc::new(service)]).unwrap();
        assert_eq!(got.get("GUEST_BOOK_SERVICE_HOST").unwrap(), "10.96.0.9");
        assert_eq!(got.get("GUEST_BOOK_SERVICE_PORT_HTTP").unwrap(), "8080");
        assert_eq!(got.get("GUEST_BOOK_PORT_8080_TCP").unwrap(), "tcp://10.96.0.9:8080");
        assert_eq!(got.get("GUEST_BOOK_PORT").unwrap(), "mine");
        assert_eq!(got.get("AT").unwrap(), "10.96.0.9");
    }

    #[test]
    fn maps_as_lines() {
        let map = BTreeMap::from([("b".to_owned(), "x\"y\n".to_owned()), ("a".to_owned(), "1".to_owned())]);
        assert_eq!(map_lines(Some(&map)), "a=\"1\"\nb=\"x\\\"y\\n\"");
    }

    proptest! {
        /// A variable sees those before it and never those after.
        #[test]
        fn order_decides(names in proptest::collection::vec("[A-C]", 1..6)) {
            let env: Vec<_> = names.iter().enumerate().map(|(i, name)| json!({ "name": name, "value": format!("{i}$(A)") })).collect();
            let got = run(json!({ "name": "a", "env": env }), &[]).unwrap();
            let mut expected = Variables::new();
            for (i, name) in names.iter().enumerate() {
                let a = expected.get("A").cloned().unwrap_or_else(|| "$(A)".to_owned());
                expected.insert(name.clone(), format!("{i}{a}"));
            }
            prop_assert_eq!(got, expected);
        }
    }
}
