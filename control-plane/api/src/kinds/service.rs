//! Service.

use super::edit;
use super::prelude::*;
use crate::kinds::pod::containers::{one_of, port_or_name};
use crate::validation::common::PROTOCOLS;
use crate::validation::field::Field;
use crate::validation::{metadata, net};

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
        Subresource { name: "proxy", object: Some(("", "v1", "ServiceProxyOptions")), verbs: &["create", "delete", "get", "patch", "update"] },
        Subresource { name: "status", object: None, verbs: &["get", "patch", "update"] },
    ],
    schema: "io.k8s.api.core.v1.Service",
    selectable_fields: &[
        field!("spec.clusterIP"),
        field!("spec.type"),
    ],
    columns: &[
        Column { name: "Name", kind: "string", format: "name", description: "Name must be unique within its scope. It cannot be changed.", priority: 0 },
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
    validate,
    validate_update,
    validate_status_update,
    warnings,
    create_on_update: true,
    ..Strategy::PLAIN
};

const CLIENT_IP_SECONDS: i64 = 10800;
const MAX_CLIENT_IP_SECONDS: i64 = 86400;
const TOPOLOGY_HINTS: &str = "service.kubernetes.io/topology-aware-hints";
const TOPOLOGY_MODE: &str = "service.kubernetes.io/topology-mode";
const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

fn default(object: &mut Value) {
    let Some(map) = object.as_object_mut() else { return };
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
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let ip = edit::text(spec, "clusterIP").to_owned();
    let listed = spec.get("clusterIPs").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    if !ip.is_empty() && !listed {
        spec.insert("clusterIPs".to_owned(), json!([ip]));
    }
}

/// A client that knows only `clusterIP` means the list as well.
fn follow_cluster_ip(new: &mut Value, old: &Value) {
    let (ip, former) = (print::text(new, "/spec/clusterIP").to_owned(), print::text(old, "/spec/clusterIP"));
    let list = |object: &Value| object.pointer("/spec/clusterIPs").and_then(Value::as_array).cloned().unwrap_or_default();
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
    let Some(spec) = new.get_mut("spec").and_then(Value::as_object_mut) else { return };
    for name in gone {
        spec.remove(name);
    }
    if node_ports {
        for port in edit::objects(spec, "ports") {
            port.remove("nodePort");
        }
    }
}

fn validate(object: &Value, errors: &mut FieldErrors) {
    let root = Field::root(object);
    let (annotations, spec) = (root.below(&["metadata", "annotations"]), root.child("spec"));
    let annotation = |key: &str| annotations.value()?.get(key)?.as_str();
    if let (Some(hints), Some(mode)) = (annotation(TOPOLOGY_HINTS), annotation(TOPOLOGY_MODE))
        && hints != mode
    {
        let detail = format!("must match annotations[{TOPOLOGY_HINTS}] when both are specified");
        errors.invalid_str(&annotations.path().key(TOPOLOGY_MODE), mode, detail);
    }
    let (kind, ports, headless) = (spec.child("type").str(), spec.child("ports"), is_headless(&spec));
    if ports.is_empty() && !headless && kind != "ExternalName" {
        errors.required(ports.path(), "");
    }
    match kind {
        "LoadBalancer" | "NodePort" if headless => {
            let path = spec.path().child("clusterIPs").index(0);
            errors.invalid_str(&path, "None", format!("may not be set to 'None' for {kind} services"));
        }
        "ExternalName" => external_name(&spec, errors),
        _ => {}
    }
    let mut seen: Vec<&str> = Vec::new();
    for one in ports.items() {
        port(&one, ports.len() > 1, &mut seen, errors);
    }
    metadata::labels(&spec.child("selector"), errors);
    affinity(&spec, errors);
    cluster_ips(&spec, errors);
    for ip in spec.child("externalIPs").items() {
        if net::valid_ip(ip.path(), ip.str(), errors) {
            net::not_special(ip.path(), ip.str(), errors);
        }
    }
    one_of(&spec.child("type"), &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"], errors);
    node_ports(&spec, errors);
    source_ranges(&spec, &annotations, errors);
    let allocate = spec.child("allocateLoadBalancerNodePorts");
    if allocate.is_set() && kind != "LoadBalancer" {
        errors.forbidden(allocate.path(), "may only be used when `type` is 'LoadBalancer'");
    }
    load_balancer_class(&spec, None, errors);
    traffic(&spec, errors);
}

fn external_name(spec: &Field<'_>, errors: &mut FieldErrors) {
    for name in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        let field = spec.child(name);
        if !field.is_empty() {
            errors.forbidden(field.path(), "may not be set for ExternalName services");
        }
    }
    let name = spec.child("externalName");
    let host = name.str().strip_suffix('.').unwrap_or(name.str());
    if host.is_empty() {
        errors.required(name.path(), "");
    } else {
        errors.invalid_all(name.path(), host, names::is_dns_subdomain(host));
    }
}

fn port<'v>(port: &Field<'v>, needs_name: bool, seen: &mut Vec<&'v str>, errors: &mut FieldErrors) {
    let name = port.child("name");
    if needs_name && name.is_empty() {
        errors.required(name.path(), "");
    } else if !name.is_empty() {
        errors.invalid_all(name.path(), name.str(), names::is_dns_label(name.str()));
        if seen.contains(&name.str()) {
            errors.duplicate(name.path(), name.str());
        } else {
            seen.push(name.str());
        }
    }
    let number = port.child("port");
    net::port_number(number.path(), number.int(), errors);
    one_of(&port.child("protocol"), PROTOCOLS, errors);
    port_or_name(&port.child("targetPort"), errors);
    let protocol = port.child("appProtocol");
    if protocol.is_set() {
        errors.invalid_all(protocol.path(), protocol.str(), names::is_qualified_name(protocol.str()));
    }
}

fn affinity(spec: &Field<'_>, errors: &mut FieldErrors) {
    let (kind, config) = (spec.child("sessionAffinity"), spec.child("sessionAffinityConfig"));
    one_of(&kind, &["ClientIP", "None"], errors);
    if kind.str() == "ClientIP" {
        let needed = "when session affinity type is ClientIP";
        let client = config.child("clientIP");
        let seconds = client.child("timeoutSeconds");
        for field in [&config, &client, &seconds] {
            if !field.is_set() {
                errors.required(field.path(), needed);
                return;
            }
        }
        if !(1..=MAX_CLIENT_IP_SECONDS).contains(&seconds.int()) {
            errors.invalid(&seconds, format!("must be greater than 0 and less than {MAX_CLIENT_IP_SECONDS}"));
        }
    } else if kind.str() == "None" && config.is_set() {
        errors.forbidden(config.path(), "must not be set when session affinity is None");
    }
}

/// Addresses, their families and the policy about them, for themselves and together.
pub fn cluster_ips(spec: &Field<'_>, errors: &mut FieldErrors) {
    if spec.child("type").str() == "ExternalName" {
        return;
    }
    let (ip, ips, families) = (spec.child("clusterIP"), spec.child("clusterIPs"), spec.child("ipFamilies"));
    if ip.is_empty() {
        if !ips.is_empty() {
            errors.invalid(&ips, "must be empty when `clusterIP` is not specified");
        }
    } else if ips.is_empty() {
        errors.required(ips.path(), "");
    } else if ips.strings().next() != Some(ip.str()) {
        errors.invalid(&ips, "first value must match `clusterIP`");
    }
    for (i, family) in families.items().enumerate() {
        if !matches!(family.str(), "IPv4" | "IPv6") {
            errors.not_supported(family.path(), family.str(), &["IPv4", "IPv6"]);
        }
        if families.strings().take(i).any(|other| other == family.str()) {
            errors.duplicate(family.path(), family.str());
        }
    }
    let policy = spec.child("ipFamilyPolicy");
    let policies = ["PreferDualStack", "RequireDualStack", "SingleStack"];
    if policy.is_set() && !policies.contains(&policy.str()) {
        errors.not_supported(policy.path(), policy.str(), &policies);
    }
    let mut wrong = false;
    for (i, address) in ips.items().enumerate() {
        if i == 0 && address.str() == "None" {
            if ips.len() > 1 {
                wrong = true;
                errors.invalid(&ips, "'None' must be the first and only value");
            }
            continue;
        }
        wrong |= !net::valid_ip(address.path(), address.str(), errors);
    }
    if ips.len() > 2 {
        errors.invalid(&ips, "may only hold up to 2 values");
    }
    if wrong {
        return;
    }
    if ips.len() > 1 && !net::is_dual_stack(ips.strings()) {
        errors.invalid(&ips, "may specify no more than one IP for each IP family");
    }
    if !is_headless(spec) {
        for (i, (address, family)) in ips.items().zip(families.strings()).enumerate() {
            let v6 = net::is_ipv6(address.str());
            if (family == "IPv4" && v6) || (family == "IPv6" && !v6) {
                errors.invalid(&address, format!("expected an {family} value as indicated by `ipFamilies[{i}]`"));
            }
        }
    }
}

fn node_ports(spec: &Field<'_>, errors: &mut FieldErrors) {
    let ports = spec.child("ports");
    if spec.child("type").str() == "ClusterIP" {
        for port in ports.items() {
            let number = port.child("nodePort");
            if number.int() != 0 {
                errors.forbidden(number.path(), "may not be used when `type` is 'ClusterIP'");
            }
        }
    }
    let mut seen: Vec<(&str, i64)> = Vec::new();
    for port in ports.items() {
        let number = port.child("nodePort");
        let key = (port.child("protocol").str(), number.int());
        if number.int() == 0 {
            continue;
        }
        if seen.contains(&key) {
            errors.duplicate_shown(number.path(), &number.int().to_string());
        }
        seen.push(key);
    }
    let mut seen: Vec<(&str, i64)> = Vec::new();
    for port in ports.items() {
        let (protocol, number) = (port.child("protocol").str(), port.child("port").int());
        if seen.contains(&(protocol, number)) {
            let shown = format!(
                "{{\"Name\":\"\",\"Protocol\":{},\"AppProtocol\":null,\"Port\":{number},\"TargetPort\":0,\"NodePort\":0}}",
                Value::from(protocol)
            );
            errors.duplicate_shown(port.path(), &shown);
        }
        seen.push((protocol, number));
    }
}

fn source_ranges(spec: &Field<'_>, annotations: &Field<'_>, errors: &mut FieldErrors) {
    let balanced = spec.child("type").str() == "LoadBalancer";
    let refusal = "may only be used when `type` is 'LoadBalancer'";
    let ranges = spec.child("loadBalancerSourceRanges");
    if !ranges.is_empty() {
        let path = spec.path().child("LoadBalancerSourceRanges");
        if !balanced {
            errors.forbidden(&path, refusal);
        }
        for (i, range) in ranges.strings().enumerate() {
            net::valid_cidr(&path.index(i), range.trim(), errors);
        }
    } else if let Some((_, value)) = annotations.entries().find(|(key, _)| *key == SOURCE_RANGES) {
        if !balanced {
            errors.forbidden(value.path(), refusal);
        }
        for range in value.str().split(',').map(str::trim).filter(|_| !value.str().trim().is_empty()) {
            net::valid_cidr(value.path(), range, errors);
        }
    }
}

fn load_balancer_class(spec: &Field<'_>, before: Option<&Field<'_>>, errors: &mut FieldErrors) {
    let balanced = |spec: &Field<'_>| spec.child("type").str() == "LoadBalancer";
    let class = spec.child("loadBalancerClass");
    if let Some(before) = before
        && balanced(before)
        && balanced(spec)
        && before.child("loadBalancerClass").value() != class.value()
    {
        errors.invalid(&class, "may not change once set");
    }
    if !class.is_set() {
        return;
    }
    if balanced(spec) {
        errors.invalid_all(class.path(), class.str(), names::is_qualified_name(class.str()));
    } else {
        errors.forbidden(class.path(), "may only be used when `type` is 'LoadBalancer'");
    }
}

fn traffic(spec: &Field<'_>, errors: &mut FieldErrors) {
    let policies = ["Cluster", "Local"];
    let external = spec.child("externalTrafficPolicy");
    if is_external(spec) {
        one_of(&external, &policies, errors);
    } else if !external.is_empty() {
        errors.invalid(&external, "may only be set for externally-accessible services");
    }
    let port = spec.child("healthCheckNodePort");
    if needs_health_port(spec) {
        if port.int() == 0 {
            errors.required(port.path(), "");
        } else {
            net::port_number(port.path(), port.int(), errors);
        }
    } else if port.int() != 0 {
        let detail = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.invalid(&port, detail);
    }
    let internal = spec.child("internalTrafficPolicy");
    if !internal.is_set() && needs_cluster_ip(spec) {
        errors.required(internal.path(), "");
    }
    if internal.is_set() && !policies.contains(&internal.str()) {
        errors.not_supported(internal.path(), internal.str(), &policies);
    }
    let distribution = spec.child("trafficDistribution");
    let supported = ["PreferClose", "PreferSameNode", "PreferSameZone"];
    if distribution.is_set() && !supported.contains(&distribution.str()) {
        errors.not_supported(distribution.path(), distribution.str(), &supported);
    }
}

fn validate_update(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let (now, before) = (spec(new), spec(old));
    changed_ips(&now, &before, errors);
    changed_families(&now, &before, errors);
    load_balancer_class(&now, Some(&before), errors);
    let port = "healthCheckNodePort";
    let both = needs_health_port(&before) && needs_health_port(&now);
    if both && now.child(port).int() != before.child(port).int() {
        errors.forbidden(now.child(port).path(), "field is immutable");
    }
    validate(new, errors);
}

fn is_external_name(spec: &Field<'_>) -> bool {
    spec.child("type").str() == "ExternalName"
}

/// A second address may come and go; the first stays.
fn changed_ips(now: &Field<'_>, before: &Field<'_>, errors: &mut FieldErrors) {
    if is_external_name(now) || is_external_name(before) || (is_headless(now) && is_headless(before)) {
        return;
    }
    let (ips, former) = (now.child("clusterIPs"), before.child("clusterIPs"));
    let set = "may not change once set";
    let shown = ips.value().map_or_else(|| "null".to_owned(), ToString::to_string);
    let first_changed = ips.strings().next() != former.strings().next();
    if ips.len() == former.len() {
        for (i, (ip, former)) in ips.strings().zip(former.strings()).enumerate() {
            if ip != former {
                errors.invalid_shown(&ips.path().index(i), &shown, set);
            }
        }
        return;
    }
    if ips.is_empty() {
        errors.invalid_shown(&ips.path().index(0), &shown, "primary clusterIP can not be unset");
    } else if !former.is_empty() && first_changed {
        errors.invalid_shown(&ips.path().index(0), &shown, set);
    }
    let policy = now.child("ipFamilyPolicy");
    if former.len() > ips.len() && ips.len() == 1 && policy.str() != "SingleStack" {
        errors.invalid(&policy, "must be set to 'SingleStack' when releasing the secondary clusterIP");
    }
}

fn changed_families(now: &Field<'_>, before: &Field<'_>, errors: &mut FieldErrors) {
    let headless = is_headless(now);
    if is_external_name(now) || is_external_name(before) || headless || headless != is_headless(before) {
        return;
    }
    let (families, former) = (now.child("ipFamilies"), before.child("ipFamilies"));
    let ips = now.child("clusterIPs");
    let shown = |field: &Field<'_>| field.value().map_or_else(|| "null".to_owned(), ToString::to_string);
    let set = "may not change once set";
    let first = families.path().index(0);
    if families.len() == former.len() {
        for _ in families.strings().zip(former.strings()).filter(|(family, former)| family != former) {
            errors.invalid_shown(&first, &shown(&families), set);
        }
        return;
    }
    if former.len() > families.len() && ips.is_empty() {
        errors.invalid_shown(&first, &shown(&families), "primary ipFamily can not be unset");
    }
    if !families.is_empty() && !former.is_empty() && families.strings().next() != former.strings().next() {
        errors.invalid_shown(&first, &shown(&ips), set);
    }
    let policy = now.child("ipFamilyPolicy");
    if former.len() > families.len() && families.len() == 1 && policy.str() != "SingleStack" {
        errors.invalid(&policy, "must be set to 'SingleStack' when releasing the secondary ipFamily");
    }
}

fn validate_status_update(new: &Value, _: &Value, errors: &mut FieldErrors) {
    let root = Field::root(new);
    let list = root.below(&["status", "loadBalancer", "ingress"]);
    if root.below(&["spec", "type"]).str() != "LoadBalancer" && !list.is_empty() {
        errors.forbidden(list.path(), "may only be used when `spec.type` is 'LoadBalancer'");
        return;
    }
    for ingress in list.items() {
        let (ip, mode, host) = (ingress.child("ip"), ingress.child("ipMode"), ingress.child("hostname"));
        if !ip.is_empty() {
            net::valid_ip(ip.path(), ip.str(), errors);
        }
        if !mode.is_set() {
            if !ip.is_empty() {
                errors.required(mode.path(), "must be specified when `ip` is set");
            }
        } else if ip.is_empty() {
            errors.forbidden(mode.path(), "may not be specified when `ip` is not set");
        } else if !matches!(mode.str(), "VIP" | "Proxy") {
            errors.not_supported(mode.path(), mode.str(), &["Proxy", "VIP"]);
        }
        if !host.is_empty() {
            errors.invalid_all(host.path(), host.str(), names::is_dns_subdomain(host.str()));
            if net::parse_ip(host.str()).is_some() {
                errors.invalid(&host, "must be a DNS name, not an IP address");
            }
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
            if ips.is_empty() { "<none>".to_owned() } else { ips.join(",") }
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
    let or_none = |text: String| if text.is_empty() { "<none>".to_owned() } else { text };
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
