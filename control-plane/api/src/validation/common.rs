//! What several kinds share: selectors, resources, numbers or percentages.

use serde_json::Value;

use super::field::{Field, ordered};
use super::metadata::{self, NEGATIVE};
use super::names;
use crate::error::FieldErrors;
use crate::quantity::Quantity;

pub const IMMUTABLE: &str = "field is immutable";
pub const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

/// The field's value must be what it was.
pub fn immutable(new: &Field<'_>, old: &Field<'_>, errors: &mut FieldErrors) {
    if new.value() != old.value() {
        errors.invalid(new, IMMUTABLE);
    }
}

/// A selector as messages show it.
pub fn shown_selector(selector: &Field<'_>) -> String {
    ordered(selector.value(), &["matchLabels", "matchExpressions"])
}

pub fn label_selector(selector: &Field<'_>, errors: &mut FieldErrors) {
    metadata::labels(&selector.child("matchLabels"), errors);
    for requirement in selector.child("matchExpressions").items() {
        let (operator, values, key) =
            (requirement.child("operator"), requirement.child("values"), requirement.child("key"));
        match operator.str() {
            "In" | "NotIn" if values.is_empty() => {
                errors.required(values.path(), "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.forbidden(values.path(), detail);
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.invalid_str(operator.path(), other, "not a valid selector operator"),
        }
        metadata::label_name(key.path(), key.str(), errors);
        for value in values.items() {
            errors.invalid_all(value.path(), value.str(), names::is_label_value(value.str()));
        }
    }
}

/// Whether a selector selects nothing in particular.
pub fn selects_everything(selector: &Field<'_>) -> bool {
    selector.child("matchLabels").is_empty() && selector.child("matchExpressions").is_empty()
}

/// Whether labels are selected. No selector selects nothing, an empty one everything; `Err` tells what
/// is wrong with the selector.
pub fn selects(selector: &Field<'_>, labels: &Field<'_>) -> Result<bool, String> {
    if !selector.is_set() {
        return Ok(false);
    }
    let label = |key: &str| labels.value().and_then(|labels| labels.get(key)).and_then(Value::as_str);
    let mut matches = selector.child("matchLabels").entries().all(|(key, value)| label(key) == Some(value.str()));
    for requirement in selector.child("matchExpressions").items() {
        let key = requirement.child("key").str();
        let mut values = requirement.child("values").strings();
        matches &= match requirement.child("operator").str() {
            "In" => label(key).is_some_and(|value| values.any(|wanted| wanted == value)),
            "NotIn" => label(key).is_none_or(|value| !values.any(|unwanted| unwanted == value)),
            "Exists" => label(key).is_some(),
            "DoesNotExist" => label(key).is_none(),
            other => {
                return Err(format!("{} is not a valid label selector operator", super::field::quote(other)));
            }
        };
    }
    Ok(matches)
}

/// A quantity of a canonical object.
pub fn quantity(field: &Field<'_>) -> Quantity {
    match field.value() {
        Some(Value::String(text)) => Quantity::parse(text).unwrap_or_default(),
        Some(Value::Number(number)) => Quantity::parse(&number.to_string()).unwrap_or_default(),
        _ => Quantity::default(),
    }
}

/// A number that is not negative or a percentage.
pub fn number_or_percent(field: &Field<'_>, errors: &mut FieldErrors) {
    match field.value() {
        Some(Value::String(text)) => {
            let digits = text.strip_suffix('%').unwrap_or_default();
            if digits.is_empty() || !digits.bytes().all(|c| c.is_ascii_digit()) {
                let message = "a valid percent string must be a numeric string followed by an ending '%'";
                errors.invalid(field, names::regex_error(message, "[0-9]+%", &["1%", "93%"]));
            }
        }
        Some(Value::Number(number)) if number.as_i64().is_some_and(|number| number < 0) => {
            errors.invalid(field, NEGATIVE);
        }
        _ => {}
    }
}

/// The percentage a text holds.
pub fn percent(field: &Field<'_>) -> Option<i64> {
    field.opt_str()?.strip_suffix('%')?.parse().ok()
}

/// A percentage above 100 makes no sense.
pub fn at_most_100_percent(field: &Field<'_>, errors: &mut FieldErrors) {
    if percent(field).is_some_and(|percent| percent > 100) {
        errors.invalid(field, "must not be greater than 100%");
    }
}

const STANDARD: &[&str] = &[
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "persistentvolumeclaims",
    "configmaps",
    "storage",
    "requests.storage",
    "services.nodeports",
    "services.loadbalancers",
];

/// Resources that are counted in whole units.
fn is_integer(name: &str) -> bool {
    matches!(
        name,
        "pods"
            | "services"
            | "replicationcontrollers"
            | "resourcequotas"
            | "secrets"
            | "configmaps"
            | "persistentvolumeclaims"
            | "services.nodeports"
            | "services.loadbalancers"
    ) || is_extended(name)
}

fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

fn is_extended(name: &str) -> bool {
    !is_native(name)
        && !name.starts_with("requests.")
        && names::is_qualified_name(&format!("requests.{name}")).is_empty()
}

pub fn is_huge_pages(name: &str) -> bool {
    name.starts_with("hugepages-")
}

/// Whether more than there is may be promised.
pub fn overcommit_allowed(name: &str) -> bool {
    is_native(name) && !is_huge_pages(name)
}

/// Where a resource list stands; the names allowed differ.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    Container,
    Pod,
}

fn resource_name(field: &Field<'_>, name: &str, holder: Holder, errors: &mut FieldErrors) {
    let wrong = names::is_qualified_name(name);
    if !wrong.is_empty() {
        errors.invalid_all(field.path(), name, wrong);
        return;
    }
    let mut fine = true;
    if !name.contains('/') && !STANDARD.contains(&name) && !is_huge_pages(name) {
        errors.invalid_str(field.path(), name, "must be a standard resource type or fully qualified");
        fine = false;
    }
    match holder {
        Holder::Pod => {
            if fine && !matches!(name, "cpu" | "memory") && !is_huge_pages(name) {
                errors.not_supported(field.path(), name, &["cpu", "hugepages-", "memory"]);
            }
        }
        Holder::Container if !name.contains('/') => {
            if !matches!(name, "cpu" | "memory" | "ephemeral-storage") && !is_huge_pages(name) {
                errors.invalid_str(field.path(), name, "must be a standard resource for containers");
            }
        }
        Holder::Container => {
            if !is_native(name) && !is_extended(name) {
                errors.invalid_str(field.path(), name, "doesn't follow extended resource name standard");
            }
        }
    }
}

/// A quantity of a resource: not negative, and whole where the resource is counted.
pub fn resource_quantity(field: &Field<'_>, name: &str, errors: &mut FieldErrors) {
    let value = quantity(field);
    if value.sign() < 0 {
        errors.invalid_str(field.path(), &value.to_string(), NEGATIVE);
    }
    if is_integer(name) && !value.is_whole() {
        errors.invalid_str(field.path(), &value.to_string(), "must be an integer");
    }
}

fn huge_pages(field: &Field<'_>, name: &str, errors: &mut FieldErrors) {
    let value = quantity(field);
    let size = name.strip_prefix("hugepages-").and_then(|size| Quantity::parse(size).ok());
    let divisible = size.as_ref().is_some_and(|size| {
        let size = size.value();
        size > 0 && value.sign() >= 0 && value.is_whole() && value.value() % size == 0
    });
    if !divisible {
        errors.invalid_str(
            field.path(),
            &value.to_string(),
            format!("{value} is not positive integer multiple of {name}"),
        );
    }
}

/// Requests and limits; `claims` are the names of the pod's resource claims.
pub fn resources(field: &Field<'_>, holder: Holder, claims: &[&str], errors: &mut FieldErrors) {
    let (limits, requests) = (field.child("limits"), field.child("requests"));
    let (mut has_compute, mut has_huge) = (false, false);
    for (name, value) in limits.entries() {
        resource_name(&value, name, holder, errors);
        resource_quantity(&value, name, errors);
        if is_huge_pages(name) {
            has_huge = true;
            huge_pages(&value, name, errors);
        }
        has_compute |= matches!(name, "cpu" | "memory");
    }
    for (name, value) in requests.entries() {
        resource_name(&value, name, holder, errors);
        resource_quantity(&value, name, errors);
        let limit = limits.entries().find(|(limited, _)| *limited == name).map(|(_, limit)| quantity(&limit));
        let requested = quantity(&value);
        if let Some(limit) = limit {
            if requested != limit && !overcommit_allowed(name) {
                let detail = format!("must be equal to {name} limit of {limit}");
                errors.invalid_str(requests.path(), &requested.to_string(), detail);
            } else if requested > limit {
                let detail = format!("must be less than or equal to {name} limit of {limit}");
                errors.invalid_str(requests.path(), &requested.to_string(), detail);
            }
        } else if !overcommit_allowed(name) {
            errors.required(limits.path(), "Limit must be set for non overcommitable resources");
        }
        if is_huge_pages(name) {
            has_huge = true;
            huge_pages(&value, name, errors);
        }
        has_compute |= matches!(name, "cpu" | "memory");
    }
    if has_huge && !has_compute {
        errors.forbidden(field.path(), "HugePages require cpu or memory");
    }
    claim_names(&field.child("claims"), claims, errors);
}

fn claim_names(field: &Field<'_>, known: &[&str], errors: &mut FieldErrors) {
    let mut seen: Vec<String> = Vec::new();
    for claim in field.items() {
        let (name, request) = (claim.child("name").str(), claim.child("request"));
        if name.is_empty() {
            errors.required(claim.path(), "");
            continue;
        }
        if seen.iter().any(|key| key == name) {
            errors.duplicate(claim.path(), name);
        } else {
            let mut key = name.to_owned();
            if !request.is_empty() {
                errors.invalid_all(request.path(), request.str(), names::is_dns_label(request.str()));
                key = format!("{name}/{}", request.str());
            }
            if seen.contains(&key) {
                errors.duplicate(claim.path(), &key);
            } else if request.is_empty() && seen.iter().any(|key| key.split('/').next() == Some(name)) {
                errors.duplicate(claim.path(), name);
            }
            seen.push(key);
        }
        if !known.contains(&name) {
            let mut sorted = known.to_vec();
            sorted.sort_unstable();
            let list =
                if sorted.is_empty() { " which is empty".to_owned() } else { format!(": {}", sorted.join(", ")) };
            let message = format!(
                "Not found: {}: must be one of the names in pod.spec.resourceClaims{list}",
                super::field::quote(name)
            );
            errors.push(crate::error::FieldReason::NotFound, claim.path().to_string(), message);
        }
    }
}
