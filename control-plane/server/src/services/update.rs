//! What an update of a Service means for what was allocated before.

use serde_json::{Value, json};

use super::{needs_address, needs_health_port, needs_ports, spec, text};

/// Keeps what was allocated where a client's update leaves it out.
pub fn carry_over(service: &mut Value, old: &Value) {
    if needs_address(old) && needs_address(service) {
        if text(service, "/spec/clusterIP").is_empty()
            && let Some(address) = old.pointer("/spec/clusterIP").cloned()
            && let Some(spec) = spec(service)
        {
            spec.insert("clusterIP".to_owned(), address);
        }
        let same = service.pointer("/spec/clusterIP") == old.pointer("/spec/clusterIP");
        let none = service.pointer("/spec/clusterIPs").and_then(Value::as_array).is_none_or(Vec::is_empty);
        if same
            && none
            && let Some(addresses) = old.pointer("/spec/clusterIPs").cloned()
            && let Some(spec) = spec(service)
        {
            spec.insert("clusterIPs".to_owned(), addresses);
        }
    }
    if needs_ports(old) && needs_ports(service) {
        let before = old.pointer("/spec/ports").and_then(Value::as_array).cloned().unwrap_or_default();
        let ports = service.pointer_mut("/spec/ports").and_then(Value::as_array_mut);
        for port in ports.into_iter().flatten().filter_map(Value::as_object_mut) {
            if port.get("nodePort").and_then(Value::as_i64).unwrap_or_default() != 0 {
                continue;
            }
            let protocol = |of: Option<&Value>| of.and_then(Value::as_str).unwrap_or("TCP").to_owned();
            let same = before.iter().find(|other| {
                other.get("port") == port.get("port")
                    && protocol(other.get("protocol")) == protocol(port.get("protocol"))
            });
            if let Some(number) = same.and_then(|other| other.get("nodePort")).cloned() {
                port.insert("nodePort".to_owned(), number);
            }
        }
    }
    if needs_health_port(old)
        && needs_health_port(service)
        && service.pointer("/spec/healthCheckNodePort").is_none()
        && let Some(number) = old.pointer("/spec/healthCheckNodePort").cloned()
        && let Some(spec) = spec(service)
    {
        spec.insert("healthCheckNodePort".to_owned(), number);
    }
}

/// Makes `clusterIPs` follow `clusterIP` where only one of them was written.
pub fn normalize(service: &mut Value, old: Option<&Value>) {
    let one = text(service, "/spec/clusterIP").to_owned();
    let many = service.pointer("/spec/clusterIPs").cloned();
    let none = many.as_ref().and_then(Value::as_array).is_none_or(Vec::is_empty);
    let changed = old.is_some_and(|old| text(old, "/spec/clusterIP") != one);
    let many_same = old.is_some_and(|old| old.pointer("/spec/clusterIPs") == many.as_ref());
    let Some(spec) = spec(service) else { return };
    if one.is_empty() {
        if changed && many_same {
            spec.remove("clusterIPs");
        }
    } else if none || (changed && many_same) {
        spec.insert("clusterIPs".to_owned(), json!([one]));
    }
}
