//! Validation of what decides where a pod runs.

use super::containers::one_of;
use crate::error::FieldErrors;
use crate::validation::common::label_selector;
use crate::validation::field::{Field, Path};
use crate::validation::metadata::label_name;
use crate::validation::names;

pub fn tolerations(list: &Field<'_>, errors: &mut FieldErrors) {
    for one in list.items() {
        let (key, operator) = (one.child("key"), one.child("operator"));
        let (value, effect) = (one.child("value"), one.child("effect"));
        if !key.is_empty() {
            label_name(key.path(), key.str(), errors);
        } else if operator.str() != "Exists" {
            let detail = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.invalid_str(operator.path(), operator.str(), detail);
        }
        if one.child("tolerationSeconds").is_set() && effect.str() != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.invalid_str(effect.path(), effect.str(), detail);
        }
        match operator.str() {
            "" | "Equal" => {
                let wrong = names::is_label_value(value.str());
                if !wrong.is_empty() {
                    errors.invalid_str(operator.path(), value.str(), wrong.join(";"));
                }
            }
            "Exists" => {
                if !value.is_empty() {
                    let detail = "value must be empty when `operator` is 'Exists'";
                    errors.invalid_str(operator.path(), value.str(), detail);
                }
            }
            other => errors.not_supported(operator.path(), other, &["Equal", "Exists"]),
        }
        if !effect.is_empty() {
            taint_effect(&effect, errors);
        }
    }
}

pub fn taint_effect(effect: &Field<'_>, errors: &mut FieldErrors) {
    one_of(effect, &["NoSchedule", "PreferNoSchedule", "NoExecute"], errors);
}

pub fn affinity(field: &Field<'_>, errors: &mut FieldErrors) {
    let node = field.child("nodeAffinity");
    let required = node.child("requiredDuringSchedulingIgnoredDuringExecution");
    if required.is_set() {
        node_selector(&required, errors);
    }
    for term in node.child("preferredDuringSchedulingIgnoredDuringExecution").items() {
        weight(&term, errors);
        node_term(&term.child("preference"), true, errors);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let field = field.child(kind);
        for term in field.child("requiredDuringSchedulingIgnoredDuringExecution").items() {
            pod_term(&term, errors);
        }
        for term in field.child("preferredDuringSchedulingIgnoredDuringExecution").items() {
            weight(&term, errors);
            pod_term(&term.child("podAffinityTerm"), errors);
        }
    }
}

fn weight(term: &Field<'_>, errors: &mut FieldErrors) {
    let weight = term.child("weight");
    if !(1..=100).contains(&weight.int()) {
        errors.invalid_int(weight.path(), weight.int(), "must be in the range 1-100");
    }
}

fn node_selector(field: &Field<'_>, errors: &mut FieldErrors) {
    let terms = field.child("nodeSelectorTerms");
    if terms.is_empty() {
        errors.required(terms.path(), "must have at least one node selector term");
    }
    terms.items().for_each(|term| node_term(&term, false, errors));
}

/// Values of preferred terms are not looked at: they can only fail to match.
fn node_term(term: &Field<'_>, any_value: bool, errors: &mut FieldErrors) {
    for requirement in term.child("matchExpressions").items() {
        let (operator, values) = (requirement.child("operator"), requirement.child("values"));
        match operator.str() {
            "In" | "NotIn" => {
                if values.is_empty() {
                    errors.required(values.path(), "must be specified when `operator` is 'In' or 'NotIn'");
                }
            }
            "Exists" | "DoesNotExist" => {
                if !values.is_empty() {
                    let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                    errors.forbidden(values.path(), detail);
                }
            }
            "Gt" | "Lt" => {
                if values.len() != 1 {
                    let detail = "must be specified single value when `operator` is 'Lt' or 'Gt'";
                    errors.required(values.path(), detail);
                }
            }
            other => errors.invalid_str(operator.path(), other, "not a valid selector operator"),
        }
        let key = requirement.child("key");
        label_name(key.path(), key.str(), errors);
        if !any_value {
            for value in values.items() {
                errors.invalid_all(value.path(), value.str(), names::is_label_value(value.str()));
            }
        }
    }
    for requirement in term.child("matchFields").items() {
        let (operator, values) = (requirement.child("operator"), requirement.child("values"));
        match operator.str() {
            "In" | "NotIn" => {
                if values.len() != 1 {
                    let detail = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
                    errors.required(values.path(), detail);
                }
            }
            other => errors.invalid_str(operator.path(), other, "not a valid selector operator"),
        }
        let key = requirement.child("key");
        if key.str() == "metadata.name" {
            for value in values.items() {
                errors.invalid_all(value.path(), value.str(), names::is_dns_subdomain(value.str()));
            }
        } else {
            errors.invalid_str(key.path(), key.str(), "not a valid field selector key");
        }
    }
}

fn pod_term(term: &Field<'_>, errors: &mut FieldErrors) {
    let selector = term.child("labelSelector");
    label_selector(&selector, errors);
    label_selector(&term.child("namespaceSelector"), errors);
    for namespace in term.child("namespaces").strings() {
        let path = term.path().child("namespace");
        errors.invalid_all(&path, namespace, names::is_dns_label(namespace));
    }
    let (keys, others) = (term.child("matchLabelKeys"), term.child("mismatchLabelKeys"));
    for list in [&keys, &others] {
        if list.is_empty() {
        } else if selector.is_set() {
            list.items().for_each(|key| label_name(key.path(), key.str(), errors));
        } else {
            errors.forbidden(list.path(), "must not be specified when labelSelector is not set");
        }
    }
    // The server itself has merged one requirement a key into the selector: a second one is the user's.
    let mut seen: Vec<&str> = selector.child("matchLabels").entries().map(|(key, _)| key).collect();
    for requirement in selector.child("matchExpressions").items() {
        let key = requirement.child("key").str();
        if let Some(index) = keys.strings().position(|wanted| wanted == key)
            && seen.contains(&key)
        {
            errors.invalid_str(&term.path().index(index), key, "exists in both matchLabelKeys and labelSelector");
        }
        seen.push(key);
    }
    for key in keys.items() {
        if others.strings().any(|other| other == key.str()) {
            errors.invalid(&key, "exists in both matchLabelKeys and mismatchLabelKeys");
        }
    }
    let topology = term.child("topologyKey");
    if topology.is_empty() {
        errors.required(topology.path(), "can not be empty");
    }
    label_name(topology.path(), topology.str(), errors);
}

/// `merged` where the server has put the pod's own labels of `matchLabelKeys` into the selectors.
pub fn topology_spread(list: &Field<'_>, merged: bool, errors: &mut FieldErrors) {
    let all: Vec<Field<'_>> = list.items().collect();
    for (i, one) in all.iter().enumerate() {
        let skew = one.child("maxSkew");
        if skew.int() <= 0 {
            errors.invalid_int(skew.path(), skew.int(), "must be greater than zero");
        }
        let key = one.child("topologyKey");
        if key.is_empty() {
            errors.required(key.path(), "can not be empty");
        }
        let action = one.child("whenUnsatisfiable");
        let actions = ["DoNotSchedule", "ScheduleAnyway"];
        if !actions.contains(&action.str()) {
            errors.not_supported(action.path(), action.str(), &actions);
        }
        let same = |other: &&Field<'_>| {
            other.child("topologyKey").str() == key.str() && other.child("whenUnsatisfiable").str() == action.str()
        };
        if all.iter().skip(i + 1).any(|other| same(&other)) {
            let path = one.path().child("{topologyKey, whenUnsatisfiable}");
            errors.duplicate(&path, &format!("{{{}, {}}}", key.str(), action.str()));
        }
        let domains = one.child("minDomains");
        if let Some(count) = domains.opt_int() {
            if count <= 0 {
                errors.invalid(&domains, "must be greater than zero");
            }
            if action.str() != "DoNotSchedule" {
                let detail =
                    format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {}", action.str());
                errors.invalid(&domains, detail);
            }
        }
        for name in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            let policy = one.child(name);
            if policy.is_set() && !matches!(policy.str(), "Honor" | "Ignore") {
                errors.not_supported(policy.path(), policy.str(), &["Honor", "Ignore"]);
            }
        }
        match_label_keys(one, merged, errors);
        label_selector(&one.child("labelSelector"), errors);
    }
}

fn match_label_keys(one: &Field<'_>, merged: bool, errors: &mut FieldErrors) {
    let (keys, selector) = (one.child("matchLabelKeys"), one.child("labelSelector"));
    if keys.is_empty() {
        return;
    }
    if !selector.is_set() {
        errors.forbidden(keys.path(), "must not be specified when labelSelector is not set");
    }
    let in_labels = |key: &str| selector.child("matchLabels").entries().any(|(label, _)| label == key);
    let expressions = selector.child("matchExpressions");
    for key in keys.items() {
        label_name(key.path(), key.str(), errors);
        let count = expressions.items().filter(|one| one.child("key").str() == key.str()).count();
        let own = usize::from(merged);
        if in_labels(key.str()) || count > own {
            errors.invalid(&key, "exists in both matchLabelKeys and labelSelector");
        }
    }
}

/// Gates by name, each once.
pub fn gates(list: &Field<'_>, errors: &mut FieldErrors) {
    let mut seen: Vec<&str> = Vec::new();
    for gate in list.items() {
        let name = gate.child("name").str();
        errors.invalid_all(gate.path(), name, names::is_qualified_name(name));
        if seen.contains(&name) {
            errors.duplicate(gate.path(), name);
        }
        seen.push(name);
    }
}

/// Taints of a node, told at `path`.
pub fn taints(list: &Field<'_>, path: &Path, errors: &mut FieldErrors) {
    let mut seen: Vec<(&str, &str)> = Vec::new();
    let list = list.with_path(path.clone());
    for taint in list.items() {
        let (key, value, effect) = (taint.child("key"), taint.child("value"), taint.child("effect"));
        label_name(key.path(), key.str(), errors);
        let wrong = names::is_label_value(value.str());
        if !wrong.is_empty() {
            errors.invalid_str(value.path(), value.str(), wrong.join(";"));
        }
        taint_effect(&effect, errors);
        if seen.contains(&(key.str(), effect.str())) {
            let shown = format!(
                "{{\"Key\":{},\"Value\":{},\"Effect\":{},\"TimeAdded\":{}}}: taints must be unique by key and effect pair",
                serde_json::Value::from(key.str()),
                serde_json::Value::from(value.str()),
                serde_json::Value::from(effect.str()),
                taint.child("timeAdded").value().cloned().unwrap_or_default(),
            );
            errors.duplicate_shown(taint.path(), &shown);
        } else {
            seen.push((key.str(), effect.str()));
        }
    }
}
