//! Patches of the three types that change a document: JSON patch, merge patch, strategic merge patch.

mod strategic;

use serde_json::Value;

pub use strategic::strategic_merge;

use crate::Error;

/// Most operations a JSON patch may have.
const MAX_OPERATIONS: usize = 10_000;

/// Applies a JSON patch (RFC 6902).
pub fn json_patch(original: &Value, patch: &[u8]) -> Result<Value, Error> {
    let patch = decode(patch)?;
    let Value::Array(operations) = &patch else {
        let found = go_kind(&patch);
        let message = format!(
            "error decoding patch: json: cannot unmarshal {found} into Go value of type []handlers.jsonPatchOp"
        );
        return Err(Error::BadRequest(message));
    };
    if operations.len() > MAX_OPERATIONS {
        return Err(Error::RequestTooLarge(format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
            operations.len()
        )));
    }
    let operations: json_patch::Patch = serde_json::from_value(patch).map_err(|_| rejected())?;
    let mut patched = original.clone();
    json_patch::patch(&mut patched, &operations).map_err(|_| rejected())?;
    Ok(patched)
}

/// Applies a merge patch (RFC 7386).
pub fn merge_patch(original: &Value, patch: &[u8]) -> Result<Value, Error> {
    let patch = decode(patch)?;
    if !patch.is_object() {
        let found = go_kind(&patch);
        let message = format!(
            "error decoding patch: json: cannot unmarshal {found} into Go value of type map[string]interface {{}}"
        );
        return Err(Error::BadRequest(message));
    }
    let mut patched = original.clone();
    json_patch::merge(&mut patched, &patch);
    Ok(patched)
}

/// The reference does not say more.
fn rejected() -> Error {
    Error::Unprocessable("the server rejected our request due to an error in our request".to_owned())
}

fn decode(patch: &[u8]) -> Result<Value, Error> {
    serde_json::from_slice(patch).map_err(|error| Error::BadRequest(format!("error decoding patch: {error}")))
}

fn go_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn json_patches() {
        let original = json!({ "a": [{ "b": 1 }], "labels": {} });
        let patch = json!([
            { "op": "test", "path": "/a/0/b", "value": 1 },
            { "op": "add", "path": "/labels/x~1y", "value": "z" },
            { "op": "move", "from": "/a/0/b", "path": "/c" },
        ]);
        let patched = json_patch(&original, patch.to_string().as_bytes()).unwrap();
        assert_eq!(patched, json!({ "a": [{}], "labels": { "x/y": "z" }, "c": 1 }));
    }

    #[test]
    fn json_patches_that_fail() {
        let fails = |patch: &str| json_patch(&json!({}), patch.as_bytes()).unwrap_err();
        assert!(matches!(fails(r#"[{"op":"remove","path":"/nope"}]"#), Error::Unprocessable(_)));
        assert!(matches!(fails(r#"[{"op":"wat","path":"/x"}]"#), Error::Unprocessable(_)));
        assert_eq!(
            fails("{}").to_string(),
            "error decoding patch: json: cannot unmarshal object into Go value of type []handlers.jsonPatchOp"
        );
    }

    fn document() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::from),
            any::<u8>().prop_map(Value::from),
            "[a-c]{0,2}".prop_map(Value::from)
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::Array),
                prop::collection::btree_map("[a-c]", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    fn map() -> impl Strategy<Value = Value> {
        prop::collection::btree_map("[a-c]", document(), 0..4).prop_map(|map| Value::Object(map.into_iter().collect()))
    }

    proptest! {
        /// RFC 7386: a patch applied twice is a patch applied once, and an empty one changes nothing.
        #[test]
        fn merge_patches_are_idempotent(original in map(), patch in map()) {
            let patch = patch.to_string();
            let once = merge_patch(&original, patch.as_bytes()).unwrap();
            prop_assert_eq!(&merge_patch(&once, patch.as_bytes()).unwrap(), &once);
            prop_assert_eq!(merge_patch(&original, b"{}").unwrap(), original);
        }
    }
}
