//! Quantities of a pod: what it asks for, what it may use, its quality of service.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::container::Role;
use super::spec;

/// A quantity in billionths, so that every suffix is a whole number.
pub fn nanos(quantity: &Quantity) -> Option<i128> {
    let text = quantity.0.trim();
    let end = text.find(|c: char| !matches!(c, '0'..='9' | '.' | '+' | '-')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let factor: i128 = match suffix {
        "n" => 1,
        "u" => 1_000,
        "m" => 1_000_000,
        "" => NANO,
        "k" => 1_000 * NANO,
        "M" => 1_000_000 * NANO,
        "G" => 1_000_000_000 * NANO,
        "T" => 1_000_000_000_000 * NANO,
        "P" => 1_000_000_000_000_000 * NANO,
        "E" => 1_000_000_000_000_000_000 * NANO,
        "Ki" => (1 << 10) * NANO,
        "Mi" => (1 << 20) * NANO,
        "Gi" => (1 << 30) * NANO,
        "Ti" => (1 << 40) * NANO,
        "Pi" => (1 << 50) * NANO,
        "Ei" => (1 << 60) * NANO,
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let shift = exponent.checked_add(9)?;
            if !(0..=27).contains(&shift) {
                return None;
            }
            10_i128.pow(shift.unsigned_abs())
        }
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let negative = whole.starts_with('-');
    let whole: i128 = match whole.trim_start_matches(['+', '-']) {
        "" => 0,
        digits => digits.parse().ok()?,
    };
    let mut value = whole.checked_mul(factor)?;
    let mut unit = factor;
    for digit in fraction.chars() {
        unit /= 10;
        value = value.checked_add(i128::from(digit.to_digit(10)?).checked_mul(unit)?)?;
    }
    Some(if negative { -value } else { value })
}

const NANO: i128 = 1_000_000_000;

fn ceil(nanos: i128, unit: i128) -> u64 {
    let units = nanos.div_euclid(unit) + i128::from(nanos.rem_euclid(unit) != 0);
    u64::try_from(units.max(0)).unwrap_or(u64::MAX)
}

/// Whole units, rounded up.
pub fn value(quantity: &Quantity) -> u64 {
    nanos(quantity).map_or(0, |nanos| ceil(nanos, NANO))
}

/// Thousandths, rounded up.
pub fn milli(quantity: &Quantity) -> u64 {
    nanos(quantity).map_or(0, |nanos| ceil(nanos, NANO / 1000))
}

type List = BTreeMap<String, Quantity>;

fn entry(list: Option<&List>, name: &str) -> Option<i128> {
    list?.get(name).and_then(nanos)
}

pub fn limits(container: &core::Container) -> Option<&List> {
    container.resources.as_ref()?.limits.as_ref()
}

pub fn requests(container: &core::Container) -> Option<&List> {
    container.resources.as_ref()?.requests.as_ref()
}

/// Bytes and thousandths of a core; 0 is no limit.
pub fn enforced(container: &core::Container) -> (u64, u32) {
    let of = |name: &str| limits(container).and_then(|list| list.get(name));
    (of("memory").map_or(0, value), of("cpu").map_or(0, |cpu| u32::try_from(milli(cpu)).unwrap_or(u32::MAX)))
}

/// What a pod asks of a node in `name`, in billionths: its containers together, or the largest
/// moment of its init containers, whichever is more.
pub fn requested(pod: &core::Pod, name: &str) -> i128 {
    let overhead = pod.spec.as_ref().and_then(|spec| entry(spec.overhead.as_ref(), name)).unwrap_or(0);
    together(pod, |container| entry(requests(container), name).unwrap_or(0)) + overhead
}

/// What a pod may use of `name`, in billionths, by the limits of those of its containers that have one.
pub fn limited(pod: &core::Pod, name: &str) -> i128 {
    let all = together(pod, |container| entry(limits(container), name).unwrap_or(0));
    let overhead = pod.spec.as_ref().and_then(|spec| entry(spec.overhead.as_ref(), name)).unwrap_or(0);
    if all > 0 { all + overhead } else { 0 }
}

fn together(pod: &core::Pod, of: impl Fn(&core::Container) -> i128) -> i128 {
    let mut mains = 0;
    let mut sidecars = 0;
    let mut peak = 0;
    for (container, role) in spec::containers(pod) {
        let share = of(container);
        match role {
            Role::Main => mains += share,
            Role::Sidecar => {
                sidecars += share;
                peak = peak.max(sidecars);
            }
            Role::Init => peak = peak.max(sidecars + share),
            Role::Ephemeral => {}
        }
    }
    (mains + sidecars).max(peak)
}

/// Bytes in the canonical form of a quantity that was written with `like`'s kind of suffix.
pub fn bytes_like(bytes: u64, like: &Quantity) -> String {
    let decimal = || shortened(bytes, 1000, &["", "k", "M", "G", "T", "P", "E"]);
    if bytes >= 1024 && like.0.trim_end().ends_with('i') {
        shortened(bytes, 1024, &["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"])
    } else {
        decimal()
    }
}

fn shortened(mut number: u64, base: u64, suffixes: &[&str]) -> String {
    let mut suffixes = suffixes.iter().peekable();
    let mut suffix = suffixes.next().copied().unwrap_or_default();
    while number > 0
        && number.is_multiple_of(base)
        && let Some(next) = suffixes.next()
    {
        number /= base;
        suffix = next;
    }
    format!("{number}{suffix}")
}

/// Guaranteed, Burstable or BestEffort.
pub fn qos_class(pod: &core::Pod) -> &'static str {
    let mut any = false;
    let mut guaranteed = true;
    for (container, _) in spec::containers(pod) {
        for name in ["cpu", "memory"] {
            let limit = entry(limits(container), name).filter(|it| *it > 0);
            let request = entry(requests(container), name).filter(|it| *it > 0);
            any |= limit.is_some() || request.is_some();
            // The API server has made a limit the request where there was none; a request of zero is none.
            guaranteed &= limit.is_some() && request == limit;
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// What a `resourceFieldRef` says, in its divisor's units.
pub fn field(
    container: &core::Container,
    resource: &str,
    divisor: Option<&Quantity>,
    allocatable: &List,
) -> Result<String, String> {
    let (list, name) = match resource.split_once('.') {
        Some(("limits", name)) => (limits(container), name),
        Some(("requests", name)) => (requests(container), name),
        _ => return Err(format!("unsupported container resource : {resource}")),
    };
    let known = matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
    if !known {
        return Err(format!("unsupported container resource : {resource}"));
    }
    let fallback = || if resource.starts_with("limits.") { entry(Some(allocatable), name) } else { None };
    let amount = entry(list, name).or_else(fallback).unwrap_or(0);
    let divisor = divisor.and_then(nanos).filter(|divisor| *divisor > 0).unwrap_or(NANO);
    Ok(ceil(amount, divisor).to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn quantity(text: &str) -> Quantity {
        Quantity(text.to_owned())
    }

    #[test]
    fn suffixes() {
        for (text, expected) in [
            ("1", 1),
            ("1500m", 2),
            ("64Mi", 64 << 20),
            ("1.5Gi", 3 << 29),
            ("1e3", 1000),
            ("0.1", 1),
            ("2E", 2_000_000_000_000_000_000),
        ] {
            assert_eq!(value(&quantity(text)), expected, "{text}");
        }
        assert_eq!(milli(&quantity("100m")), 100);
        assert_eq!(milli(&quantity("0.25")), 250);
        assert_eq!(nanos(&quantity("abc")), None);
        assert_eq!(nanos(&quantity("1Zi")), None);
    }

    fn pod(yaml: serde_json::Value) -> core::Pod {
        serde_json::from_value(serde_json::json!({ "spec": yaml })).unwrap()
    }

    #[test]
    fn quality_of_service() {
        let with = |resources: serde_json::Value| {
            pod(serde_json::json!({ "containers": [{ "name": "a", "resources": resources }] }))
        };
        assert_eq!(qos_class(&with(serde_json::json!({}))), "BestEffort");
        assert_eq!(qos_class(&with(serde_json::json!({ "requests": { "cpu": "1" } }))), "Burstable");
        let full = serde_json::json!({ "limits": { "cpu": "1", "memory": "1Gi" }, "requests": { "cpu": "1000m", "memory": "1Gi" } });
        assert_eq!(qos_class(&with(full)), "Guaranteed");
        let none_asked = serde_json::json!({
            "limits": { "cpu": "1", "memory": "1Gi" }, "requests": { "cpu": "0", "memory": "0" }
        });
        assert_eq!(qos_class(&with(none_asked)), "Burstable");
    }

    #[test]
    fn init_containers_count_by_their_peak() {
        let asks =
            |name: &str, cpu: &str| serde_json::json!({ "name": name, "resources": { "requests": { "cpu": cpu } } });
        let mut sidecar = asks("s", "1");
        sidecar["restartPolicy"] = "Always".into();
        let pod =
            pod(serde_json::json!({ "initContainers": [sidecar, asks("i", "4")], "containers": [asks("a", "2")] }));
        assert_eq!(requested(&pod, "cpu"), 5 * NANO);
    }

    #[test]
    fn quantities_are_told_in_their_shortest_form() {
        for (bytes, like, expected) in [
            (2 << 20, "1Mi", "2Mi"),
            (1536 << 10, "1Mi", "1536Ki"),
            (1000, "1Ki", "1k"),
            (1 << 20, "1M", "1048576"),
            (3_000_000, "1M", "3M"),
            (0, "0", "0"),
        ] {
            assert_eq!(bytes_like(bytes, &quantity(like)), expected);
        }
    }

    #[test]
    fn resource_fields() {
        let container: core::Container = serde_json::from_value(serde_json::json!({
            "name": "a", "resources": { "limits": { "cpu": "250m", "memory": "64Mi" } }
        }))
        .unwrap();
        let none = List::new();
        assert_eq!(field(&container, "limits.cpu", None, &none).unwrap(), "1");
        assert_eq!(field(&container, "limits.cpu", Some(&quantity("1m")), &none).unwrap(), "250");
        assert_eq!(field(&container, "limits.memory", Some(&quantity("1Mi")), &none).unwrap(), "64");
        assert!(field(&container, "limits.sheep", None, &none).is_err());
    }
}
