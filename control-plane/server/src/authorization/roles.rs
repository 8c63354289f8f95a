//! Fixed roles: what everyone and each component may do, as tables.

use super::Attributes;

/// Allows `verbs` on `resources` of `groups`; `*` is any. A subresource is named `pods/status`.
pub struct Rule {
    pub groups: &'static [&'static str],
    pub resources: &'static [&'static str],
    pub verbs: &'static [&'static str],
}

const fn rule(
    groups: &'static [&'static str],
    resources: &'static [&'static str],
    verbs: &'static [&'static str],
) -> Rule {
    Rule { groups, resources, verbs }
}

pub const READ: &[&str] = &["get", "list", "watch"];
const WRITE: &[&str] = &["create", "update", "patch", "delete"];

/// Questions about oneself.
pub const EVERYONE: &[Rule] = &[
    rule(&["authorization.k8s.io"], &["selfsubjectaccessreviews", "selfsubjectrulesreviews"], &["create"]),
    rule(&["authentication.k8s.io"], &["selfsubjectreviews"], &["create"]),
];

const SCHEDULER: &[Rule] = &[
    rule(
        &[""],
        &[
            "nodes",
            "namespaces",
            "services",
            "pods",
            "replicationcontrollers",
            "persistentvolumeclaims",
            "persistentvolumes",
        ],
        READ,
    ),
    rule(&[""], &["pods"], &["delete"]),
    rule(&[""], &["pods/binding", "bindings"], &["create"]),
    rule(&[""], &["pods/status"], &["update", "patch"]),
    rule(&["apps"], &["replicasets", "statefulsets"], READ),
    rule(&["policy"], &["poddisruptionbudgets"], READ),
    rule(&["storage.k8s.io"], &["*"], READ),
    rule(&["scheduling.k8s.io", "node.k8s.io"], &["*"], READ),
    rule(&["", "events.k8s.io"], &["events"], &["create", "update", "patch"]),
    rule(&["coordination.k8s.io"], &["leases"], &["get", "list", "watch", "create", "update"]),
    rule(&["authentication.k8s.io"], &["tokenreviews"], &["create"]),
    rule(&["authorization.k8s.io"], &["subjectaccessreviews"], &["create"]),
];

/// Garbage collection and the end of a namespace reach every kind; making is for some.
const CONTROLLERS: &[Rule] = &[
    rule(&["*"], &["*"], &["get", "list", "watch", "update", "patch", "delete", "deletecollection"]),
    rule(
        &[""],
        &[
            "pods",
            "endpoints",
            "events",
            "serviceaccounts",
            "secrets",
            "configmaps",
            "namespaces",
            "serviceaccounts/token",
            "pods/eviction",
        ],
        &["create"],
    ),
    rule(
        &["apps", "batch", "discovery.k8s.io", "events.k8s.io", "coordination.k8s.io"],
        &["replicasets", "controllerrevisions", "jobs", "endpointslices", "events", "leases"],
        &["create"],
    ),
    rule(&["authentication.k8s.io"], &["tokenreviews"], &["create"]),
    rule(&["authorization.k8s.io"], &["subjectaccessreviews"], &["create"]),
];

/// What every node may do, whatever runs on it.
pub const NODE: &[Rule] = &[
    rule(&[""], &["services", "nodes", "namespaces", "endpoints"], READ),
    rule(&["discovery.k8s.io"], &["endpointslices"], READ),
    rule(&["node.k8s.io"], &["runtimeclasses"], READ),
    rule(&["", "events.k8s.io"], &["events"], &["create", "update", "patch"]),
    rule(&["authentication.k8s.io"], &["tokenreviews"], &["create"]),
    rule(&["authorization.k8s.io"], &["subjectaccessreviews"], &["create"]),
];

/// The role of a component.
pub fn of(user: &str) -> Option<&'static [Rule]> {
    match user {
        "system:kube-scheduler" => Some(SCHEDULER),
        "system:kube-controller-manager" => Some(CONTROLLERS),
        _ => None,
    }
}

pub fn covered(rules: &[Rule], attributes: &Attributes<'_>) -> bool {
    let any = |list: &[&str], one: &str| list.iter().any(|entry| *entry == "*" || *entry == one);
    let resource = match attributes.subresource {
        "" => attributes.resource.to_owned(),
        subresource => format!("{}/{subresource}", attributes.resource),
    };
    rules.iter().any(|rule| {
        any(rule.groups, attributes.group) && any(rule.verbs, attributes.verb) && any(rule.resources, &resource)
    })
}

/// Verbs that write, for what belongs to a node alone.
pub const OWN: &[&str] = WRITE;

#[cfg(test)]
mod tests {
    use super::*;

    fn ask<'a>(verb: &'a str, group: &'a str, resource: &'a str, subresource: &'a str) -> Attributes<'a> {
        Attributes { verb, group, resource, subresource, ..Attributes::default() }
    }

    #[test]
    fn subresources_are_named() {
        assert!(covered(SCHEDULER, &ask("create", "", "pods", "binding")));
        assert!(!covered(SCHEDULER, &ask("create", "", "pods", "")));
        assert!(!covered(SCHEDULER, &ask("get", "", "secrets", "")));
        assert!(!covered(SCHEDULER, &ask("update", "", "pods", "")));
    }

    #[test]
    fn controllers_do_not_impersonate() {
        assert!(covered(CONTROLLERS, &ask("delete", "apps", "deployments", "")));
        assert!(!covered(CONTROLLERS, &ask("impersonate", "", "users", "")));
        assert!(!covered(CONTROLLERS, &ask("create", "", "pods", "exec")));
    }
}
