//! Pods that wait for a place: by priority, then by age; those that found none wait for a change.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);

/// First comes what sorts first.
type Order = (Reverse<i32>, i64, String);

struct Waiting {
    pod: Arc<Pod>,
    order: Order,
    attempts: u32,
    /// Tried without success: when it may be tried again, once something has changed.
    not_before: Option<Instant>,
}

/// The pods without a node. Time is given, never read.
#[derive(Default)]
pub struct Queue {
    pods: HashMap<String, Waiting>,
    ready: BTreeSet<Order>,
    /// Failed, and nothing has changed since.
    parked: HashSet<String>,
}

impl Queue {
    /// A pod without a node: new, or changed. A change of the pod itself is a reason to try again.
    pub fn put(&mut self, pod: Arc<Pod>) {
        let Some(uid) = pod.uid() else { return };
        let order = order(&pod, &uid);
        if let Some(waiting) = self.pods.get_mut(&uid) {
            // Our own note of the failure must not bring it back at once.
            let same = waiting.pod.spec == pod.spec && waiting.pod.labels() == pod.labels();
            waiting.pod = pod;
            if same {
                return;
            }
            self.ready.remove(&waiting.order);
            waiting.order = order.clone();
            waiting.not_before = None;
            self.parked.remove(&uid);
            self.ready.insert(order);
            return;
        }
        self.ready.insert(order.clone());
        self.pods.insert(uid, Waiting { pod, order, attempts: 0, not_before: None });
    }

    pub fn remove(&mut self, uid: &str) {
        if let Some(waiting) = self.pods.remove(uid) {
            self.ready.remove(&waiting.order);
            self.parked.remove(uid);
        }
    }

    /// The next pod to try.
    pub fn next(&mut self) -> Option<Arc<Pod>> {
        let (_, _, uid) = self.ready.pop_first()?;
        self.pods.get(&uid).map(|waiting| waiting.pod.clone())
    }

    /// No node fits: it waits for a change in the cluster.
    pub fn park(&mut self, uid: &str, now: Instant) {
        if let Some(waiting) = self.pods.get_mut(uid) {
            let factor = 1 << waiting.attempts.min(4);
            waiting.attempts += 1;
            waiting.not_before = Some(now + (FIRST_BACKOFF * factor).min(LONGEST_BACKOFF));
            self.parked.insert(uid.to_owned());
        }
    }

    /// Something changed that may make room: those that waited long enough are tried again. Answers
    /// when the others may be.
    pub fn unpark(&mut self, now: Instant) -> Option<Instant> {
        let mut earliest = None;
        let parked: Vec<String> = self.parked.iter().cloned().collect();
        for uid in parked {
            let Some(waiting) = self.pods.get_mut(&uid) else {
                self.parked.remove(&uid);
                continue;
            };
            match waiting.not_before.filter(|time| *time > now) {
                Some(time) => earliest = Some(earliest.map_or(time, |known: Instant| known.min(time))),
                None => {
                    self.parked.remove(&uid);
                    self.ready.insert(waiting.order.clone());
                }
            }
        }
        earliest
    }
}

fn order(pod: &Pod, uid: &str) -> Order {
    let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
    let created = pod.creation_timestamp().map_or(0, |time| time.0.as_millisecond());
    (Reverse(priority), created, uid.to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn pod(uid: &str, priority: i32, second: u32) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": { "name": uid, "uid": uid, "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z") },
                "spec": { "containers": [], "priority": priority },
            }))
            .unwrap(),
        )
    }

    fn next(queue: &mut Queue) -> Option<String> {
        queue.next().and_then(|pod| pod.uid())
    }

    #[test]
    fn by_priority_then_age() {
        let mut queue = Queue::default();
        for pod in [pod("young", 0, 9), pod("old", 0, 1), pod("important", 5, 30)] {
            queue.put(pod);
        }
        assert_eq!(
            [next(&mut queue), next(&mut queue), next(&mut queue)].map(Option::unwrap),
            ["important", "old", "young"]
        );
        assert_eq!(next(&mut queue), None);
    }

    #[test]
    fn parked_pods_wait_for_a_change_and_longer_each_time() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut queue = Queue::default();
        queue.put(pod("a", 0, 0));
        assert!(next(&mut queue).is_some());
        queue.park("a", at(0));
        // The status written for the failure is no change.
        queue.put(pod("a", 0, 0));
        assert_eq!(next(&mut queue), None);
        assert_eq!(queue.unpark(at(0)), Some(at(1)));
        assert_eq!(queue.unpark(at(1)), None);
        assert!(next(&mut queue).is_some());
        queue.park("a", at(1));
        assert_eq!(queue.unpark(at(2)), Some(at(3)));
        // A changed pod is tried at once.
        queue.put(pod("a", 7, 0));
        assert!(next(&mut queue).is_some());
    }

    #[test]
    fn removed_pods_are_gone() {
        let mut queue = Queue::default();
        queue.put(pod("a", 0, 0));
        queue.remove("a");
        assert_eq!(next(&mut queue), None);
    }
}
