//! Event, of the core group and of events.k8s.io: one storage, two shapes.

use super::prelude::*;

pub static CORE: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Event",
    plural: "events",
    singular: "event",
    short_names: &["ev"],
    categories: &[],
    scope: Scope::Namespaced,
    verbs: ALL_VERBS,
    subresources: &[],
    schema: "io.k8s.api.core.v1.Event",
    selectable_fields: &[
        field!("involvedObject.kind"),
        field!("involvedObject.namespace"),
        field!("involvedObject.name"),
        field!("involvedObject.uid"),
        field!("involvedObject.apiVersion"),
        field!("involvedObject.resourceVersion"),
        field!("involvedObject.fieldPath"),
        field!("reason"),
        field!("reportingComponent"),
        SelectableField { path: "source", get: source },
        field!("type"),
    ],
    columns: &[
        Column { name: "Last Seen", kind: "string", format: "", description: "", priority: 0 },
        Column { name: "Type", kind: "string", format: "", description: "", priority: 0 },
        Column { name: "Reason", kind: "string", format: "", description: "", priority: 0 },
        Column { name: "Object", kind: "string", format: "", description: "", priority: 0 },
        Column { name: "Subobject", kind: "string", format: "", description: "", priority: 1 },
        Column { name: "Source", kind: "string", format: "", description: "", priority: 1 },
        Column { name: "Message", kind: "string", format: "", description: "", priority: 0 },
        Column { name: "First Seen", kind: "string", format: "", description: "", priority: 1 },
        Column { name: "Count", kind: "string", format: "", description: "", priority: 1 },
        Column { name: "Name", kind: "string", format: "name", description: "Name must be unique within its scope. It cannot be changed.", priority: 1 },
    ],
    cells,
    name: names::any,
    strategy: STRATEGY,
    stored_as: None,
    deprecated: None,
};

pub static EVENTS: Kind = Kind {
    group: "events.k8s.io",
    version: "v1",
    kind: "Event",
    plural: "events",
    singular: "event",
    short_names: &["ev"],
    categories: &[],
    scope: Scope::Namespaced,
    verbs: ALL_VERBS,
    subresources: &[],
    schema: "io.k8s.api.events.v1.Event",
    selectable_fields: &[
        field!("regarding.kind"),
        field!("regarding.namespace"),
        field!("regarding.name"),
        field!("regarding.uid"),
        field!("regarding.apiVersion"),
        field!("regarding.resourceVersion"),
        field!("regarding.fieldPath"),
        field!("reason"),
        field!("reportingController"),
        field!("type"),
    ],
    columns: &[
        Column { name: "Last Seen", kind: "string", format: "", description: "", priority: 0 },
        Column { name: "Type", kind: "string", format: "", description: "", priority: 0 },
        Column { name: "Reason", kind: "string", format: "", description: "", priority: 0 },
        Column { name: "Object", kind: "string", format: "", description: "", priority: 0 },
        Column { name: "Subobject", kind: "string", format: "", description: "", priority: 1 },
        Column { name: "Source", kind: "string", format: "", description: "", priority: 1 },
        Column { name: "Message", kind: "string", format: "", description: "", priority: 0 },
        Column { name: "First Seen", kind: "string", format: "", description: "", priority: 1 },
        Column { name: "Count", kind: "string", format: "", description: "", priority: 1 },
        Column { name: "Name", kind: "string", format: "name", description: "Name must be unique within its scope. It cannot be changed.", priority: 1 },
    ],
    cells,
    name: names::any,
    strategy: STRATEGY,
    stored_as: Some(StoredAs { kind: || &CORE, to_stored, from_stored }),
    deprecated: None,
};

const STRATEGY: Strategy = Strategy::PLAIN;

fn to_stored(object: Value) -> Value {
    object
}

fn from_stored(object: Value) -> Value {
    object
}

fn cells(object: &Value, now: i64) -> Vec<Value> {
    print::name_and_age(object, now)
}

/// Who reported: the old field, or the new one where that is empty.
fn source(object: &Value) -> String {
    let text = |path| object.pointer(path).and_then(Value::as_str).filter(|text| !text.is_empty());
    text("/source/component").or_else(|| text("/reportingComponent")).unwrap_or_default().to_owned()
}
