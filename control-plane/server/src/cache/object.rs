//! One object in the form everybody shares: encoded once, with what selectors need kept beside.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};
use sampan_api::Kind;
use sampan_api::kind::SelectableField;
use sampan_store::{Change, Revision};
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

/// An object at one revision. The buffer holds a whole watch frame,
/// `{"type":"ADDED","object":{"kind":…,"apiVersion":…,"metadata":{"resourceVersion":…}}}\n`;
/// what a get, a list or a watcher sends are slices of it.
#[derive(Debug)]
pub struct Object {
    pub namespace: Box<str>,
    pub name: Box<str>,
    pub uid: Box<str>,
    /// Sorted by key: a map of so few is mostly room.
    labels: Box<[(Box<str>, Box<str>)]>,
    /// Values of the kind's selectable fields, in their order.
    pub fields: Box<[String]>,
    pub revision: Revision,
    pub created: Revision,
    frame: Bytes,
    /// Where the object begins in the frame.
    start: usize,
    /// Where its `"metadata":` begins.
    metadata: usize,
}

/// What every object has and selectors look at.
#[derive(Deserialize, Default)]
struct Shape {
    #[serde(default)]
    metadata: Meta,
}

#[derive(Deserialize, Default)]
struct Meta {
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    uid: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

/// Of every object, beside the fields of its kind.
const IDENTITY: &[&str] = &["metadata.name", "metadata.namespace", "metadata.uid", "metadata.labels"];

/// Reads no more of an object than its identity and the selectable fields: the rest is skipped over.
fn pick(stored: &[u8], fields: &[SelectableField]) -> serde_json::Result<Value> {
    let paths: Vec<&str> = IDENTITY.iter().copied().chain(fields.iter().map(|field| field.path)).collect();
    let mut json = serde_json::Deserializer::from_slice(stored);
    let value = Pick(&paths).deserialize(&mut json)?;
    json.end()?;
    Ok(value)
}

/// A key of a map, copied only where the text escapes some of it.
#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

/// What is left of a path below a key, if it leads there.
fn below<'a>(path: &'a str, key: &str) -> Option<&'a str> {
    match path.strip_prefix(key)? {
        "" => Some(""),
        rest => rest.strip_prefix('.'),
    }
}

/// What is left of the wanted paths below a map.
struct Pick<'a>(&'a [&'a str]);

impl<'de> DeserializeSeed<'de> for Pick<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        // What is wanted as a whole ends the paths that lead to it.
        if self.0.contains(&"") { Value::deserialize(from) } else { from.deserialize_any(self) }
    }
}

impl<'de> Visitor<'de> for Pick<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let mut picked = Map::new();
        while let Some(Key(key)) = from.next_key::<Key<'_>>()? {
            let paths: Vec<&str> = self.0.iter().filter_map(|path| below(path, &key)).collect();
            if paths.is_empty() {
                from.next_value::<IgnoredAny>()?;
            } else {
                let value = from.next_value_seed(Pick(&paths))?;
                picked.insert(key.into_owned(), value);
            }
        }
        Ok(Value::Object(picked))
    }

    // Where a map was thought to be, anything else has nothing to pick.
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        while from.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Null)
    }
}

const FRAME_END: &[u8] = b"}\n";
const METADATA: &[u8] = b",\"metadata\":{";

/// The word of a watch event.
pub fn event_type(change: Change) -> &'static str {
    match change {
        Change::Created => "ADDED",
        Change::Updated => "MODIFIED",
        Change::Deleted => "DELETED",
    }
}

/// The stored form: kind and apiVersion first, then the metadata without a resourceVersion.
pub fn encode(kind: &Kind, object: &Value) -> Bytes {
    let mut out = Vec::with_capacity(1024);
    out.extend_from_slice(format!("{{\"kind\":\"{}\",\"apiVersion\":\"{}\"", kind.kind, kind.api_version()).as_bytes());
    out.extend_from_slice(METADATA);
    let mut first = true;
    let member = |out: &mut Vec<u8>, key: &str, value: &Value, first: &mut bool| {
        if !*first {
            out.push(b',');
        }
        *first = false;
        // Strings and values always encode.
        let _ = serde_json::to_writer(&mut *out, key);
        out.push(b':');
        let _ = serde_json::to_writer(&mut *out, value);
    };
    if let Some(metadata) = object.get("metadata").and_then(Value::as_object) {
        for (key, value) in metadata.iter().filter(|(key, _)| *key != "resourceVersion") {
            member(&mut out, key, value, &mut first);
        }
    }
    out.push(b'}');
    first = false;
    for (key, value) in object.as_object().into_iter().flatten() {
        if !matches!(key.as_str(), "kind" | "apiVersion" | "metadata") {
            member(&mut out, key, value, &mut first);
        }
    }
    out.push(b'}');
    Bytes::from(out)
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

#[derive(Debug, thiserror::Error)]
#[error("stored value of {key} is not an object: {reason}")]
pub struct Malformed {
    pub key: String,
    pub reason: String,
}

impl Object {
    /// Takes what the store holds and puts the revision in.
    pub fn new(
        kind: &Kind,
        key: &str,
        stored: &[u8],
        change: Change,
        created: Revision,
        revision: Revision,
    ) -> Result<Self, Malformed> {
        let malformed = |reason: String| Malformed { key: key.to_owned(), reason };
        let value = pick(stored, kind.selectable_fields).map_err(|e| malformed(e.to_string()))?;
        let fields = kind.selectable_fields.iter().map(|field| (field.get)(&value)).collect();
        let shape = Shape::deserialize(value).map_err(|e| malformed(e.to_string()))?;
        let metadata = find(stored, METADATA).ok_or_else(|| malformed("it has no metadata".to_owned()))?;
        let version = revision.to_string();
        let head = event_type(change);
        let mut frame = BytesMut::with_capacity(stored.len() + version.len() + head.len() + 48);
        frame.put_slice(b"{\"type\":\"");
        frame.put_slice(head.as_bytes());
        frame.put_slice(b"\",\"object\":");
        let start = frame.len();
        let (before, after) = stored.split_at(metadata + METADATA.len());
        frame.put_slice(before);
        frame.put_slice(b"\"resourceVersion\":\"");
        frame.put_slice(version.as_bytes());
        frame.put_slice(if after.starts_with(b"}") { b"\"" } else { b"\"," });
        frame.put_slice(after);
        frame.put_slice(FRAME_END);
        Ok(Self {
            namespace: shape.metadata.namespace.into(),
            name: shape.metadata.name.into(),
            uid: shape.metadata.uid.into(),
            labels: shape.metadata.labels.into_iter().map(|(key, value)| (key.into(), value.into())).collect(),
            fields,
            revision,
            created,
            frame: frame.freeze(),
            start,
            metadata: start + metadata + 1,
        })
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        let at = self.labels.binary_search_by(|(own, _)| (**own).cmp(key)).ok()?;
        self.labels.get(at).map(|(_, value)| &**value)
    }

    /// The whole object.
    pub fn bytes(&self) -> Bytes {
        self.frame.slice(self.start..self.frame.len() - FRAME_END.len())
    }

    /// What follows `{` in a typed list: the object without kind and apiVersion.
    pub fn list_item(&self) -> Bytes {
        self.frame.slice(self.metadata..self.frame.len() - FRAME_END.len())
    }

    /// A line of a watch. Shared as it is where the event is the one the write made.
    pub fn frame(&self, change: Change) -> Bytes {
        let head = format!("{{\"type\":\"{}\",\"object\":", event_type(change));
        if self.frame.starts_with(head.as_bytes()) {
            return self.frame.clone();
        }
        let mut out = BytesMut::with_capacity(self.frame.len() + 4);
        out.put_slice(head.as_bytes());
        out.put_slice(self.frame.get(self.start..).unwrap_or_default());
        out.freeze()
    }

    /// The same object under another revision: what a watcher is shown of an object that left its
    /// selection.
    pub fn frame_at(&self, change: Change, revision: Revision) -> Bytes {
        let mut value = self.value();
        set_version(&mut value, revision);
        let head = event_type(change);
        let body = serde_json::to_string(&value).unwrap_or_default();
        Bytes::from(format!("{{\"type\":\"{head}\",\"object\":{body}}}\n"))
    }

    /// The object, decoded. What the cache holds has been decoded before, so it decodes.
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.bytes()).unwrap_or(Value::Null)
    }

    /// How much memory it holds, roughly.
    pub fn size(&self) -> usize {
        self.frame.len() + 256
    }
}

pub fn set_version(value: &mut Value, revision: Revision) {
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("resourceVersion".to_owned(), revision.to_string().into());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use sampan_api::kinds;
    use serde_json::json;

    use super::*;

    /// Anything under the names that fields have, and under others.
    fn tree(keys: Vec<String>) -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            any::<f32>().prop_filter("JSON has no others", |it| it.is_finite()).prop_map(Value::from),
            "\\PC{0,6}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 6, move |inner| {
            let key = prop_oneof![3 => proptest::sample::select(keys.clone()), 1 => "\\PC{0,6}"];
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                proptest::collection::btree_map(key, inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_picked_is_all_that_fields_read(
            kind in 0..kinds::ALL.len(),
            values in proptest::collection::vec(tree(
                kinds::ALL.iter().flat_map(|kind| kind.selectable_fields).flat_map(|field| field.path.split('.'))
                    .chain(["ip", "component"]).map(str::to_owned).collect(),
            ), 3),
        ) {
            let [metadata, spec, status] = values.try_into().unwrap();
            let mut object = json!({ "reason": spec.clone(), "source": status.clone(), "involvedObject": spec.clone() });
            object["metadata"] = metadata;
            object["spec"] = spec;
            object["status"] = status;
            let fields = kinds::ALL[kind].selectable_fields;
            let picked = pick(object.to_string().as_bytes(), fields).unwrap();
            // As it comes out of its text: a float may have another form there.
            let object: Value = serde_json::from_str(&object.to_string()).unwrap();
            for field in fields {
                prop_assert_eq!((field.get)(&picked), (field.get)(&object), "{}", field.path);
            }
            for path in IDENTITY {
                let pointer = format!("/{}", path.replace('.', "/"));
                if object["metadata"].is_object() {
                    prop_assert_eq!(picked.pointer(&pointer), object.pointer(&pointer));
                }
            }
        }
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for text in ["{", "{\"metadata\":{\"labels\":[1]}}", "7", "{}{}", ""] {
            let made = Object::new(&kinds::pod::KIND, "k", text.as_bytes(), Change::Created, 1, 1);
            assert!(made.is_err(), "{text}");
        }
    }
}
