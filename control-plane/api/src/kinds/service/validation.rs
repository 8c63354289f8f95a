//! What a Service must hold, and what of it may change.

use super::{TOPOLOGY_HINTS, TOPOLOGY_MODE, is_external, is_headless, needs_cluster_ip, needs_health_port, spec};
use crate::kinds::pod::containers::{one_of, port_or_name};
use crate::kinds::prelude::*;
use crate::validation::common::PROTOCOLS;
use crate::validation::field::Field;
use crate::validation::{metadata, net};

const MAX_CLIENT_IP_SECONDS: i64 = 86400;
const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

pub fn validate(object: &Value, errors: &mut FieldErrors) {
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

pub fn validate_update(new: &Value, old: &Value, errors: &mut FieldErrors) {
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

pub fn validate_status_update(new: &Value, _: &Value, errors: &mut FieldErrors) {
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
