//! Tables as the server prints them for `kubectl get`: columns, and rows of cells.

use serde_json::{Value, json};

use crate::kind::{Column, Kind};
use crate::kinds::print;

/// How much of each object a row carries (`includeObject`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Include {
    None,
    #[default]
    Metadata,
    Object,
}

impl Include {
    /// The query's word; `None` where it is no such word.
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "" | "Metadata" => Self::Metadata,
            "None" => Self::None,
            "Object" => Self::Object,
            _ => return None,
        })
    }
}

/// Columns of a kind that has none of its own.
pub const DEFAULT_COLUMNS: &[Column] = &[
    Column {
        name: "Name",
        kind: "string",
        format: "name",
        description: "Name must be unique within its scope. It cannot be changed.",
        priority: 0,
    },
    Column { name: "Created At", kind: "date", format: "", description: "When the object was made.", priority: 0 },
];

/// Cells for `DEFAULT_COLUMNS`.
pub fn default_cells(object: &Value) -> Vec<Value> {
    vec![print::name(object), object.pointer("/metadata/creationTimestamp").cloned().unwrap_or_default()]
}

/// An object without anything but its metadata.
pub fn partial(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": object.get("metadata").cloned().unwrap_or_else(|| json!({})),
    })
}

/// One row; a pod that has ended says so, so that clients can leave it out.
pub fn row(kind: &Kind, object: &Value, include: Include, now: i64) -> Value {
    let shown = match include {
        Include::None => Value::Null,
        Include::Metadata => partial(object),
        Include::Object => object.clone(),
    };
    let mut row = json!({"cells": (kind.cells)(object, now), "object": shown});
    let ended = match print::text(object, "/status/phase") {
        "Succeeded" => Some(("Succeeded", "The pod has completed successfully.")),
        "Failed" => Some(("Failed", "The pod failed.")),
        _ => None,
    };
    if let (Some((reason, message)), "Pod", Some(map)) = (ended, kind.kind, row.as_object_mut()) {
        let condition = json!({"type": "Completed", "status": "True", "reason": reason, "message": message});
        map.insert("conditions".to_owned(), json!([condition]));
    }
    row
}

/// The definitions of a kind's columns.
pub fn columns(columns: &[Column]) -> Value {
    columns
        .iter()
        .map(|column| {
            json!({
                "name": column.name,
                "type": column.kind,
                "format": column.format,
                "description": column.description,
                "priority": column.priority,
            })
        })
        .collect()
}

/// A table of objects; `metadata` is that of the list or object, `headers` is false for all but the
/// first event of a watch, `now` counts seconds since 1970.
pub fn table(kind: &Kind, objects: &[Value], metadata: Value, include: Include, headers: bool, now: i64) -> Value {
    let rows: Vec<Value> = objects.iter().map(|object| row(kind, object, include, now)).collect();
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": if headers { columns(kind.columns) } else { Value::Null },
        "rows": rows,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds;

    #[test]
    fn every_row_has_a_cell_for_every_column() {
        for kind in kinds::ALL {
            let object = json!({"metadata": {"name": "x"}});
            assert_eq!((kind.cells)(&object, 0).len(), kind.columns.len(), "{}", kind.kind);
        }
    }

    #[test]
    fn ended_pods_are_marked() {
        let pod = json!({"metadata": {"name": "p"}, "status": {"phase": "Succeeded"}});
        let row = row(&kinds::pod::KIND, &pod, Include::None, 0);
        assert_eq!(row.pointer("/conditions/0/type"), Some(&json!("Completed")));
        assert_eq!(row.get("object"), Some(&Value::Null));
    }
}
