//! A pod's priority comes from its class. Until classes are objects only the system's own exist.

use sampan_api::Error;
use serde_json::Value;

use super::Attributes;

const SYSTEM: &[(&str, i64)] = &[("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];

pub fn create(attributes: &Attributes<'_>, pod: &mut Value) -> Result<(), Error> {
    let Some(spec) = super::spec(pod) else {
        return Ok(());
    };
    let class = spec.get("priorityClassName").and_then(Value::as_str).unwrap_or_default();
    let priority = if class.is_empty() {
        0
    } else {
        let known = SYSTEM.iter().find(|(name, _)| *name == class);
        known
            .map(|(_, value)| *value)
            .ok_or_else(|| attributes.forbidden(&format!("no PriorityClass with name {class} was found")))?
    };
    if let Some(given) = spec.get("priority").and_then(Value::as_i64)
        && given != priority
    {
        return Err(attributes.forbidden(&format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller \
             computed {priority} from the given PriorityClass name"
        )));
    }
    const POLICY: &str = "PreemptLowerPriority";
    if let Some(given) = spec.get("preemptionPolicy").and_then(Value::as_str)
        && given != POLICY
    {
        return Err(attributes.forbidden(&format!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission \
             controller computed {POLICY} from the given PriorityClass name"
        )));
    }
    spec.insert("priority".to_owned(), priority.into());
    spec.insert("preemptionPolicy".to_owned(), POLICY.into());
    Ok(())
}

/// What the class gave stays when a client leaves it out.
pub fn update(pod: &mut Value, old: &Value) {
    let Some(spec) = super::spec(pod) else { return };
    for key in ["priority", "preemptionPolicy"] {
        if !spec.contains_key(key)
            && let Some(value) = old.get("spec").and_then(|spec| spec.get(key))
        {
            spec.insert(key.to_owned(), value.clone());
        }
    }
}
