//! A pod's RuntimeClass must exist; what it says of overhead and scheduling becomes the pod's.

use sampan_api::Error;
use serde_json::Value;

use super::Attributes;
use crate::app::App;

pub fn create(app: &App, attributes: &Attributes<'_>, pod: &mut Value) -> Result<(), Error> {
    let Some(spec) = super::spec(pod) else {
        return Ok(());
    };
    let Some(name) = spec.get("runtimeClassName").and_then(Value::as_str).map(str::to_owned) else {
        return Ok(());
    };
    let Some(class) = app.find("node.k8s.io", "runtimeclasses", "", &name) else {
        return Err(attributes.forbidden(&format!("pod rejected: RuntimeClass {name:?} not found")));
    };
    let class = class.value();
    if let Some(overhead) = class.pointer("/overhead/podFixed") {
        match spec.get("overhead") {
            Some(given) if given != overhead => {
                return Err(
                    attributes.forbidden("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead")
                );
            }
            _ => spec.insert("overhead".to_owned(), overhead.clone()),
        };
    } else if spec.get("overhead").is_some_and(|overhead| overhead.as_object().is_some_and(|map| !map.is_empty())) {
        return Err(
            attributes.forbidden("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead")
        );
    }
    for (key, value) in class.pointer("/scheduling/nodeSelector").and_then(Value::as_object).into_iter().flatten() {
        let selector = spec.entry("nodeSelector").or_insert_with(|| Value::Object(serde_json::Map::new()));
        let Some(selector) = selector.as_object_mut() else {
            continue;
        };
        if selector.get(key).is_some_and(|given| given != value) {
            return Err(attributes.forbidden(
                "pod rejected: conflict: runtimeClass.scheduling.nodeSelector and pod.spec.nodeSelector differ",
            ));
        }
        selector.insert(key.clone(), value.clone());
    }
    for toleration in class.pointer("/scheduling/tolerations").and_then(Value::as_array).into_iter().flatten() {
        if let Some(tolerations) = super::list(spec, "tolerations")
            && !tolerations.contains(toleration)
        {
            tolerations.push(toleration.clone());
        }
    }
    Ok(())
}
