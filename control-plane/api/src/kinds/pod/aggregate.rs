//! What a pod's containers need together, and the class of service that follows.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::quantity::Quantity;

type Totals = BTreeMap<String, Quantity>;

fn list<'a>(container: &'a Value, which: &str) -> impl Iterator<Item = (&'a String, Quantity)> {
    let map = container.get("resources").and_then(|resources| resources.get(which)).and_then(Value::as_object);
    map.into_iter().flatten().filter_map(|(name, value)| Some((name, Quantity::parse(value.as_str()?).ok()?)))
}

fn each<'a>(spec: &'a Map<String, Value>, key: &str) -> impl Iterator<Item = &'a Value> {
    spec.get(key).and_then(Value::as_array).into_iter().flatten()
}

fn restarts_always(container: &Value) -> bool {
    container.get("restartPolicy").and_then(Value::as_str) == Some("Always")
}

fn add(totals: &mut Totals, name: &str, quantity: &Quantity) {
    let sum = totals.get(name).map_or_else(|| quantity.clone(), |total| total.add(quantity));
    totals.insert(name.to_owned(), sum);
}

fn raise(totals: &mut Totals, name: &str, quantity: &Quantity) {
    if totals.get(name).is_none_or(|total| total < quantity) {
        totals.insert(name.to_owned(), quantity.clone());
    }
}

/// `requests` or `limits` of all containers: those that run side by side add up, init containers run
/// one after another beside the sidecars started before them.
pub fn containers(spec: &Map<String, Value>, which: &str) -> Totals {
    let mut totals = Totals::new();
    for container in each(spec, "containers") {
        for (name, quantity) in list(container, which) {
            add(&mut totals, name, &quantity);
        }
    }
    let (mut sidecars, mut init) = (Totals::new(), Totals::new());
    for container in each(spec, "initContainers") {
        let mut here = Totals::new();
        if restarts_always(container) {
            for (name, quantity) in list(container, which) {
                add(&mut totals, name, &quantity);
                add(&mut sidecars, name, &quantity);
            }
            here.clone_from(&sidecars);
        } else {
            here.clone_from(&sidecars);
            for (name, quantity) in list(container, which) {
                add(&mut here, name, &quantity);
            }
        }
        for (name, quantity) in &here {
            raise(&mut init, name, quantity);
        }
    }
    for (name, quantity) in &init {
        raise(&mut totals, name, quantity);
    }
    totals
}

/// Whether every container that keeps running has a limit of a resource.
pub fn all_containers_limit(spec: &Map<String, Value>, resource: &str) -> bool {
    let limited = |container: &Value| list(container, "limits").any(|(name, _)| name == resource);
    each(spec, "containers").all(limited) && each(spec, "initContainers").all(limited)
}

/// Guaranteed, Burstable or BestEffort.
pub fn qos_class(pod: &Value) -> &'static str {
    let Some(spec) = pod.get("spec").and_then(Value::as_object) else {
        return "BestEffort";
    };
    let (mut requests, mut limits) = (Totals::new(), Totals::new());
    let mut guaranteed = true;
    let pod_level = spec.get("resources").filter(|resources| {
        ["requests", "limits"]
            .iter()
            .any(|key| resources.get(key).and_then(Value::as_object).is_some_and(|m| !m.is_empty()))
    });
    let whole = pod_level.map(|resources| serde_json::json!({"resources": resources}));
    let parts: Vec<&Value> = match &whole {
        Some(whole) => vec![whole],
        None => each(spec, "containers").chain(each(spec, "initContainers")).collect(),
    };
    for container in parts {
        for (name, quantity) in list(container, "requests") {
            if matches!(name.as_str(), "cpu" | "memory") && quantity.sign() > 0 {
                add(&mut requests, name, &quantity);
            }
        }
        let mut limited = 0;
        for (name, quantity) in list(container, "limits") {
            if matches!(name.as_str(), "cpu" | "memory") && quantity.sign() > 0 {
                limited += 1;
                add(&mut limits, name, &quantity);
            }
        }
        guaranteed &= limited == 2;
    }
    if requests.is_empty() && limits.is_empty() {
        return "BestEffort";
    }
    let equal =
        requests.len() == limits.len() && requests.iter().all(|(name, quantity)| limits.get(name) == Some(quantity));
    if guaranteed && equal { "Guaranteed" } else { "Burstable" }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::qos_class;

    #[test]
    fn classes() {
        let pod = |resources| json!({"spec": {"containers": [{"name": "c", "resources": resources}]}});
        assert_eq!(qos_class(&pod(json!({}))), "BestEffort");
        assert_eq!(qos_class(&pod(json!({"requests": {"cpu": "0"}}))), "BestEffort");
        assert_eq!(qos_class(&pod(json!({"requests": {"cpu": "1"}}))), "Burstable");
        let both = json!({"cpu": "1", "memory": "1Gi"});
        assert_eq!(qos_class(&pod(json!({"requests": both, "limits": both}))), "Guaranteed");
        let other = json!({"cpu": "1000m", "memory": "1024Mi"});
        assert_eq!(qos_class(&pod(json!({"requests": both, "limits": other}))), "Guaranteed");
    }
}
