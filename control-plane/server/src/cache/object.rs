//! One object in the form everybody shares: encoded once, with what selectors need kept beside.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};
use sampan_api::Kind;
use sampan_store::{Change, Revision};
use serde::Deserialize;
use serde_json::Value;

/// An object at one revision. The buffer holds a whole watch frame,
/// `{"type":"ADDED","object":{"kind":…,"apiVersion":…,"metadata":{"resourceVersion":…}}}\n`;
/// what a get, a list or a watcher sends are slices of it.
#[derive(Debug)]
pub struct Object {
    pub namespace: Box<str>,
    pub name: Box<str>,
    pub uid: Box<str>,
    pub labels: BTreeMap<String, String>,
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
        let (shape, fields) = if kind.selectable_fields.is_empty() {
            let shape: Shape = serde_json::from_slice(stored).map_err(|e| malformed(e.to_string()))?;
            (shape, Box::default())
        } else {
            let value: Value = serde_json::from_slice(stored).map_err(|e| malformed(e.to_string()))?;
            let fields = kind.selectable_fields.iter().map(|field| (field.get)(&value)).collect();
            let shape = Shape::deserialize(&value).map_err(|e| malformed(e.to_string()))?;
            (shape, fields)
        };
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
            labels: shape.metadata.labels,
            fields,
            revision,
            created,
            frame: frame.freeze(),
            start,
            metadata: start + metadata + 1,
        })
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
