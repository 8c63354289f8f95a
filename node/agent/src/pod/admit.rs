//! Whether the node has room for a pod. The scheduler saw to it already; this holds when two were
//! bound at once, or a pod names its node itself.

use k8s_openapi::api::core::v1 as core;

use super::shared::Shared;
use super::{evict, resources, spec};

/// What pods take of a node, in billionths where it is a quantity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Share {
    pub pods: usize,
    pub cpu: i128,
    pub memory: i128,
}

impl Share {
    pub fn of(pod: &core::Pod) -> Self {
        Self { pods: 1, cpu: resources::requested(pod, "cpu"), memory: resources::requested(pod, "memory") }
    }

    pub fn add(&mut self, other: &Self) {
        self.pods += other.pods;
        self.cpu += other.cpu;
        self.memory += other.memory;
    }

    pub fn subtract(&mut self, other: &Self) {
        self.pods = self.pods.saturating_sub(other.pods);
        self.cpu -= other.cpu;
        self.memory -= other.memory;
    }
}

/// Reason and message when a pod names an AppArmor profile and the node's kernel has no AppArmor.
pub fn app_armor(pod: &core::Pod, enabled: impl Fn() -> bool) -> Option<(String, String)> {
    let of_pod = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let of_pod = of_pod.and_then(|context| context.app_armor_profile.as_ref());
    let mut own = spec::all_containers(pod).filter_map(|(container, _)| {
        let context = container.security_context.as_ref()?;
        context.app_armor_profile.as_ref().map(|profile| profile.type_.clone())
    });
    let confines = |kind: &str| kind != "Unconfined";
    let asked = of_pod.is_some_and(|profile| confines(&profile.type_)) || own.any(|kind| confines(&kind));
    (asked && !enabled()).then(|| {
        let message = "Cannot enforce AppArmor: AppArmor is not enabled on the host";
        ("AppArmor".to_owned(), message.to_owned())
    })
}

/// Whether the kernel has AppArmor switched on.
pub fn has_app_armor() -> bool {
    std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|it| it.starts_with(b"Y"))
}

const MILLI: i128 = 1_000_000;
const UNIT: i128 = 1_000_000_000;

/// Reason and message when there is no room for a pod, or should be none.
pub fn check(pod: &core::Pod, wanted: &Share, used: &Share, shared: &Shared) -> Option<(String, String)> {
    if shared.disk.is_felt() && !evict::is_critical(pod) {
        return Some(("Evicted".to_owned(), "The node had condition: [DiskPressure]. ".to_owned()));
    }
    let capacity = |name: &str| shared.allocatable.get(name).and_then(resources::nanos).unwrap_or(i128::MAX / 2);
    let pods = |count: usize| i128::try_from(count).unwrap_or(i128::MAX / 2);
    [
        ("pods", 1, pods(wanted.pods), pods(used.pods), pods(shared.max_pods)),
        ("cpu", MILLI, wanted.cpu, used.cpu, capacity("cpu")),
        ("memory", UNIT, wanted.memory, used.memory, capacity("memory")),
    ]
    .into_iter()
    .find(|(_, _, wanted, used, capacity)| *wanted > 0 && used + wanted > *capacity)
    .map(|(name, unit, wanted, used, capacity)| {
        let message = format!(
            "Node didn't have enough resource: {name}, requested: {}, used: {}, capacity: {}",
            wanted / unit,
            used / unit,
            capacity / unit
        );
        (format!("OutOf{name}"), message)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn a_profile_wants_a_kernel_that_has_them() {
        let pod = |of_pod: &str, own: &str| -> core::Pod {
            serde_json::from_value(json!({ "spec": {
                "securityContext": { "appArmorProfile": { "type": of_pod } },
                "containers": [{ "name": "a", "securityContext": { "appArmorProfile": { "type": own } } }],
            }}))
            .unwrap()
        };
        for (of_pod, own, refused) in [
            ("Unconfined", "Unconfined", false),
            ("RuntimeDefault", "Unconfined", true),
            ("Unconfined", "Localhost", true),
        ] {
            let pod = pod(of_pod, own);
            assert_eq!(app_armor(&pod, || false).is_some(), refused, "{of_pod} {own}");
            assert_eq!(app_armor(&pod, || true), None);
        }
    }
}
