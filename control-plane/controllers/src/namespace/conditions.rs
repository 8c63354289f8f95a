//! What a namespace says while it is being deleted.

use k8s_openapi::api::core::v1::NamespaceCondition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::Cleared;

struct Said {
    kind: &'static str,
    good: (&'static str, &'static str),
    bad: Option<(&'static str, String)>,
}

/// Brings the conditions up to date; true if one changed.
pub fn update(conditions: &mut Vec<NamespaceCondition>, cleared: &Cleared, now: &Time) -> bool {
    let counts = |what: &std::collections::BTreeMap<String, usize>, words: &str| {
        let all: Vec<_> =
            what.iter().map(|(name, count)| format!("{name} {words} {count} resource instances")).collect();
        all.join(", ")
    };
    let failures: Vec<String> = cleared.errors.iter().map(|error| error.text()).collect();
    let said = [
        Said {
            kind: "NamespaceDeletionDiscoveryFailure",
            good: ("ResourcesDiscovered", "All resources successfully discovered"),
            bad: cleared
                .discovery
                .as_ref()
                .map(|error| ("DiscoveryFailed", format!("Discovery failed for some groups, 1 failing: {error}"))),
        },
        Said {
            kind: "NamespaceDeletionGroupVersionParsingFailure",
            good: ("ParsedGroupVersions", "All legacy kube types successfully parsed"),
            bad: None,
        },
        Said {
            kind: "NamespaceDeletionContentFailure",
            good: ("ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
            bad: (!failures.is_empty() && cleared.discovery.is_none()).then(|| {
                let text = format!(
                    "Failed to delete all resource types, {} remaining: {}",
                    failures.len(),
                    failures.join(", ")
                );
                ("ContentDeletionFailed", text)
            }),
        },
        Said {
            kind: "NamespaceContentRemaining",
            good: ("ContentRemoved", "All content successfully removed"),
            bad: (!cleared.remaining.is_empty()).then(|| {
                let text = format!("Some resources are remaining: {}", counts(&cleared.remaining, "has"));
                ("SomeResourcesRemain", text)
            }),
        },
        Said {
            kind: "NamespaceFinalizersRemaining",
            good: ("ContentHasNoFinalizers", "All content-preserving finalizers finished"),
            bad: (!cleared.finalizers.is_empty()).then(|| {
                let text = format!(
                    "Some content in the namespace has finalizers remaining: {}",
                    counts(&cleared.finalizers, "in")
                );
                ("SomeFinalizersRemain", text)
            }),
        },
    ];
    let mut changed = false;
    for Said { kind, good, bad } in said {
        let status = if bad.is_some() { "True" } else { "False" };
        let (reason, message) = bad.unwrap_or((good.0, good.1.to_owned()));
        let found = conditions.iter().position(|condition| condition.type_ == kind);
        let condition = match found.and_then(|at| conditions.get_mut(at)) {
            Some(condition)
                if condition.status == status
                    && condition.message.as_deref() == Some(&message)
                    && condition.reason.as_deref() == Some(reason) =>
            {
                continue;
            }
            Some(condition) => condition,
            None => {
                conditions.push(NamespaceCondition { type_: kind.to_owned(), ..Default::default() });
                let Some(last) = conditions.last_mut() else { continue };
                last
            }
        };
        if condition.status != status {
            condition.last_transition_time = Some(now.clone());
        }
        condition.status = status.to_owned();
        condition.reason = Some(reason.to_owned());
        condition.message = Some(message);
        changed = true;
    }
    changed
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use jiff::Timestamp;

    use super::*;

    #[test]
    fn conditions_say_what_remains_and_then_that_nothing_does() {
        let now = Time(Timestamp::UNIX_EPOCH);
        let mut conditions = Vec::new();
        let mut cleared = Cleared::default();
        cleared.remaining.insert("pods.".to_owned(), 2);
        cleared.finalizers.insert("example.com/keep".to_owned(), 1);
        assert!(update(&mut conditions, &cleared, &now));
        assert!(!update(&mut conditions, &cleared, &now));
        let text = |conditions: &[NamespaceCondition], kind: &str| {
            let it = conditions.iter().find(|it| it.type_ == kind).unwrap();
            format!("{} {} {}", it.status, it.reason.as_ref().unwrap(), it.message.as_ref().unwrap())
        };
        assert_eq!(
            text(&conditions, "NamespaceContentRemaining"),
            "True SomeResourcesRemain Some resources are remaining: pods. has 2 resource instances"
        );
        assert_eq!(
            text(&conditions, "NamespaceFinalizersRemaining"),
            "True SomeFinalizersRemain Some content in the namespace has finalizers remaining: example.com/keep in 1 resource instances"
        );
        assert!(update(&mut conditions, &Cleared::default(), &now));
        assert_eq!(
            text(&conditions, "NamespaceContentRemaining"),
            "False ContentRemoved All content successfully removed"
        );
        assert_eq!(conditions.len(), 5);
    }
}
