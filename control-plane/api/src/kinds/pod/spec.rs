//! Validation of a pod's spec and of templates.

use super::containers::{self, Context, one_of};
use super::{scheduling, security, volumes};
use crate::error::FieldErrors;
use crate::quantity::Quantity;
use crate::validation::common::{Holder, quantity, resources};
use crate::validation::field::Field;
use crate::validation::{metadata, names, net};

/// Where a spec stands: some rules hold only for a pod itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'v> {
    /// A pod of that name.
    Pod(&'v str),
    Template,
}

/// Everything within a spec.
pub fn validate(spec: &Field<'_>, place: Place<'_>, errors: &mut FieldErrors) {
    let grace = spec.child("terminationGracePeriodSeconds");
    if !grace.is_set() {
        errors.required(grace.path(), "");
    }
    let pod_name = if let Place::Pod(name) = place { name } else { "" };
    let claims = spec.child("resourceClaims");
    let context = Context {
        volumes: volumes::volumes(&spec.child("volumes"), pod_name, errors),
        claims: claims.items().map(|claim| claim.child("name").str()).filter(|name| !name.is_empty()).collect(),
        grace_period: grace.opt_int(),
        restart_policy: spec.child("restartPolicy").str(),
        host_users: spec.child("hostUsers").opt_bool() != Some(false),
    };
    resource_claims(&claims, errors);
    let (regular, init) = (spec.child("containers"), spec.child("initContainers"));
    containers::containers(&regular, &context, errors);
    containers::init_containers(&init, &regular, &context, errors);
    containers::ephemeral_containers(&spec.child("ephemeralContainers"), &regular, &init, &context, errors);
    pod_resources(spec, &context, errors);
    host_network(spec, place, errors);
    one_of(&spec.child("restartPolicy"), &["Always", "OnFailure", "Never"], errors);
    one_of(&spec.child("dnsPolicy"), &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"], errors);
    metadata::labels(&spec.child("nodeSelector"), errors);
    security::pod(spec, errors);
    scheduling::affinity(&spec.child("affinity"), errors);
    dns(spec, errors);
    for gate in spec.child("readinessGates").items() {
        let kind = gate.child("conditionType");
        metadata::label_name(kind.path(), kind.str(), errors);
    }
    scheduling::gates(&spec.child("schedulingGates"), errors);
    let merged = matches!(place, Place::Pod(_));
    scheduling::topology_spread(&spec.child("topologySpreadConstraints"), merged, errors);
    security::host_process(spec, errors);
    security::host_users(spec, errors);
    for name in ["serviceAccountName", "nodeName"] {
        let field = spec.child(name);
        if !field.is_empty() {
            errors.invalid_all(field.path(), field.str(), names::is_dns_subdomain(field.str()));
        }
    }
    let deadline = spec.child("activeDeadlineSeconds");
    if deadline.opt_int().is_some_and(|seconds| !(1..=i64::from(i32::MAX)).contains(&seconds)) {
        errors.invalid(&deadline, "must be between 1 and 2147483647, inclusive");
    }
    for name in ["hostname", "subdomain"] {
        let field = spec.child(name);
        if !field.is_empty() {
            errors.invalid_all(field.path(), field.str(), names::is_dns_label(field.str()));
        }
    }
    hostname_override(spec, errors);
    scheduling::tolerations(&spec.child("tolerations"), errors);
    for alias in spec.child("hostAliases").items() {
        net::valid_ip(alias.child("ip").path(), alias.child("ip").str(), errors);
        for name in alias.child("hostnames").items() {
            errors.invalid_all(name.path(), name.str(), names::is_dns_subdomain(name.str()));
        }
    }
    let class = spec.child("priorityClassName");
    if !class.is_empty() {
        errors.invalid_all(class.path(), class.str(), names::is_dns_subdomain(class.str()));
    }
    let class = spec.child("runtimeClassName");
    if class.is_set() {
        errors.invalid_all(class.path(), class.str(), names::is_dns_subdomain(class.str()));
    }
    let policy = spec.child("preemptionPolicy");
    if policy.is_set() {
        one_of(&policy, &["PreemptLowerPriority", "Never"], errors);
    }
    overhead(&spec.child("overhead"), errors);
    security::operating_system(spec, errors);
}

/// Overhead is a resource list by itself; told as if it were limits.
pub fn overhead(field: &Field<'_>, errors: &mut FieldErrors) {
    if let Some(list) = field.value() {
        let as_limits = serde_json::json!({"limits": list});
        resources(&Field::at(Some(&as_limits), field.path().clone()), Holder::Container, &[], errors);
    }
}

fn hostname_override(spec: &Field<'_>, errors: &mut FieldErrors) {
    let name = spec.child("hostnameOverride");
    if !name.is_set() {
        return;
    }
    let wrong = names::is_dns_subdomain(name.str());
    errors.invalid_all(name.path(), name.str(), wrong);
    if name.len() > 64 {
        errors.too_long(name.path(), 64);
    }
    if spec.child("setHostnameAsFQDN").bool() {
        errors.forbidden(name.path(), "may not be set when `setHostnameAsFQDN` is true");
    }
    if spec.child("hostNetwork").bool() {
        errors.forbidden(name.path(), "may not be set when `hostNetwork` is true");
    }
}

fn resource_claims(list: &Field<'_>, errors: &mut FieldErrors) {
    let mut seen: Vec<&str> = Vec::new();
    for claim in list.items() {
        let name = claim.child("name");
        if name.is_empty() {
            errors.required(name.path(), "");
        } else if seen.contains(&name.str()) {
            errors.duplicate(name.path(), name.str());
        } else {
            errors.invalid_all(name.path(), name.str(), names::is_dns_label(name.str()));
            seen.push(name.str());
        }
        let (direct, template) = (claim.child("resourceClaimName"), claim.child("resourceClaimTemplateName"));
        let shown = || {
            let text = |field: &Field<'_>| field.value().cloned().unwrap_or_default().to_string();
            format!(
                "{{\"Name\":{},\"ResourceClaimName\":{},\"ResourceClaimTemplateName\":{}}}",
                serde_json::Value::from(name.str()),
                text(&direct),
                text(&template)
            )
        };
        if direct.is_set() && template.is_set() {
            let detail = "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified";
            errors.invalid_shown(claim.path(), &shown(), detail);
        }
        if !direct.is_set() && !template.is_set() {
            let detail = "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`";
            errors.invalid_shown(claim.path(), &shown(), detail);
        }
        for field in [&direct, &template] {
            if field.is_set() {
                errors.invalid_all(field.path(), field.str(), names::is_dns_subdomain(field.str()));
            }
        }
    }
}

/// Resources of the pod as a whole cover those of its containers.
fn pod_resources(spec: &Field<'_>, context: &Context<'_>, errors: &mut FieldErrors) {
    let field = spec.child("resources");
    if !field.is_set() {
        return;
    }
    if field.child("claims").is_set() {
        errors.forbidden(field.child("claims").path(), "claims cannot be set for Resources at pod-level");
    }
    resources(&field, Holder::Pod, &context.claims, errors);
    let Some(map) = spec.value().and_then(serde_json::Value::as_object) else {
        return;
    };
    let find =
        |list: &Field<'_>, name: &str| list.entries().find(|(key, _)| *key == name).map(|(_, value)| quantity(&value));
    let requests = field.child("requests");
    for (name, total) in super::aggregate::containers(map, "requests") {
        let requested = find(&requests, &name).unwrap_or_else(Quantity::default);
        if total > requested {
            let detail = format!("must be greater than or equal to aggregate container requests of {total}");
            errors.invalid_str(&requests.path().key(&name), &requested.to_string(), detail);
        }
    }
    for (i, container) in spec.child("containers").items().enumerate() {
        for (name, limit) in container.below(&["resources", "limits"]).entries() {
            let Some(most) = find(&field.child("limits"), name) else {
                continue;
            };
            let limit = quantity(&limit);
            if limit > most {
                let path = field.path().child("containers").index(i).key(name).child("limits");
                let detail = format!("must be less than or equal to pod limits of {most}");
                errors.invalid_str(&path, &limit.to_string(), detail);
            }
        }
    }
}

fn host_network(spec: &Field<'_>, place: Place<'_>, errors: &mut FieldErrors) {
    if !spec.child("hostNetwork").bool() {
        return;
    }
    for container in spec.child("containers").items() {
        for port in container.child("ports").items() {
            let (host, own) = (port.child("hostPort"), port.child("containerPort").int());
            let matters = matches!(place, Place::Pod(_)) || host.int() != 0;
            if matters && host.int() != own {
                let detail = "must match `containerPort` when `hostNetwork` is true";
                errors.invalid_int(host.path(), host.int(), detail);
            }
        }
    }
}

fn dns(spec: &Field<'_>, errors: &mut FieldErrors) {
    let config = spec.child("dnsConfig");
    let (servers, searches) = (config.child("nameservers"), config.child("searches"));
    if spec.child("dnsPolicy").str() == "None" {
        if !config.is_set() {
            errors.required(config.path(), "must provide `dnsConfig` when `dnsPolicy` is None");
            return;
        }
        if servers.is_empty() {
            errors.required(servers.path(), "must provide at least one DNS nameserver when `dnsPolicy` is None");
            return;
        }
    }
    if servers.len() > 3 {
        errors.invalid(&servers, "must not have more than 3 nameservers");
    }
    for server in servers.items() {
        net::valid_ip(server.path(), server.str(), errors);
    }
    if searches.len() > 32 {
        errors.invalid(&searches, "must not have more than 32 search paths");
    }
    if searches.strings().map(|search| search.len() + 1).sum::<usize>() > 2049 {
        let detail = "must not have more than 2048 characters (including spaces) in the search list";
        errors.invalid(&searches, detail);
    }
    for search in searches.items().filter(|search| search.str() != ".") {
        let name = search.str().strip_suffix('.').unwrap_or(search.str());
        errors.invalid_all(search.path(), name, names::is_dns_subdomain_with_underscore(name));
    }
    for option in config.child("options").items() {
        if option.child("name").is_empty() {
            errors.required(option.path(), "must not be empty");
        }
    }
}

/// Annotations with a meaning of their own.
pub fn annotations(annotations: &Field<'_>, spec: &Field<'_>, errors: &mut FieldErrors) {
    let annotation = |key: &str| annotations.value()?.get(key)?.as_str();
    if let Some(value) = annotation(super::MIRROR)
        && spec.child("nodeName").is_empty()
    {
        let detail = "must set spec.nodeName if mirror pod annotation is set";
        errors.invalid_str(&annotations.path().key(super::MIRROR), value, detail);
    }
    let cost = "controller.kubernetes.io/pod-deletion-cost";
    if let Some(value) = annotation(cost) {
        let canonical = value.parse::<i32>().is_ok_and(|number| number.to_string() == value);
        if !canonical {
            errors.invalid_str(&annotations.path().key(cost), value, "must be a 32bit integer");
        }
    }
    security::annotations(annotations, spec, errors);
}

/// A template; its errors in labels and annotations are told beside `metadata`, as the reference does.
pub fn template(template: &Field<'_>, errors: &mut FieldErrors) {
    let meta = template.child("metadata");
    let labels = meta.child("labels").with_path(template.path().child("labels"));
    let notes = meta.child("annotations").with_path(template.path().child("annotations"));
    let spec = template.child("spec");
    metadata::labels(&labels, errors);
    metadata::annotations(&notes, errors);
    annotations(&notes, &spec, errors);
    validate(&spec, Place::Template, errors);
    security::annotations_match(&notes, &spec, errors);
    let ephemeral = spec.child("ephemeralContainers");
    if !ephemeral.is_empty() {
        errors.forbidden(ephemeral.path(), "ephemeral containers not allowed in pod template");
    }
}
