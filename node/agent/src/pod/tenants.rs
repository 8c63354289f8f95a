//! Tenants whose last pod is gone. What served them is taken away, and pods that come meanwhile wait: half of it
//! would be the old one's.

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use sampan_client::Change;

use super::{paths, spec};

/// How long a tenant may be without pods before its host and its network go.
const IDLE: Duration = Duration::from_secs(20);

/// What became of a tenant.
pub enum News {
    /// It may have been without pods for long enough.
    Idle(String),
    /// Nothing is left of a tenant of this namespace.
    Ended(String),
}

pub fn wait_of(tenant: &str) -> Duration {
    // A host of one pod has nobody to wait for.
    if paths::is_isolated(tenant) { Duration::ZERO } else { IDLE }
}

/// Namespaces with tenants that are being taken away, and what is to be told of their pods then.
#[derive(Default)]
pub struct Ending(HashMap<String, Held>);

#[derive(Default)]
struct Held {
    tenants: usize,
    changes: Vec<Change<Pod>>,
}

impl Ending {
    pub fn begin(&mut self, namespace: &str) {
        self.0.entry(namespace.to_owned()).or_default().tenants += 1;
    }

    /// Keeps a change of a pod that has to wait; gives back any other.
    pub fn hold(&mut self, change: Change<Pod>) -> Option<Change<Pod>> {
        match self.0.get_mut(spec::namespace(change.object())) {
            Some(held) => {
                held.changes.push(change);
                None
            }
            None => Some(change),
        }
    }

    /// One tenant less; what waited for the last one.
    pub fn end(&mut self, namespace: &str) -> Vec<Change<Pod>> {
        if let Some(held) = self.0.get_mut(namespace) {
            held.tenants -= 1;
            if held.tenants > 0 {
                return Vec::new();
            }
        }
        self.0.remove(namespace).map(|held| held.changes).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    fn added(namespace: &str, name: &str) -> Change<Pod> {
        let pod = json!({ "metadata": { "namespace": namespace, "name": name } });
        Change::Added(Arc::new(serde_json::from_value(pod).unwrap()))
    }

    #[test]
    fn pods_wait_until_the_last_tenant_of_their_namespace_has_ended() {
        let mut ending = Ending::default();
        assert!(ending.hold(added("shop", "a")).is_some());
        ending.begin("shop");
        ending.begin("shop");
        assert!(ending.hold(added("shop", "a")).is_none());
        assert!(ending.hold(added("bank", "a")).is_some());
        assert!(ending.end("shop").is_empty());
        assert!(ending.hold(added("shop", "b")).is_none());
        let names: Vec<_> = ending.end("shop").iter().map(|it| it.object().metadata.name.clone().unwrap()).collect();
        assert_eq!(names, ["a", "b"]);
        assert!(ending.hold(added("shop", "c")).is_some());
        assert!(ending.end("bank").is_empty());
    }
}
