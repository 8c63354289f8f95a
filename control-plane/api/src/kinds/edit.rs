//! Small changes to an object, for defaulting and preparation.

use serde_json::{Map, Value, json};

pub type Object = Map<String, Value>;

/// The object under a key, where there is one.
pub fn object<'a>(map: &'a mut Object, key: &str) -> Option<&'a mut Object> {
    map.get_mut(key)?.as_object_mut()
}

/// The object under a key, made where there is none.
pub fn ensure<'a>(map: &'a mut Object, key: &str) -> &'a mut Object {
    let value = map.entry(key).or_insert_with(|| json!({}));
    if !value.is_object() {
        *value = json!({});
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("made an object above"),
    }
}

/// The objects of a list under a key.
pub fn objects<'a>(map: &'a mut Object, key: &str) -> impl Iterator<Item = &'a mut Object> + use<'a> {
    map.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}

/// Sets a key that is absent or holds null.
pub fn default(map: &mut Object, key: &str, value: impl Into<Value>) {
    if map.get(key).is_none_or(Value::is_null) {
        map.insert(key.to_owned(), value.into());
    }
}

/// Sets a key that is absent or holds the empty text or zero.
pub fn default_zero(map: &mut Object, key: &str, value: impl Into<Value>) {
    let zero = match map.get(key) {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(Value::Number(number)) => number.as_i64() == Some(0),
        _ => false,
    };
    if zero {
        map.insert(key.to_owned(), value.into());
    }
}

pub fn text<'a>(map: &'a Object, key: &str) -> &'a str {
    map.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// Sets or, for `None`, removes a key.
pub fn put(map: &mut Object, key: &str, value: Option<&Value>) {
    match value {
        Some(value) => map.insert(key.to_owned(), value.clone()),
        None => map.remove(key),
    };
}

/// Takes over a part of the stored object.
pub fn keep(new: &mut Value, old: &Value, key: &str) {
    if let Some(map) = new.as_object_mut() {
        put(map, key, old.get(key));
    }
}

/// Takes over a part of the stored object's metadata.
pub fn keep_meta(new: &mut Value, old: &Value, key: &str) {
    if let Some(meta) = new.get_mut("metadata").and_then(Value::as_object_mut) {
        put(meta, key, old.get("metadata").and_then(|meta| meta.get(key)));
    }
}

pub fn generation(object: &Value) -> i64 {
    object.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or_default()
}

pub fn set_generation(object: &mut Value, generation: i64) {
    if let Some(map) = object.as_object_mut() {
        let meta = ensure(map, "metadata");
        if generation == 0 {
            meta.remove("generation");
        } else {
            meta.insert("generation".to_owned(), generation.into());
        }
    }
}

/// Keeps the stored generation, or counts it up where the specification changed.
pub fn count_generation(new: &mut Value, old: &Value, changed: bool) {
    set_generation(new, generation(old) + i64::from(changed));
}

/// Sets a part of the object.
pub fn set(object: &mut Value, key: &str, value: Value) {
    if let Some(map) = object.as_object_mut() {
        map.insert(key.to_owned(), value);
    }
}
