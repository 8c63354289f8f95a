//! The newest warnings of a cluster: one line per cause, and only about what still exists.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use serde::Serialize;

/// How many are shown.
const SHOWN: usize = 5;

#[derive(Debug, Serialize)]
pub struct Warning {
    /// The one it was told about last.
    pub object: String,
    /// How many more of the same owner it was told about.
    pub others: usize,
    pub reason: String,
    pub message: String,
    pub count: i32,
}

/// The objects that exist, of the kinds that were asked for.
#[derive(Default)]
pub struct Existing {
    kinds: HashSet<&'static str>,
    /// By kind, namespace and name.
    objects: HashMap<(&'static str, String, String), Known>,
}

struct Known {
    uid: Option<String>,
    /// Its controller's name.
    owner: Option<String>,
}

impl Existing {
    pub fn add<K: kube::ResourceExt>(&mut self, kind: &'static str, objects: &[K]) {
        self.kinds.insert(kind);
        for object in objects {
            let owner = object.owner_references().iter().find(|owner| owner.controller == Some(true));
            let key = (kind, object.namespace().unwrap_or_default(), object.name_any());
            self.objects.insert(key, Known { uid: object.uid(), owner: owner.map(|owner| owner.name.clone()) });
        }
    }

    /// `None` where the object is gone; else what it has its troubles in common with.
    fn cause_of(&self, event: &Event) -> Option<String> {
        let about = &event.involved_object;
        let name = about.name.clone().unwrap_or_default();
        let kind = about.kind.as_deref().unwrap_or_default();
        let Some(kind) = self.kinds.get(kind) else { return Some(name) };
        let namespace = about.namespace.clone().unwrap_or_default();
        // Events about a node may carry the namespace of the event.
        let namespace = if *kind == "Node" { String::new() } else { namespace };
        let Known { uid, owner } = self.objects.get(&(*kind, namespace, name.clone()))?;
        // A node's uid is its name there, as a kubelet knows no other.
        if *kind != "Node" && about.uid.is_some() && about.uid != *uid {
            return None;
        }
        Some(owner.clone().unwrap_or(name))
    }
}

/// When an event was told last.
pub fn time(event: &Event) -> Option<Timestamp> {
    let series = event.series.as_ref().and_then(|series| series.last_observed_time.as_ref());
    series
        .map(|time| time.0)
        .or_else(|| event.last_timestamp.as_ref().map(|time| time.0))
        .or_else(|| event.event_time.as_ref().map(|time| time.0))
        .or_else(|| event.metadata.creation_timestamp.as_ref().map(|time| time.0))
}

fn count(event: &Event) -> i32 {
    event.series.as_ref().and_then(|series| series.count).or(event.count).unwrap_or(1)
}

pub fn newest(mut events: Vec<Event>, existing: &Existing) -> Vec<Warning> {
    events.sort_by_key(|event| std::cmp::Reverse(time(event)));
    let mut groups: Vec<(_, Vec<Event>)> = Vec::new();
    for event in events {
        let Some(cause) = existing.cause_of(&event) else { continue };
        let about = &event.involved_object;
        let key = (about.namespace.clone(), about.kind.clone(), cause, event.reason.clone());
        match groups.iter_mut().find(|(of, _)| *of == key) {
            Some((_, events)) => events.push(event),
            None => groups.push((key, vec![event])),
        }
    }
    groups.into_iter().take(SHOWN).filter_map(|(_, events)| warning(&events)).collect()
}

/// Of events with one cause, the newest first.
fn warning(events: &[Event]) -> Option<Warning> {
    let first = events.first()?;
    let about = &first.involved_object;
    // Several events of one reason tell one happening: the most frequent one counts.
    let mut objects: HashMap<_, i32> = HashMap::new();
    for event in events {
        let most = objects.entry(&event.involved_object.name).or_default();
        *most = count(event).max(*most);
    }
    // "Error: ErrImagePull" follows the message that says which image and why: the longest tells most.
    let of_first = events.iter().filter(|event| event.involved_object.name == about.name);
    let message = of_first.filter_map(|event| event.message.as_deref()).max_by_key(|message| message.len());
    Some(Warning {
        object: format!(
            "{}/{}",
            about.kind.as_deref().unwrap_or_default().to_lowercase(),
            about.name.as_deref().unwrap_or_default()
        ),
        others: objects.len() - 1,
        reason: first.reason.clone().unwrap_or_default(),
        message: message.unwrap_or_default().to_owned(),
        count: objects.into_values().fold(0, i32::saturating_add),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use k8s_openapi::api::core::v1::{Node, Pod};
    use serde_json::json;

    use super::*;

    fn event(second: u8, kind: &str, name: &str, uid: &str, reason: &str, message: &str) -> Event {
        serde_json::from_value(json!({
            "metadata": { "name": format!("{name}.{second}"), "namespace": "default" },
            "involvedObject": { "kind": kind, "namespace": "default", "name": name, "uid": uid },
            "reason": reason, "message": message, "type": "Warning", "count": 2,
            "lastTimestamp": format!("2026-01-01T00:00:{second:02}Z"),
        }))
        .unwrap()
    }

    fn existing() -> Existing {
        let pod = |name: &str| -> Pod {
            serde_json::from_value(json!({ "metadata": { "name": name, "namespace": "default", "uid": name,
                "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "a", "uid": "r", "controller": true }] } }))
            .unwrap()
        };
        let node: Node = serde_json::from_value(json!({ "metadata": { "name": "n", "uid": "u" } })).unwrap();
        let mut existing = Existing::default();
        existing.add("Pod", &[pod("a-1"), pod("a-2")]);
        existing.add("Node", &[node]);
        existing
    }

    #[test]
    fn one_line_per_cause() {
        let events = vec![
            event(1, "Pod", "a-1", "a-1", "Failed", "Failed to pull image \"x\": it is not here"),
            event(2, "Pod", "a-1", "a-1", "Failed", "Error: ErrImagePull"),
            event(3, "Pod", "a-2", "a-2", "Failed", "Failed to pull image \"x\": it is not here"),
            event(4, "Node", "n", "n", "Full", "no room"),
        ];
        let warnings = newest(events, &existing());
        let lines: Vec<_> = warnings.iter().map(|it| (it.object.as_str(), it.others, it.count)).collect();
        assert_eq!(lines, [("node/n", 0, 2), ("pod/a-2", 1, 4)]);
        assert!(warnings[1].message.contains("not here"));
    }

    #[test]
    fn only_of_objects_that_exist() {
        let events = vec![
            event(1, "Pod", "gone", "gone", "Failed", "x"),
            // One of the same name that was there before.
            event(2, "Pod", "a-1", "earlier", "Failed", "x"),
            event(3, "Node", "gone", "gone", "Full", "x"),
            event(4, "Lease", "unknown-kind", "l", "Odd", "x"),
        ];
        let objects: Vec<_> = newest(events, &existing()).into_iter().map(|it| it.object).collect();
        assert_eq!(objects, ["lease/unknown-kind"]);
    }
}
