//! What a node may do: its own objects, the pods bound to it, and what those pods name.

use serde_json::Value;

use super::Attributes;
use super::roles::{self, OWN};
use crate::app::App;

/// The ConfigMap that tells a node how the cluster is set up.
const CLUSTER_CONFIG: (&str, &str) = ("kube-system", "sampan-cluster");

pub fn allows(app: &App, node: &str, attributes: &Attributes<'_>) -> bool {
    if roles::covered(roles::NODE, attributes) {
        return true;
    }
    let Attributes { verb, group, resource, subresource, namespace, name, field_selector, .. } = *attributes;
    let reads_one = verb == "get" || (matches!(verb, "list" | "watch") && !name.is_empty());
    match (group, resource, subresource) {
        // A creation names no object in its path; admission holds it to the node's own.
        ("", "nodes", "") => verb == "create" || (name == node && OWN.contains(&verb) && verb != "delete"),
        ("", "nodes", "status") => name == node && matches!(verb, "get" | "update" | "patch"),
        ("coordination.k8s.io", "leases", "") => {
            namespace == "kube-node-lease"
                && (verb == "create" || (name == node && (verb == "get" || OWN.contains(&verb))))
        }
        ("", "pods", "") => match verb {
            "list" | "watch" => field_selector.split(',').any(|one| {
                one.strip_prefix("spec.nodeName=").is_some_and(|value| value.trim_start_matches('=') == node)
            }),
            "get" | "delete" => is_bound(app, node, namespace, name),
            _ => false,
        },
        ("", "pods", "status") => matches!(verb, "get" | "update" | "patch") && is_bound(app, node, namespace, name),
        ("", "pods", "eviction") => verb == "create" && is_bound(app, node, namespace, name),
        ("", "configmaps", "") if (namespace, name) == CLUSTER_CONFIG => reads_one,
        ("", "configmaps" | "secrets" | "serviceaccounts", "") => {
            reads_one && pods_name(app, node, namespace, resource, name)
        }
        ("", "serviceaccounts", "token") => {
            verb == "create" && pods_name(app, node, namespace, "serviceaccounts", name)
        }
        _ => false,
    }
}

fn is_bound(app: &App, node: &str, namespace: &str, name: &str) -> bool {
    app.find("", "pods", namespace, name)
        .is_some_and(|pod| app.field(&pod, "pods", "spec.nodeName").is_some_and(|bound| bound == node))
}

/// Whether a pod bound to the node refers to the object.
fn pods_name(app: &App, node: &str, namespace: &str, resource: &str, name: &str) -> bool {
    if namespace.is_empty() || name.is_empty() {
        return false;
    }
    let Some(pods) = app.kind_cache("", "pods") else {
        return false;
    };
    let Some(bound) = pods.kind.selectable_fields.iter().position(|field| field.path == "spec.nodeName") else {
        return false;
    };
    let quoted = format!("{name:?}");
    pods.any(namespace, |pod| {
        // Decoding is the expensive part: only pods that have the name in them at all.
        pod.fields.get(bound).is_some_and(|bound| bound == node)
            && pod.bytes().windows(quoted.len()).any(|window| window == quoted.as_bytes())
            && pod.value().get("spec").is_some_and(|spec| refers(spec, resource, name))
    })
}

/// Whether a pod's specification refers to a Secret, ConfigMap or ServiceAccount by name.
fn refers(spec: &Value, resource: &str, name: &str) -> bool {
    let is = |value: Option<&Value>| value.and_then(Value::as_str) == Some(name);
    let list = |of: &Value, key: &str| of.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    if resource == "serviceaccounts" {
        return is(spec.get("serviceAccountName"));
    }
    let secret = resource == "secrets";
    let (volume, volume_name, env, env_from) = if secret {
        ("secret", "secretName", "secretKeyRef", "secretRef")
    } else {
        ("configMap", "name", "configMapKeyRef", "configMapRef")
    };
    let in_volumes = list(spec, "volumes").iter().any(|entry| {
        is(entry.get(volume).and_then(|source| source.get(volume_name)))
            || entry.get("projected").is_some_and(|projected| {
                list(projected, "sources").iter().any(|source| is(source.get(volume).and_then(|it| it.get("name"))))
            })
    });
    let in_containers = ["containers", "initContainers", "ephemeralContainers"].iter().any(|key| {
        list(spec, key).iter().any(|container| {
            list(container, "env")
                .iter()
                .any(|entry| is(entry.get("valueFrom").and_then(|from| from.get(env)).and_then(|it| it.get("name"))))
                || list(container, "envFrom").iter().any(|entry| is(entry.get(env_from).and_then(|it| it.get("name"))))
        })
    });
    let pulled = secret && list(spec, "imagePullSecrets").iter().any(|entry| is(entry.get("name")));
    in_volumes || in_containers || pulled
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn references_of_a_pod() {
        let spec = json!({
            "serviceAccountName": "sa",
            "imagePullSecrets": [{"name": "pull"}],
            "volumes": [
                {"name": "a", "secret": {"secretName": "s1"}},
                {"name": "b", "projected": {"sources": [{"configMap": {"name": "c1"}}, {"secret": {"name": "s2"}}]}},
            ],
            "containers": [{"name": "x", "envFrom": [{"configMapRef": {"name": "c2"}}],
                "env": [{"name": "E", "valueFrom": {"secretKeyRef": {"name": "s3", "key": "k"}}}]}],
        });
        for name in ["s1", "s2", "s3", "pull"] {
            assert!(refers(&spec, "secrets", name), "{name}");
        }
        for name in ["c1", "c2"] {
            assert!(refers(&spec, "configmaps", name), "{name}");
            assert!(!refers(&spec, "secrets", name), "{name}");
        }
        assert!(refers(&spec, "serviceaccounts", "sa"));
        assert!(!refers(&spec, "secrets", "a"));
    }
}
