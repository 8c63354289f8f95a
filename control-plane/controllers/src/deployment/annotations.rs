//! What a Deployment notes on its ReplicaSets, and they on it: revisions and sizes.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};

use super::arithmetic::Bounds;

pub const REVISION: &str = "deployment.kubernetes.io/revision";
const HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// What is the Deployment's own and not copied.
const OWN: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];
/// The history of revisions may take so many bytes.
const HISTORY_LIMIT: usize = 2000;

pub type Annotations = BTreeMap<String, String>;

fn number<T: std::str::FromStr>(annotations: Option<&Annotations>, name: &str) -> Option<T> {
    annotations?.get(name)?.parse().ok()
}

pub fn revision(set: &ReplicaSet) -> i64 {
    number(set.metadata.annotations.as_ref(), REVISION).unwrap_or_default()
}

/// `spec.replicas` of the Deployment when the set was last scaled.
pub fn desired(set: &ReplicaSet) -> Option<i32> {
    number(set.metadata.annotations.as_ref(), DESIRED)
}

/// The most pods the Deployment was allowed when the set was last scaled.
pub fn most(set: &ReplicaSet) -> Option<i32> {
    number(set.metadata.annotations.as_ref(), MAX)
}

/// The annotations of the set that the Deployment's template now belongs to.
pub fn of_new(deployment: &Deployment, current: &Annotations, newest: i64) -> Annotations {
    let mut annotations = current.clone();
    for (name, value) in deployment.metadata.annotations.iter().flatten() {
        if !OWN.contains(&name.as_str()) {
            annotations.insert(name.clone(), value.clone());
        }
    }
    let before = current.get(REVISION);
    match before.map(|text| text.parse::<i64>()) {
        // Not ours to overwrite.
        Some(Err(_)) => {}
        Some(Ok(revision)) if revision >= newest => {}
        other => {
            annotations.insert(REVISION.to_owned(), newest.to_string());
            if let (Some(Ok(_)), Some(before)) = (other, before) {
                let history = match current.get(HISTORY).filter(|it| !it.is_empty()) {
                    Some(history) => append(history, before),
                    None => before.clone(),
                };
                annotations.insert(HISTORY.to_owned(), history);
            }
        }
    }
    annotations
}

fn append(history: &str, revision: &str) -> String {
    let mut items: Vec<&str> = history.split(',').chain([revision]).collect();
    while items.len() > 1 && items.iter().map(|item| item.len() + 1).sum::<usize>() > HISTORY_LIMIT {
        items.remove(0);
    }
    items.join(",")
}

/// Sizes, as they are noted with each scaling.
pub fn sizes(bounds: &Bounds) -> Annotations {
    [(DESIRED, bounds.replicas), (MAX, bounds.most())].map(|(name, value)| (name.to_owned(), value.to_string())).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_that_comes_back_gets_a_new_revision_and_keeps_its_history() {
        let mut deployment = Deployment::default();
        deployment.metadata.annotations = Some(
            [("note", "x"), (REVISION, "9"), ("kubectl.kubernetes.io/last-applied-configuration", "{}")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
        );
        let first = of_new(&deployment, &Annotations::new(), 1);
        assert_eq!(first.get(REVISION).map(String::as_str), Some("1"));
        assert_eq!(first.get("note").map(String::as_str), Some("x"));
        assert_eq!(first.len(), 2);
        let third = of_new(&deployment, &first, 3);
        let fifth = of_new(&deployment, &third, 5);
        assert_eq!(fifth.get(REVISION).map(String::as_str), Some("5"));
        assert_eq!(fifth.get(HISTORY).map(String::as_str), Some("1,3"));
        assert_eq!(of_new(&deployment, &fifth, 4), fifth, "never goes back");
    }

    #[test]
    fn the_history_is_bounded() {
        let long = vec!["1234567"; 400].join(",");
        let history = append(&long, "8");
        assert!(history.len() <= HISTORY_LIMIT && history.ends_with(",8"));
    }
}
