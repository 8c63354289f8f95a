//! Who owns which fields: `metadata.managedFields` of every write.

use sampan_api::Kind;
use sampan_api::apply::{self, Writer};
use serde_json::Value;

/// Puts in the managed fields of a new object, or of a changed one.
pub fn update(kind: &Kind, old: Option<&Value>, new: &mut Value, manager: &str, subresource: &str, now: &str) {
    apply::update(kind, old, new, Writer { manager, subresource, now });
}

fn without_times(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("resourceVersion");
        let entries = metadata.get_mut("managedFields").and_then(Value::as_array_mut);
        for entry in entries.into_iter().flatten().filter_map(Value::as_object_mut) {
            entry.remove("time");
        }
    }
    object
}

/// Whether two objects are the same but for the times at which managers wrote.
pub fn differs_in_time_only(new: &Value, old: &Value) -> bool {
    // Cheap first: most updates change something.
    let different = |key: &str| new.get(key) != old.get(key);
    if ["spec", "status", "data"].iter().any(|key| different(key)) {
        return false;
    }
    without_times(new) == without_times(old)
}
