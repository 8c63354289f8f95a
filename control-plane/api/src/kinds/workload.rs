//! What the kinds that make pods share: selector, template, counts.

use serde_json::Value;

use super::edit;
use super::pod::{spec, warnings as pod_warnings};
use crate::error::FieldErrors;
use crate::validation::common::{IMMUTABLE, label_selector, selects, selects_everything, shown_selector};
use crate::validation::field::{Field, ordered};
use crate::validation::names;

/// The selector is there, selects something and matches the template; then the template itself.
pub fn selector_and_template(spec: &Field<'_>, errors: &mut FieldErrors) {
    let (selector, template) = (spec.child("selector"), spec.child("template"));
    if selector.is_set() {
        label_selector(&selector, errors);
        if selects_everything(&selector) {
            let shown = shown_selector(&selector);
            errors.invalid_shown(selector.path(), &shown, "empty selector is invalid for deployment");
        }
    } else {
        errors.required(selector.path(), "");
    }
    let labels = template.below(&["metadata", "labels"]);
    match selects(&selector, &labels) {
        Err(_) => {
            errors.invalid_shown(selector.path(), &shown_selector(&selector), "invalid label selector");
            return;
        }
        Ok(false) => {
            let shown = ordered(labels.value(), &[]);
            errors.invalid_shown(labels.path(), &shown, "`selector` does not match template `labels`");
        }
        Ok(true) => {}
    }
    spec::template(&template, errors);
    let policy = template.below(&["spec", "restartPolicy"]);
    if policy.str() != "Always" {
        errors.not_supported(policy.path(), policy.str(), &["Always"]);
    }
    let deadline = template.below(&["spec", "activeDeadlineSeconds"]);
    if deadline.is_set() {
        errors.forbidden(deadline.path(), "activeDeadlineSeconds in ReplicaSet is not Supported");
    }
}

pub fn selector_immutable(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let selector = |object| Field::root(object).below(&["spec", "selector"]);
    let now = selector(new);
    if now.value() != selector(old).value() {
        errors.invalid_shown(now.path(), &shown_selector(&now), IMMUTABLE);
    }
}

/// No count exceeds that of all replicas, and no more are available than ready.
pub fn counts(status: &Field<'_>, names: &[&'static str], errors: &mut FieldErrors) {
    let all = status.child("replicas").int();
    for name in names {
        let count = status.child(name);
        if count.int() > all {
            errors.invalid(&count, "cannot be greater than status.replicas");
        }
    }
    let available = status.child("availableReplicas");
    if available.int() > status.child("readyReplicas").int() {
        errors.invalid(&available, "cannot be greater than readyReplicas");
    }
}

/// Of a new workload and of one whose specification changed.
pub fn warnings(new: &Value, old: Option<&Value>) -> Vec<String> {
    let root = Field::root(new);
    let template = root.below(&["spec", "template"]);
    let Some(old) = old else {
        let name = root.below(&["metadata", "name"]);
        let wrong = names::is_dns_label(name.str());
        let mut all = Vec::new();
        if !name.is_empty() && !wrong.is_empty() {
            all.push(format!(
                "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS \
                 label is recommended: [{}]",
                wrong.join(" ")
            ));
        }
        all.extend(pod_warnings::warnings(&template));
        return all;
    };
    if edit::generation(new) == edit::generation(old) { Vec::new() } else { pod_warnings::warnings(&template) }
}
