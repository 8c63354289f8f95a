//! Service.

mod validation;

use crate::kinds::edit;
use crate::kinds::prelude::*;
use crate::validation::field::Field;
use crate::validation::net;

pub static KIND: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Service",
    plural: "services",
    singular: "service",
    short_names: &["svc"],
    categories: &["all"],
    scope: Scope::Namespaced,
    verbs: ALL_VERBS,
    subresources: &[
        Subresource {
            name: "proxy",
            object: Some(("", "v1", "ServiceProxyOptions")),
            verbs: &["create", "delete", "get", "patch", "update"],
        },
        Subresource { name: "status", object: None, verbs: &["get", "patch", "update"] },
    ],
    schema: "io.k8s.api.core.v1.Service",
    selectable_fields: &[field!("spec.clusterIP"), field!("spec.type")],
    columns: &[
        Column {
            name: "Name",
            kind: "string",
            format: "name",
            description: "Name must be unique within its scope. It cannot be changed.",
            priority: 0,
        },
        Column { name: "Type", kind: "string", format: "", description: "", priority: 0 },
        Column { name: "Cluster-IP", kind: "string", format: "", description: "", priority: 0 },
        Column { name: "External-IP", kind: "string", format: "", description: "", priority: 0 },
        Column { name: "Port(s)", kind: "string", format: "", description: "", priority: 0 },
        Column { name: "Age", kind: "string", format: "", description: "Time since the object was made.", priority: 0 },
        Column { name: "Selector", kind: "string", format: "", description: "Labels that select pods.", priority: 1 },
    ],
    cells,
    name: names::dns_label,
    strategy: STRATEGY,
    stored_as: None,
    deprecated: None,
};

const STRATEGY: Strategy = Strategy {
    default,
    prepare_create: |object| {
        edit::set(object, "status", json!({"loadBalancer": {}}));
        sync_cluster_ips(object);
    },
    prepare_update: |new, old| {
        edit::keep(new, old, "status");
        follow_cluster_ip(new, old);
        drop_dependent(new, old);
    },
    prepare_status_update: |new, old| edit::keep(new, old, "spec"),
    validate: validation::validate,
    validate_update: validation::validate_update,
    validate_status_update: validation::validate_status_update,
    warnings,
    create_on_update: true,
    ..Strategy::PLAIN
};

const CLIENT_IP_SECONDS: i64 = 10800;
const TOPOLOGY_HINTS: &str = "service.kubernetes.io/topology-aware-hints";
const TOPOLOGY_MODE: &str = "service.kubernetes.io/topology-mode";

pub use validation::cluster_ips;

fn default(object: &mut Value) {
    let Some(map) = object.as_object_mut() else {
        return;
    };
    let spec = edit::ensure(map, "spec");
    edit::default_zero(spec, "sessionAffinity", "None");
    if edit::text(spec, "sessionAffinity") == "None" {
        spec.remove("sessionAffinityConfig");
    }
    if edit::text(spec, "sessionAffinity") == "ClientIP" {
        let config = edit::ensure(spec, "sessionAffinityConfig");
        edit::default(edit::ensure(config, "clientIP"), "timeoutSeconds", CLIENT_IP_SECONDS);
    }
    edit::default_zero(spec, "type", "ClusterIP");
    for port in edit::objects(spec, "ports") {
        edit::default_zero(port, "protocol", "TCP");
        if let Some(number) = port.get("port").cloned() {
            edit::default_zero(port, "targetPort", number);
        }
    }
    let kind = edit::text(spec, "type").to_owned();
    let external_ips = spec.get("externalIPs").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") || (kind == "ClusterIP" && external_ips) {
        edit::default_zero(spec, "externalTrafficPolicy", "Cluster");
    }
    if matches!(kind.as_str(), "ClusterIP" | "NodePort" | "LoadBalancer") {
        edit::default(spec, "internalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        edit::default(spec, "allocateLoadBalancerNodePorts", true);
    }
    let status = edit::ensure(map, "status");
    let balancer = edit::ensure(status, "loadBalancer");
    if kind == "LoadBalancer" {
        for ingress in edit::objects(balancer, "ingress").filter(|ingress| !edit::text(ingress, "ip").is_empty()) {
            edit::default(ingress, "ipMode", "VIP");
        }
    }
}

/// One address given means the list of it.
fn sync_cluster_ips(object: &mut Value) {
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else {
        return;
    };
    let ip = edit::text(spec, "clusterIP").to_owned();
    let listed = spec.get("clusterIPs").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    if !ip.is_empty() && !listed {
        spec.insert("clusterIPs".to_owned(), json!([ip]));
    }
}

/// A client that knows only `clusterIP` means the list as well.
fn follow_cluster_ip(new: &mut Value, old: &Value) {
    let (ip, former) = (print::text(new, "/spec/clusterIP").to_owned(), print::text(old, "/spec/clusterIP"));
    let list =
        |object: &Value| object.pointer("/spec/clusterIPs").and_then(Value::as_array).cloned().unwrap_or_default();
    let (mut now, before) = (list(new), list(old));
    if now.is_empty() && !before.is_empty() && ip == former {
        now.clone_from(&before);
    }
    if ip != former && now == before {
        now = if ip.is_empty() { Vec::new() } else { vec![ip.into()] };
    }
    if let Some(spec) = new.get_mut("spec").and_then(Value::as_object_mut) {
        if now.is_empty() {
            spec.remove("clusterIPs");
        } else {
            spec.insert("clusterIPs".to_owned(), now.into());
        }
    }
}

fn spec(object: &Value) -> Field<'_> {
    Field::root(object).child("spec")
}

/// Types that have an address of the cluster.
fn needs_cluster_ip(spec: &Field<'_>) -> bool {
    matches!(spec.child("type").str(), "ClusterIP" | "NodePort" | "LoadBalancer")
}

fn needs_node_port(spec: &Field<'_>) -> bool {
    match spec.child("type").str() {
        "NodePort" => true,
        "LoadBalancer" => spec.child("allocateLoadBalancerNodePorts").opt_bool() != Some(false),
        _ => false,
    }
}

fn needs_health_port(spec: &Field<'_>) -> bool {
    spec.child("type").str() == "LoadBalancer" && spec.child("externalTrafficPolicy").str() == "Local"
}

/// Reachable from outside of the cluster.
fn is_external(spec: &Field<'_>) -> bool {
    match spec.child("type").str() {
        "NodePort" | "LoadBalancer" => true,
        "ClusterIP" => !spec.child("externalIPs").is_empty(),
        _ => false,
    }
}

pub fn is_headless(spec: &Field<'_>) -> bool {
    let ips = spec.child("clusterIPs");
    ips.len() == 1 && ips.strings().next() == Some("None")
}

/// Values that another type has no use for go, unless the client changed them.
fn drop_dependent(new: &mut Value, old: &Value) {
    let before = spec(old);
    let mut gone: Vec<&str> = Vec::new();
    let mut node_ports = false;
    {
        let now = spec(new);
        let same = |name| now.child(name).value() == before.child(name).value();
        if needs_cluster_ip(&before) && !needs_cluster_ip(&now) {
            if same("clusterIPs") {
                gone.extend(["clusterIP", "clusterIPs"]);
            }
            gone.extend(["ipFamilies", "ipFamilyPolicy"].into_iter().filter(|name| same(name)));
        }
        if needs_node_port(&before) && !needs_node_port(&now) {
            let ports = |spec: &Field<'_>| -> Vec<i64> {
                let mut all: Vec<i64> = spec.child("ports").items().map(|port| port.child("nodePort").int()).collect();
                all.sort_unstable();
                all
            };
            node_ports = ports(&before) == ports(&now);
        }
        if needs_health_port(&before) && !needs_health_port(&now) && same("healthCheckNodePort") {
            gone.push("healthCheckNodePort");
        }
        let balanced = |spec: &Field<'_>| spec.child("type").str() == "LoadBalancer";
        if balanced(&before) && !balanced(&now) {
            gone.extend(["allocateLoadBalancerNodePorts", "loadBalancerClass"].into_iter().filter(|name| same(name)));
        }
        if is_external(&before) && !is_external(&now) && same("externalTrafficPolicy") {
            gone.push("externalTrafficPolicy");
        }
    }
    let Some(spec) = new.get_mut("spec").and_then(Value::as_object_mut) else {
        return;
    };
    for name in gone {
        spec.remove(name);
    }
    if node_ports {
        for port in edit::objects(spec, "ports") {
            port.remove("nodePort");
        }
    }
}

fn warnings(new: &Value, _: Option<&Value>) -> Vec<String> {
    let root = Field::root(new);
    let spec = root.child("spec");
    let mut all = Vec::new();
    if root.below(&["metadata", "annotations"]).entries().any(|(key, _)| key == TOPOLOGY_HINTS) {
        all.push(format!("annotation {TOPOLOGY_HINTS} is deprecated, please use {TOPOLOGY_MODE} instead"));
    }
    let kind = spec.child("type").str();
    let headless = kind == "ClusterIP" && spec.child("clusterIP").str() == "None";
    let external_ips = spec.child("externalIPs");
    if !headless {
        spec.child("clusterIPs").items().for_each(|ip| net::warn_ip(&ip, &mut all));
    } else {
        for (name, told) in [("loadBalancerIP", "loadBalancerIP"), ("externalIPs", "externalIPs")] {
            if !spec.child(name).is_empty() {
                all.push(format!("spec.{told} is ignored for headless services"));
            }
        }
        if spec.child("sessionAffinity").str() != "None" {
            all.push("spec.SessionAffinity is ignored for headless services".to_owned());
        }
    }
    external_ips.items().for_each(|ip| net::warn_ip(&ip, &mut all));
    if !external_ips.is_empty() && !headless && kind != "ExternalName" {
        all.push("spec.externalIPs is deprecated and may no longer be implemented in some clusters".to_owned());
    }
    let balancer = spec.child("loadBalancerIP");
    if !balancer.is_empty() {
        net::warn_ip(&balancer, &mut all);
    }
    if kind == "ExternalName" && !external_ips.is_empty() {
        all.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".to_owned());
    }
    if kind != "ExternalName" && !spec.child("externalName").is_empty() {
        all.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".to_owned());
    }
    if spec.child("trafficDistribution").str() == "PreferClose" {
        let told = "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"";
        all.push(told.to_owned());
    }
    all
}

/// Where the Service answers from outside.
fn external_address(object: &Value) -> String {
    let root = Field::root(object);
    let spec = root.child("spec");
    let ips: Vec<&str> = spec.child("externalIPs").strings().collect();
    match spec.child("type").str() {
        "ClusterIP" | "NodePort" => {
            if ips.is_empty() {
                "<none>".to_owned()
            } else {
                ips.join(",")
            }
        }
        "LoadBalancer" => {
            let ingress = root.below(&["status", "loadBalancer", "ingress"]);
            let mut all: Vec<&str> = ingress
                .items()
                .map(|one| if one.child("ip").is_empty() { one.child("hostname").str() } else { one.child("ip").str() })
                .filter(|text| !text.is_empty())
                .collect();
            all.sort_unstable();
            all.dedup();
            all.extend(ips);
            if all.is_empty() { "<pending>".to_owned() } else { all.join(",") }
        }
        "ExternalName" => spec.child("externalName").str().to_owned(),
        _ => "<unknown>".to_owned(),
    }
}

fn cells(object: &Value, now: i64) -> Vec<Value> {
    let spec = spec(object);
    let or_none = |text: String| {
        if text.is_empty() { "<none>".to_owned() } else { text }
    };
    let ports: Vec<String> = spec
        .child("ports")
        .items()
        .map(|port| {
            let (number, node) = (port.child("port").int(), port.child("nodePort").int());
            let protocol = port.child("protocol").str();
            if node > 0 { format!("{number}:{node}/{protocol}") } else { format!("{number}/{protocol}") }
        })
        .collect();
    vec![
        print::name(object),
        json!(spec.child("type").str()),
        json!(or_none(spec.child("clusterIP").str().to_owned())),
        json!(external_address(object)),
        json!(or_none(ports.join(","))),
        print::age(object, now),
        json!(print::labels(object.pointer("/spec/selector"))),
    ]
}
