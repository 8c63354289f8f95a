//! What is allowed in a pod's spec but hardly meant.

use std::collections::HashMap;

use crate::validation::common::quantity;
use crate::validation::field::{Field, Path, quote};

fn deprecated_label(key: &str) -> Option<&'static str> {
    Some(match key {
        "beta.kubernetes.io/arch" => "deprecated since v1.14; use \"kubernetes.io/arch\" instead",
        "beta.kubernetes.io/os" => "deprecated since v1.14; use \"kubernetes.io/os\" instead",
        "failure-domain.beta.kubernetes.io/region" => {
            "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead"
        }
        "failure-domain.beta.kubernetes.io/zone" => {
            "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead"
        }
        "beta.kubernetes.io/instance-type" => {
            "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead"
        }
        _ => return None,
    })
}

const ANNOTATIONS: &[(&str, &str)] = &[
    (
        "scheduler.alpha.kubernetes.io/critical-pod",
        "non-functional in v1.16+; use the \"priorityClassName\" field instead",
    ),
    ("security.alpha.kubernetes.io/sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
    ("security.alpha.kubernetes.io/unsafe-sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
];

const VOLUMES: &[(&str, &str, &str)] = &[
    ("photonPersistentDisk", "photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("gitRepo", "gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"),
    ("scaleIO", "scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageos", "storageOS", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("cephfs", "cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "rbd", "deprecated in v1.28, non-functional in v1.31+"),
];

/// Warnings for a pod or, at the template's path, for a template.
pub fn warnings(holder: &Field<'_>) -> Vec<String> {
    let mut all = Vec::new();
    let (meta, spec) = (holder.child("metadata"), holder.child("spec"));
    let is_template = holder.path().to_string() != "";
    labels(&spec, &mut all);
    let annotations = meta.child("annotations");
    let has = |key: &str| annotations.value().and_then(|map| map.get(key)).is_some();
    for (key, message) in ANNOTATIONS {
        if has(key) {
            all.push(format!("{}: {message}", annotations.path().key(key)));
        }
    }
    for volume in spec.child("volumes").items() {
        for (name, told, message) in VOLUMES {
            if volume.child(name).is_set() {
                all.push(format!("{}: {message}", volume.path().child(told)));
            }
        }
    }
    token_paths(&spec, &mut all);
    twice(&spec.child("hostAliases"), "ip", "ip", &mut all);
    twice(&spec.child("imagePullSecrets"), "name", "name", &mut all);
    for secret in spec.child("imagePullSecrets").items() {
        if secret.child("name").is_empty() {
            all.push(format!("{}: invalid empty name \"\"", secret.child("name").path()));
        }
    }
    fractions(&spec.child("overhead"), &mut all);
    let seccomp = "seccomp.security.alpha.kubernetes.io/pod";
    if !spec.below(&["securityContext", "seccompProfile"]).is_set() && has(seccomp) {
        let path = annotations.path().key(seccomp);
        all.push(format!("{path}: non-functional in v1.27+; use the \"seccompProfile\" field instead"));
    }
    let pod_armor = spec.below(&["securityContext", "appArmorProfile"]).is_set();
    for container in super::security::all_containers(&spec) {
        if annotations.is_set() {
            let name = container.child("name").str();
            let context = container.child("securityContext");
            let key = format!("container.seccomp.security.alpha.kubernetes.io/{name}");
            if !context.child("seccompProfile").is_set() && has(&key) {
                let path = annotations.path().key(&key);
                all.push(format!("{path}: non-functional in v1.27+; use the \"seccompProfile\" field instead"));
            }
            let key = format!("container.apparmor.security.beta.kubernetes.io/{name}");
            if is_template && !pod_armor && !context.child("appArmorProfile").is_set() && has(&key) {
                let path = annotations.path().key(&key);
                all.push(format!("{path}: deprecated since v1.30; use the \"appArmorProfile\" field instead"));
            }
        }
        for list in ["limits", "requests"] {
            let list = container.below(&["resources", list]);
            fraction(&list, "memory", &mut all);
        }
        for list in ["limits", "requests"] {
            let list = container.below(&["resources", list]);
            fraction(&list, "ephemeral-storage", &mut all);
        }
        hidden_env(&container, &mut all);
    }
    ports(&spec, &mut all);
    all
}

fn labels(spec: &Field<'_>, all: &mut Vec<String>) {
    for (key, entry) in spec.child("nodeSelector").entries() {
        if let Some(message) = deprecated_label(key) {
            all.push(format!("{}: {message}", entry.path()));
        }
    }
    let affinity = spec.below(&["affinity", "nodeAffinity"]);
    let required = affinity.below(&["requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms"]);
    let preferred = affinity.child("preferredDuringSchedulingIgnoredDuringExecution");
    for term in required.items().chain(preferred.items().map(|term| term.child("preference"))) {
        for requirement in term.child("matchExpressions").items() {
            let key = requirement.child("key");
            if let Some(message) = deprecated_label(key.str()) {
                all.push(format!("{}: {} is {message}", key.path(), key.str()));
            }
        }
    }
    for constraint in spec.child("topologySpreadConstraints").items() {
        let key = constraint.child("topologyKey");
        if let Some(message) = deprecated_label(key.str()) {
            all.push(format!("{}: {} is {message}", key.path(), key.str()));
        }
        let selector = constraint.child("labelSelector");
        if !selector.is_set() {
            all.push(format!("{}: a null labelSelector results in matching no pod", selector.path()));
        }
    }
}

fn sources<'v>(volume: &Field<'v>) -> Field<'v> {
    volume.below(&["projected", "sources"])
}

/// Files that a token of the same volume writes over.
fn token_paths(spec: &Field<'_>, all: &mut Vec<String>) {
    let tokens: Vec<&str> = spec
        .child("volumes")
        .items()
        .flat_map(|volume| sources(&volume).items().collect::<Vec<_>>())
        .filter(|source| source.child("serviceAccountToken").is_set())
        .map(|source| source.below(&["serviceAccountToken", "path"]).str())
        .collect();
    if tokens.is_empty() {
        return;
    }
    for volume in spec.child("volumes").items() {
        let path = volume.path().child("projected.sources");
        let mut tell = |path: Path, file: &str| {
            if tokens.contains(&file) {
                all.push(format!("{path}: has duplicated path with ServiceAccountToken {}", quote(file)));
            }
        };
        for source in sources(&volume).items() {
            for (kind, told) in [("configMap", "configMap"), ("secret", "secrets"), ("downwardAPI", "downwardAPI")] {
                for (j, item) in source.below(&[kind, "items"]).items().enumerate() {
                    tell(path.child(told).index(j), item.child("path").str());
                }
            }
            let bundle = source.child("clusterTrustBundle");
            if bundle.is_set() {
                tell(path.child("ClusterTrustBundle"), bundle.child("path").str());
            }
        }
    }
}

fn twice(list: &Field<'_>, key: &'static str, word: &str, all: &mut Vec<String>) {
    let mut seen: Vec<&str> = Vec::new();
    for entry in list.items() {
        let value = entry.child(key);
        if seen.contains(&value.str()) {
            all.push(format!("{}: duplicate {word} {}", value.path(), quote(value.str())));
        } else {
            seen.push(value.str());
        }
    }
}

fn fractions(list: &Field<'_>, all: &mut Vec<String>) {
    fraction(list, "memory", all);
    fraction(list, "ephemeral-storage", all);
}

fn fraction(list: &Field<'_>, name: &str, all: &mut Vec<String>) {
    let Some((_, field)) = list.entries().find(|(key, _)| *key == name) else {
        return;
    };
    let value = quantity(&field);
    if !value.is_whole() {
        let value = quote(&value.to_string());
        all.push(format!("{}: fractional byte value {value} is invalid, must be an integer", field.path()));
    }
}

fn hidden_env(container: &Field<'_>, all: &mut Vec<String>) {
    let mut seen: Vec<&str> = Vec::new();
    for variable in container.child("env").items() {
        let (name, value) = (variable.child("name").str(), variable.child("value").str());
        if !seen.contains(&name) {
            seen.push(name);
            continue;
        }
        let reference = format!("$({name})");
        if variable.child("valueFrom").is_set() || value == reference || !value.contains(&reference) {
            let path = variable.path();
            let name = quote(name);
            all.push(format!("{path}: hides previous definition of {name}, which may be dropped when using apply"));
        }
    }
}

fn ports(spec: &Field<'_>, all: &mut Vec<String>) {
    let mut seen: HashMap<(i64, &str), Vec<Field<'_>>> = HashMap::new();
    for container in super::security::all_containers(spec) {
        for port in container.child("ports").items() {
            let (ip, host) = (port.child("hostIP").str(), port.child("hostPort").int());
            if !ip.is_empty() && host == 0 {
                let told = format!(
                    "{{Name:{} HostPort:0 ContainerPort:{} Protocol:{} HostIP:{ip}}}",
                    port.child("name").str(),
                    port.child("containerPort").int(),
                    port.child("protocol").str()
                );
                all.push(format!("{}: hostIP set without hostPort: {told}", port.path()));
            }
            let key = (port.child("containerPort").int(), port.child("protocol").str());
            let others = seen.entry(key).or_default();
            for other in others.iter() {
                let (other_ip, other_host) = (other.child("hostIP").str(), other.child("hostPort").int());
                let (path, other) = (port.path(), other.path());
                if ip == other_ip && host == other_host {
                    all.push(format!("{path}: duplicate port definition with {other}"));
                } else if host == 0 || other_host == 0 || (host == other_host && (ip.is_empty() || other_ip.is_empty()))
                {
                    all.push(format!("{path}: overlapping port definition with {other}"));
                }
            }
            others.push(port);
        }
    }
}
