//! Strategic merge patch: a merge patch that knows which lists merge, and by which key.

use serde_json::{Map, Value};

use crate::Error;
use crate::schema::{FieldKind, Merge, TypeDef};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList/";
const ELEMENT_ORDER: &str = "$setElementOrder/";

type Object = Map<String, Value>;

/// Applies `patch` to `original`, both of type `of`.
pub fn strategic_merge(of: &TypeDef, original: &Value, patch: &[u8]) -> Result<Value, Error> {
    let patch = super::decode(patch)?;
    let (Value::Object(original), Value::Object(patch)) = (original, patch) else {
        return Err(Error::BadRequest("Invalid JSON Patch: a strategic merge patch is an object".to_owned()));
    };
    merge_map(original.clone(), patch, Level::Type(of)).map(Value::Object)
}

/// What is known of the keys of a map.
#[derive(Clone, Copy)]
enum Level<'a> {
    Type(&'a TypeDef),
    /// A map of values of a kind.
    Map(&'a FieldKind),
    /// Nothing, as in values of any JSON.
    Any,
}

impl<'a> Level<'a> {
    /// What is known of the value at `key`, and how it merges.
    fn field(self, key: &str) -> (Option<&'a FieldKind>, Option<Merge>) {
        match self {
            Self::Type(of) => of.field(key).map_or((None, None), |field| (Some(&field.kind), field.merge)),
            Self::Map(of) => (Some(of), None),
            Self::Any => (None, None),
        }
    }

    fn below(kind: Option<&'a FieldKind>) -> Self {
        match kind {
            Some(FieldKind::Type(id)) => Self::Type(id.get()),
            Some(FieldKind::Map(of)) => Self::Map(of),
            _ => Self::Any,
        }
    }

    fn items(kind: Option<&'a FieldKind>) -> Self {
        match kind {
            Some(FieldKind::List(of)) => Self::below(Some(of)),
            _ => Self::Any,
        }
    }
}

fn merge_map(mut original: Object, mut patch: Object, level: Level<'_>) -> Result<Object, Error> {
    if let Some(directive) = patch.remove(PATCH) {
        match directive.as_str() {
            Some("replace") => return Ok(without_directives(patch)),
            Some("delete") => return Ok(Object::new()),
            Some("merge") => {}
            _ => return Err(bad_directive(&directive, &patch)),
        }
    }
    if let Some(retained) = patch.remove(RETAIN_KEYS) {
        let retained = list(RETAIN_KEYS, retained)?;
        original.retain(|key, _| retained.iter().any(|one| one.as_str() == Some(key)));
    }
    let orders: Vec<String> =
        patch.keys().filter_map(|key| key.strip_prefix(ELEMENT_ORDER)).map(str::to_owned).collect();
    let deletions: Vec<String> =
        patch.keys().filter_map(|key| key.strip_prefix(DELETE_PRIMITIVES)).map(str::to_owned).collect();
    for field in deletions {
        let key = format!("{DELETE_PRIMITIVES}{field}");
        let gone = list(&key, patch.remove(&key).unwrap_or_default())?;
        if let Some(Value::Array(items)) = original.get_mut(&field) {
            items.retain(|item| !gone.contains(item));
        }
    }
    for field in orders {
        let key = format!("{ELEMENT_ORDER}{field}");
        let order = list(&key, patch.remove(&key).unwrap_or_default())?;
        let (kind, merge) = level.field(&field);
        let patched = match patch.remove(&field) {
            None => Vec::new(),
            Some(Value::Array(items)) => items,
            // A null deletes, whatever the order says.
            Some(other) => {
                patch.insert(field, other);
                continue;
            }
        };
        let held = match original.remove(&field) {
            Some(Value::Array(items)) => items,
            _ => Vec::new(),
        };
        let merged = merge_list(held, patched, Level::items(kind), merge, Some(order))?;
        original.insert(field, Value::Array(merged));
    }
    for (key, new) in patch {
        if new.is_null() {
            original.remove(&key);
            continue;
        }
        let (kind, merge) = level.field(&key);
        let merged = match (original.remove(&key), new) {
            (Some(Value::Object(old)), Value::Object(new)) => {
                if merge.is_some_and(|merge| !merge.merge && !merge.retain_keys) {
                    Value::Object(without_directives(new))
                } else {
                    Value::Object(merge_map(old, new, Level::below(kind))?)
                }
            }
            (Some(Value::Array(old)), Value::Array(new)) if merge.is_some_and(|merge| merge.merge) => {
                Value::Array(merge_list(old, new, Level::items(kind), merge, None)?)
            }
            (None, Value::Array(new)) if merge.is_some_and(|merge| merge.merge) => {
                Value::Array(merge_list(Vec::new(), new, Level::items(kind), merge, None)?)
            }
            // New here: merged into nothing, so that nulls and directives inside do their work.
            (None, Value::Object(new)) => Value::Object(merge_map(Object::new(), new, Level::below(kind))?),
            (_, new) => new,
        };
        original.insert(key, merged);
    }
    Ok(original)
}

fn merge_list(
    original: Vec<Value>,
    patch: Vec<Value>,
    items: Level<'_>,
    merge: Option<Merge>,
    order: Option<Vec<Value>>,
) -> Result<Vec<Value>, Error> {
    let key = merge.map_or("", |merge| merge.key);
    if key.is_empty() {
        return Ok(merge_scalars(original, patch, order));
    }
    let mut held = original.clone();
    let mut changes = Vec::new();
    let mut replace = false;
    for item in patch {
        let Value::Object(mut item) = item else {
            return Err(Error::Unclassified(format!("expected map, got: {}", go(&item))));
        };
        match item.get(PATCH).map(Value::as_str) {
            None => changes.push(item),
            Some(Some("delete")) => {
                let value = merge_key(&item, key)?.clone();
                held.retain(|one| one.get(key) != Some(&value));
            }
            Some(Some("replace")) => {
                replace = true;
                item.remove(PATCH);
                // On its own it only says that the rest replaces.
                if !item.is_empty() {
                    changes.push(item);
                }
            }
            Some(Some("merge")) => {
                return Err(Error::Unclassified("merging lists cannot yet be specified in the patch".to_owned()));
            }
            Some(_) => {
                let directive = item.get(PATCH).cloned().unwrap_or_default();
                return Err(bad_directive(&directive, &item));
            }
        }
    }
    if replace {
        return Ok(changes.into_iter().map(|item| Value::Object(without_directives(item))).collect());
    }
    let mut patched: Vec<Value> = Vec::new();
    for change in changes {
        let value = merge_key(&change, key)?.clone();
        // The same item twice in one patch: the second goes on where the first ended.
        let earlier = patched.iter().position(|one| one.get(key) == Some(&value));
        let base = match earlier {
            Some(index) => Some(patched.remove(index)),
            None => held.iter().position(|one| one.get(key) == Some(&value)).map(|index| held.remove(index)),
        };
        let base = match base {
            Some(Value::Object(base)) => base,
            _ => Object::new(),
        };
        let merged = Value::Object(merge_map(base, change, items)?);
        patched.insert(earlier.unwrap_or(patched.len()), merged);
    }
    let same = |one: &Value, other: &Value| one.get(key).is_some() && one.get(key) == other.get(key);
    Ok(in_order(held, patched, &original, order, same))
}

fn merge_scalars(original: Vec<Value>, patch: Vec<Value>, order: Option<Vec<Value>>) -> Vec<Value> {
    let mut held: Vec<Value> = Vec::new();
    for item in &original {
        if !patch.contains(item) && !held.contains(item) {
            held.push(item.clone());
        }
    }
    let mut patched: Vec<Value> = Vec::new();
    for item in patch {
        if !patched.contains(&item) {
            patched.push(item);
        }
    }
    in_order(held, patched, &original, order, |one, other| one == other)
}

/// Items of the patch in its order (or the one it asks for), among the others in theirs.
fn in_order(
    mut held: Vec<Value>,
    mut patched: Vec<Value>,
    original: &[Value],
    order: Option<Vec<Value>>,
    same: impl Fn(&Value, &Value) -> bool,
) -> Vec<Value> {
    if let Some(order) = &order {
        // What the order names counts as the patch's own.
        let (named, others) = held.into_iter().partition(|item| order.iter().any(|one| same(one, item)));
        held = others;
        let named: Vec<Value> = named;
        patched.extend(named);
        patched.sort_by_key(|item| order.iter().position(|one| same(one, item)).unwrap_or(usize::MAX));
    }
    let place = |item: &Value| original.iter().position(|one| same(one, item));
    let mut merged = Vec::with_capacity(held.len() + patched.len());
    let (mut held, mut patched) = (held.into_iter().peekable(), patched.into_iter().peekable());
    while let (Some(left), Some(right)) = (held.peek(), patched.peek()) {
        let before = matches!((place(left), place(right)), (Some(left), Some(right)) if left < right);
        merged.extend(if before { held.next() } else { patched.next() });
    }
    merged.extend(held);
    merged.extend(patched);
    merged
}

fn merge_key<'a>(item: &'a Object, key: &str) -> Result<&'a Value, Error> {
    item.get(key).ok_or_else(|| {
        let map = go(&Value::Object(item.clone()));
        Error::Unclassified(format!("map: {map} does not contain declared merge key: {key}"))
    })
}

fn list(field: &str, value: Value) -> Result<Vec<Value>, Error> {
    match value {
        Value::Array(items) => Ok(items),
        other => Err(Error::Unclassified(format!("{field} must be a list, got: {}", go(&other)))),
    }
}

fn bad_directive(directive: &Value, of: &Object) -> Error {
    let mut of = of.clone();
    of.insert(PATCH.to_owned(), directive.clone());
    Error::Unclassified(format!("unknown patch type: {} in map: {}", go(directive), go(&Value::Object(of))))
}

/// What replaces is taken as it is, less what only says how.
fn without_directives(object: Object) -> Object {
    object
        .into_iter()
        .filter(|(key, value)| {
            let directive = key == PATCH
                || key == RETAIN_KEYS
                || key.starts_with(DELETE_PRIMITIVES)
                || key.starts_with(ELEMENT_ORDER);
            !directive && !value.is_null()
        })
        .collect()
}

/// A value as Go's `%v` prints it: clients know messages in this form.
fn go(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(go).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let entries: Vec<String> = map.iter().map(|(key, value)| format!("{key}:{}", go(value))).collect();
            format!("map[{}]", entries.join(" "))
        }
        scalar => scalar.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::schema::Schema;

    fn patched(original: Value, patch: Value) -> Result<Value, String> {
        let of = Schema::get().type_("io.k8s.api.core.v1.PodSpec").unwrap();
        strategic_merge(of, &original, patch.to_string().as_bytes()).map_err(|error| error.to_string())
    }

    fn two() -> Value {
        json!({ "containers": [{ "name": "a", "image": "x:1", "ports": [{ "containerPort": 80 }] }, { "name": "b", "image": "y:1" }] })
    }

    fn names(spec: &Value) -> Vec<&str> {
        spec["containers"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect()
    }

    #[test]
    fn items_merge_by_their_key() {
        let spec = patched(two(), json!({ "containers": [{ "name": "a", "image": "x:2" }] })).unwrap();
        assert_eq!(spec["containers"][0], json!({ "name": "a", "image": "x:2", "ports": [{ "containerPort": 80 }] }));
        assert_eq!(names(&spec), ["a", "b"]);
    }

    #[test]
    fn new_items_come_first_unless_an_order_is_set() {
        let spec = patched(two(), json!({ "containers": [{ "name": "z" }] })).unwrap();
        assert_eq!(names(&spec), ["z", "a", "b"]);
        let order = json!([{ "name": "b" }, { "name": "a" }]);
        let spec = patched(
            two(),
            json!({ "$setElementOrder/containers": order, "containers": [{ "name": "a", "image": "x:3" }] }),
        );
        assert_eq!(names(&spec.unwrap()), ["b", "a"]);
    }

    #[test]
    fn directives() {
        let gone = patched(two(), json!({ "containers": [{ "name": "a", "$patch": "delete" }] })).unwrap();
        assert_eq!(names(&gone), ["b"]);
        let replaced = patched(two(), json!({ "containers": [{ "$patch": "replace" }, { "name": "c" }] })).unwrap();
        assert_eq!(names(&replaced), ["c"]);
        let volumes = json!({ "volumes": [{ "name": "v", "emptyDir": {} }] });
        let kept =
            json!({ "volumes": [{ "name": "v", "$retainKeys": ["name", "configMap"], "configMap": { "name": "c" } }] });
        assert_eq!(
            patched(volumes, kept).unwrap(),
            json!({ "volumes": [{ "name": "v", "configMap": { "name": "c" } }] })
        );
        let context = json!({ "securityContext": { "runAsUser": 1, "fsGroup": 2 } });
        let replaced = patched(context, json!({ "securityContext": { "$patch": "replace", "runAsUser": 3 } })).unwrap();
        assert_eq!(replaced, json!({ "securityContext": { "runAsUser": 3 } }));
    }

    #[test]
    fn lists_without_a_key_are_replaced_and_nulls_delete() {
        let original = json!({ "tolerations": [{ "key": "a" }], "nodeSelector": { "a": "b", "c": "d" } });
        let spec =
            patched(original, json!({ "tolerations": [{ "key": "b" }], "nodeSelector": { "a": null } })).unwrap();
        assert_eq!(spec, json!({ "tolerations": [{ "key": "b" }], "nodeSelector": { "c": "d" } }));
    }

    #[test]
    fn errors_are_the_references() {
        assert_eq!(
            patched(two(), json!({ "containers": [{ "$patch": "explode", "name": "a" }] })).unwrap_err(),
            "unknown patch type: explode in map: map[$patch:explode name:a]"
        );
        assert_eq!(
            patched(two(), json!({ "containers": [{ "image": "nokey" }] })).unwrap_err(),
            "map: map[image:nokey] does not contain declared merge key: name"
        );
    }

    fn spec() -> impl Strategy<Value = Value> {
        let container = ("[a-d]", "[x-z]").prop_map(|(name, image)| (name, image));
        (
            prop::collection::btree_map("[a-d]", "[x-z]", 0..4),
            prop::collection::btree_map("[a-d]", "[x-z]", 0..3),
            container,
        )
            .prop_map(|(containers, selector, _)| {
                let containers: Vec<Value> =
                    containers.iter().map(|(name, image)| json!({ "name": name, "image": image })).collect();
                json!({ "containers": containers, "nodeSelector": selector })
            })
    }

    proptest! {
        /// A patch applied twice is a patch applied once, and an empty one changes nothing.
        #[test]
        fn idempotent(original in spec(), patch in spec()) {
            let once = patched(original.clone(), patch.clone()).unwrap();
            prop_assert_eq!(&patched(once.clone(), patch).unwrap(), &once);
            prop_assert_eq!(&patched(original.clone(), json!({})).unwrap(), &original);
        }

        #[test]
        fn every_item_of_both_is_there(original in spec(), patch in spec()) {
            let merged = patched(original.clone(), patch.clone()).unwrap();
            for side in [&original, &patch] {
                for name in names(side) {
                    prop_assert!(names(&merged).contains(&name));
                }
            }
        }
    }
}
