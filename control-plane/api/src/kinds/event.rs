//! Event, of the core group and of events.k8s.io: one storage, two shapes.

use super::prelude::*;
use crate::validation::common::immutable;
use crate::validation::field::{Field, Path};

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
        Column {
            name: "Name",
            kind: "string",
            format: "name",
            description: "Name must be unique within its scope. It cannot be changed.",
            priority: 1,
        },
    ],
    cells,
    name: names::path_segment,
    strategy: CORE_STRATEGY,
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
        Column {
            name: "Name",
            kind: "string",
            format: "name",
            description: "Name must be unique within its scope. It cannot be changed.",
            priority: 1,
        },
    ],
    cells: |object, now| cells(&to_stored(object.clone()), now),
    name: names::dns_subdomain,
    strategy: EVENTS_STRATEGY,
    stored_as: Some(StoredAs { kind: || &CORE, to_stored, from_stored }),
    deprecated: None,
};

const CORE_STRATEGY: Strategy = Strategy {
    validate: legacy,
    validate_update: |new, _, errors| legacy(new, errors),
    create_on_update: true,
    ..Strategy::PLAIN
};

/// The newer group is stricter; it is checked, as the reference does, in the shape that is stored.
const EVENTS_STRATEGY: Strategy = Strategy {
    validate: |object, errors| strict(&to_stored(object.clone()), errors),
    validate_update: |new, old, errors| strict_update(&to_stored(new.clone()), &to_stored(old.clone()), errors),
    ..CORE_STRATEGY
};

/// Fields that the two shapes name differently: in events.k8s.io, in core.
const RENAMED: &[(&str, &str)] = &[
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
    ("reportingController", "reportingComponent"),
];

/// To the core shape. An object that has it already stays as it is.
fn to_stored(mut object: Value) -> Value {
    rename(&mut object, "v1", |(events, core)| (events, core));
    if let Some(map) = object.as_object_mut() {
        for (key, empty) in [
            ("involvedObject", json!({})),
            ("source", json!({})),
            ("firstTimestamp", Value::Null),
            ("lastTimestamp", Value::Null),
            ("eventTime", Value::Null),
            ("reportingComponent", json!("")),
            ("reportingInstance", json!("")),
        ] {
            map.entry(key).or_insert(empty);
        }
    }
    object
}

/// To the shape of events.k8s.io.
fn from_stored(mut object: Value) -> Value {
    rename(&mut object, "events.k8s.io/v1", |(events, core)| (core, events));
    if let Some(map) = object.as_object_mut() {
        // Always written in one shape, left out in the other where empty.
        for key in ["reportingController", "reportingInstance"] {
            if map.get(key).and_then(Value::as_str) == Some("") {
                map.remove(key);
            }
        }
        map.entry("eventTime").or_insert(Value::Null);
        for key in ["regarding", "deprecatedSource"] {
            map.entry(key).or_insert_with(|| json!({}));
        }
        for key in ["deprecatedFirstTimestamp", "deprecatedLastTimestamp"] {
            map.entry(key).or_insert(Value::Null);
        }
    }
    object
}

type Pair = (&'static str, &'static str);

fn rename(object: &mut Value, api_version: &str, way: fn(Pair) -> Pair) {
    let Some(map) = object.as_object_mut() else {
        return;
    };
    for pair in RENAMED {
        let (from, to) = way(*pair);
        if let Some(value) = map.remove(from) {
            map.insert(to.to_owned(), value);
        }
    }
    map.insert("apiVersion".to_owned(), api_version.into());
}

/// Rules that every event keeps.
fn legacy(object: &Value, errors: &mut FieldErrors) {
    let root = Field::root(object);
    let namespace = root.below(&["metadata", "namespace"]).str();
    let about = root.below(&["involvedObject", "namespace"]);
    let mismatch = "does not match event.namespace";
    if root.child("eventTime").is_empty() {
        let fits = if about.is_empty() { matches!(namespace, "" | "default") } else { about.str() == namespace };
        if !fits {
            errors.invalid_str(about.path(), about.str(), mismatch);
        }
    } else {
        if about.is_empty() && !matches!(namespace, "default" | "kube-system") {
            errors.invalid_str(about.path(), about.str(), mismatch);
        }
        let controller = root.child("reportingComponent").str();
        let path = Path::new("reportingController");
        if controller.is_empty() {
            errors.required(&path, "");
        }
        errors.invalid_all(&path, controller, names::is_qualified_name(controller));
        for (name, needed, limit) in
            [("reportingInstance", true, 128), ("action", true, 128), ("reason", true, 128), ("message", false, 1024)]
        {
            let field = root.child(name);
            if needed && field.is_empty() {
                errors.required(field.path(), "");
            }
            if field.len() > limit {
                errors.invalid_str(field.path(), "", format!("can have at most {limit} characters"));
            }
        }
    }
    errors.invalid_all(&Path::new("namespace"), namespace, names::is_dns_subdomain(namespace));
}

fn series(root: &Field<'_>, errors: &mut FieldErrors) {
    let series = root.child("series");
    if !series.is_set() {
        return;
    }
    if series.child("count").int() < 2 {
        errors.invalid_str(&Path::new("series.count"), "", "should be at least 2");
    }
    if series.child("lastObservedTime").is_empty() {
        errors.required(&Path::new("series.lastObservedTime"), "");
    }
}

fn strict(object: &Value, errors: &mut FieldErrors) {
    legacy(object, errors);
    let root = Field::root(object);
    series(&root, errors);
    if root.child("eventTime").is_empty() {
        errors.required(&Path::new("eventTime"), "");
    }
    let kind = root.child("type").str();
    if !matches!(kind, "Normal" | "Warning") {
        errors.invalid_str(&Path::new("type"), "", format!("has invalid value: {kind}"));
    }
    for name in ["firstTimestamp", "lastTimestamp", "count"] {
        if !root.child(name).is_empty() {
            errors.invalid_str(root.child(name).path(), "", "needs to be unset");
        }
    }
    let source = root.child("source");
    if !source.child("component").is_empty() || !source.child("host").is_empty() {
        errors.invalid_str(source.path(), "", "needs to be unset");
    }
}

fn strict_update(new: &Value, old: &Value, errors: &mut FieldErrors) {
    legacy(new, errors);
    let (root, before) = (Field::root(new), Field::root(old));
    if root.child("series").value() != before.child("series").value() {
        series(&root, errors);
    }
    for name in [
        "involvedObject",
        "reason",
        "message",
        "source",
        "firstTimestamp",
        "lastTimestamp",
        "count",
        "type",
        "eventTime",
        "action",
        "related",
        "reportingComponent",
        "reportingInstance",
    ] {
        let told = if name == "reportingComponent" { "reportingController" } else { name };
        let field = root.child(name).with_path(Path::new(told));
        immutable(&field, &before.child(name), errors);
    }
}

/// One row: when, what, about what, by whom, how often.
fn cells(object: &Value, now: i64) -> Vec<Value> {
    let root = Field::root(object);
    let time = |field: Field<'_>| field.value().filter(|_| !field.is_empty()).and_then(print::seconds);
    let since = |time: Option<i64>| time.map_or_else(|| "<unknown>".to_owned(), |then| print::duration(now - then));
    let first = time(root.child("firstTimestamp")).or_else(|| time(root.child("eventTime")));
    let mut last = time(root.child("lastTimestamp")).or(first);
    let mut count = root.child("count").int();
    let series = root.child("series");
    if series.is_set() {
        last = time(series.child("lastObservedTime"));
        count = series.child("count").int();
    } else if count == 0 {
        count = 1;
    }
    let about = root.child("involvedObject");
    let mut target = about.child("kind").str().to_lowercase();
    if !about.child("name").is_empty() {
        target = format!("{target}/{}", about.child("name").str());
    }
    let or = |a: &str, b: &str| {
        if a.is_empty() { b.to_owned() } else { a.to_owned() }
    };
    let source = root.child("source");
    let mut by = or(source.child("component").str(), root.child("reportingComponent").str());
    let host = or(source.child("host").str(), root.child("reportingInstance").str());
    if !host.is_empty() {
        by = format!("{by}, {host}");
    }
    vec![
        json!(since(last)),
        json!(root.child("type").str()),
        json!(root.child("reason").str()),
        json!(target),
        json!(about.child("fieldPath").str()),
        json!(by),
        json!(root.child("message").str().trim()),
        json!(since(first)),
        json!(count),
        print::name(object),
    ]
}

/// Who reported: the old field, or the new one where that is empty.
fn source(object: &Value) -> String {
    let text = |path| object.pointer(path).and_then(Value::as_str).filter(|text| !text.is_empty());
    text("/source/component").or_else(|| text("/reportingComponent")).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let core = json!({
            "apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "involvedObject": {"kind": "Pod"},
            "message": "m", "count": 1, "firstTimestamp": null, "lastTimestamp": null, "eventTime": null,
            "reportingComponent": "c", "reportingInstance": "", "source": {}, "reason": "R", "type": "Normal",
        });
        let events = from_stored(core.clone());
        assert_eq!(events.get("regarding"), Some(&json!({"kind": "Pod"})));
        assert_eq!(events.get("note"), Some(&json!("m")));
        assert_eq!(to_stored(events), core.clone());
        assert_eq!(cells(&core, 0)[3], json!("pod"));
    }
}
