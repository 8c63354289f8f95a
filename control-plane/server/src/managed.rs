//! Who owns which fields: `metadata.managedFields` of every write.

use sampan_api::Kind;
use sampan_api::apply::{self, Writer};
use serde_json::{Map, Value};

/// Puts in the managed fields of a new object, or of a changed one.
pub fn update(kind: &Kind, old: Option<&Value>, new: &mut Value, manager: &str, subresource: &str, now: &str) {
    apply::update(kind, old, new, Writer { manager, subresource, now });
}

/// Whether two objects are the same but for their version and the times at which managers wrote.
pub fn same_but_times(new: &Value, old: &Value) -> bool {
    // What a kind has of its own first: most updates change that.
    differ_only_in(new, old, &["kind", "apiVersion", "metadata"], |_, _, _| true)
        && differ_only_in(
            new.get("metadata").unwrap_or(&Value::Null),
            old.get("metadata").unwrap_or(&Value::Null),
            &["resourceVersion", "managedFields"],
            |key, new, old| key == "resourceVersion" || same_managers(new, old),
        )
}

/// Whether two maps are the same, where `same` decides about some of their keys.
fn differ_only_in(
    new: &Value,
    old: &Value,
    keys: &[&str],
    same: impl Fn(&str, Option<&Value>, Option<&Value>) -> bool,
) -> bool {
    let empty = Map::new();
    let (new, old) = (new.as_object().unwrap_or(&empty), old.as_object().unwrap_or(&empty));
    let rest = |map: &Map<String, Value>| map.keys().filter(|key| !keys.contains(&key.as_str())).count();
    new.iter().all(|(key, value)| keys.contains(&key.as_str()) || old.get(key) == Some(value))
        && rest(new) == rest(old)
        && keys.iter().all(|key| same(key, new.get(*key), old.get(*key)))
}

fn same_managers(new: Option<&Value>, old: Option<&Value>) -> bool {
    if new == old {
        return true;
    }
    let entries = |list: Option<&Value>| list.and_then(Value::as_array).map(Vec::len).unwrap_or_default();
    let pairs = || {
        let list = |list: Option<&'_ Value>| list.and_then(Value::as_array).cloned().unwrap_or_default();
        list(new).into_iter().zip(list(old))
    };
    entries(new) == entries(old)
        && pairs().all(|(mut new, mut old)| {
            for entry in [&mut new, &mut old].into_iter().filter_map(Value::as_object_mut) {
                entry.remove("time");
            }
            new == old
        })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn times_and_versions_are_no_change() {
        let object = |version: &str, time: &str, data: &str| {
            json!({ "kind": "ConfigMap", "data": { "a": data }, "metadata": { "name": "x", "resourceVersion": version,
                "managedFields": [{ "manager": "m", "time": time, "fieldsV1": { "f:data": {} } }] } })
        };
        let old = object("1", "then", "a");
        assert!(same_but_times(&object("2", "now", "a"), &old));
        assert!(!same_but_times(&object("1", "then", "b"), &old));
        for pointer in ["/data", "/metadata/name", "/metadata/managedFields/0/fieldsV1", "/metadata/managedFields"] {
            let mut new = object("1", "then", "a");
            if let Some(part) = new.pointer_mut(pointer) {
                *part = json!("else");
            }
            assert!(!same_but_times(&new, &old), "{pointer}");
            assert!(!same_but_times(&old, &new), "{pointer}");
        }
        let mut more = object("1", "then", "a");
        more["immutable"] = json!(true);
        assert!(!same_but_times(&more, &old) && !same_but_times(&old, &more));
    }
}
