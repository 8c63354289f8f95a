//! Bodies to objects and back. A body (JSON, YAML, protobuf) becomes a canonical `Value`: what the
//! reference would print after decoding into its Go types, zero values dropped or kept as their
//! encoding does.

mod encode;
#[cfg(test)]
mod laws;
mod node;
mod proto;
mod time;
mod walk;
mod yaml;

use serde_json::Value;

use crate::schema::{Schema, TypeDef};
use crate::{Error, Kind};
use node::Node;

/// How a body is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MediaType {
    Json,
    Yaml,
    Protobuf,
}

/// What happens with unknown and duplicate fields: the `fieldValidation` of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

/// An object read from a body.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    pub object: Value,
    /// What was wrong with it but tolerated, each the text of a `Warning` header.
    pub warnings: Vec<String>,
}

/// What `canonicalize_type` made of a value.
#[derive(Clone, Debug, PartialEq)]
pub struct Canonical {
    pub object: Value,
    /// Unknown fields, as strict decoding words them: `unknown field "spec.x"`.
    pub strict: Vec<String>,
}

/// Reads an object of a kind. `apiVersion` and `kind` are filled in or checked.
///
/// Errors are `Error::BadRequest` with the reference's texts.
pub fn decode(kind: &Kind, body: &[u8], media: MediaType, mode: FieldValidation) -> Result<Decoded, Error> {
    decode_type(kind.schema, (kind.group, kind.version, kind.kind), body, media, mode)
}

/// As `decode`, for a body whose type is no stored kind (Scale, DeleteOptions, TokenRequest, …): the
/// OpenAPI name of its type, and its group, version and kind. A type with several kinds (DeleteOptions)
/// takes any of the group versions that a body may name.
pub fn decode_type(
    schema: &str,
    gvk: (&str, &str, &str),
    body: &[u8],
    media: MediaType,
    mode: FieldValidation,
) -> Result<Decoded, Error> {
    let of = type_of(schema)?;
    let converted;
    let mut yaml_strict = Vec::new();
    let document = match media {
        MediaType::Json => node::parse(body).map_err(Unread::Json),
        MediaType::Yaml => match yaml::convert(body) {
            Ok(document) => {
                yaml_strict = document.duplicates;
                converted = document.value;
                Ok(Node::from_value(&converted))
            }
            Err(error) => Err(Unread::Other(error)),
        },
        MediaType::Protobuf => return decode_protobuf(of, gvk, body),
    };
    let unread = |error: Unread| unrecognized(gvk.2, &error, body);
    let document = document.map_err(unread)?;
    let named = Named::read(&document, gvk).map_err(unread)?;
    let target = named.target(of, gvk)?;
    let mut strict = yaml_strict;
    let wanted = (mode != FieldValidation::Ignore).then_some(&mut strict);
    let object = walk::canonical(target, &document, wanted).map_err(|error| named.unhandled(gvk.2, &error))?;
    if mode == FieldValidation::Strict && !strict.is_empty() {
        return Err(named.unhandled(gvk.2, &format!("strict decoding error: {}", strict.join(", "))));
    }
    if mode == FieldValidation::Ignore {
        strict.clear();
    }
    named.check(gvk)?;
    Ok(Decoded { object: with_type_meta(object, of, gvk), warnings: strict })
}

fn decode_protobuf(of: &'static TypeDef, gvk: (&str, &str, &str), body: &[u8]) -> Result<Decoded, Error> {
    let unread = |error: String| unrecognized(gvk.2, &Unread::Other(error), body);
    let envelope = proto::envelope(body).map_err(unread)?;
    let named = Named::new(&envelope.api_version, &envelope.kind, gvk).map_err(unread)?;
    let target = named.target(of, gvk)?;
    let object = proto::decode(target, envelope.raw)
        .and_then(|document| walk::canonical(target, &document, None))
        .map_err(|error| named.unhandled(gvk.2, &error))?;
    named.check(gvk)?;
    Ok(Decoded { object: with_type_meta(object, of, gvk), warnings: Vec::new() })
}

/// Brings what a patch produced into canonical form. Errors are Go's texts, without the wrapping
/// that a patch puts around them.
pub fn canonicalize(kind: &Kind, value: &Value) -> Result<Canonical, String> {
    let mut canonical = canonicalize_type(kind.schema, value)?;
    if let Value::Object(map) = &mut canonical.object {
        map.insert("apiVersion".into(), kind.api_version().into());
        map.insert("kind".into(), kind.kind.into());
    }
    Ok(canonical)
}

/// As `canonicalize`, by the OpenAPI name of the type; leaves `apiVersion` and `kind` as they are.
pub fn canonicalize_type(schema: &str, value: &Value) -> Result<Canonical, String> {
    let of = Schema::get().type_(schema).ok_or_else(|| format!("no type {schema}"))?;
    let mut strict = Vec::new();
    let object = walk::canonical(of, &Node::from_value(value), Some(&mut strict))?;
    Ok(Canonical { object, strict })
}

/// An object as protobuf, in the envelope that clients expect.
pub fn encode_protobuf(of: &TypeDef, (group, version, kind): (&str, &str, &str), object: &Value) -> Vec<u8> {
    let empty = serde_json::Map::new();
    encode::envelope(of, &api_version(group, version), kind, object.as_object().unwrap_or(&empty))
}

/// The canonical form of a type's zero value: `{"metadata":{},"spec":{"containers":null},"status":{}}`.
pub fn zero(of: &TypeDef) -> Value {
    Value::Object(walk::zero_struct(of))
}

/// A YAML (or JSON) document as JSON, as sigs.k8s.io/yaml converts it. Errors are the reference's
/// texts (`yaml: line 1: …`).
pub fn yaml_to_json(body: &[u8]) -> Result<Value, String> {
    yaml::convert(body).map(|document| document.value)
}

/// A JSON document, with the reference's texts for errors and a limit to nesting.
pub fn json(body: &[u8]) -> Result<Value, String> {
    node::parse(body).map(|node| node.to_value())
}

/// A point in time as the API prints it: to the second, or as MicroTime.
pub fn print_time(time: jiff::Timestamp, micro: bool) -> String {
    time::print(time, micro)
}

/// A point in time from a field; `None` for what is none.
pub fn parse_time(text: &str) -> Option<jiff::Timestamp> {
    time::parse(text, false).ok().flatten()
}

fn type_of(schema: &str) -> Result<&'static TypeDef, Error> {
    Schema::get().type_(schema).ok_or_else(|| Error::Internal(format!("no type {schema} in the schema")))
}

fn with_type_meta(mut object: Value, of: &TypeDef, (group, version, kind): (&str, &str, &str)) -> Value {
    if let Value::Object(map) = &mut object
        && of.field("kind").is_some()
    {
        map.insert("apiVersion".into(), api_version(group, version).into());
        map.insert("kind".into(), kind.into());
    }
    object
}

fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// Why a body was given up before its kind was known.
enum Unread {
    Json(String),
    Other(String),
}

/// The error for a body of which not even the kind could be read.
fn unrecognized(kind: &str, error: &Unread, body: &[u8]) -> Error {
    let error = match error {
        Unread::Json(error) => format!("couldn't get version/kind; json parse error: {error}"),
        Unread::Other(error) => error.clone(),
    };
    let shown = body.get(..30).unwrap_or(body);
    let more = if body.len() > shown.len() { " ..." } else { "" };
    let summary = match body.first() {
        None => "<empty>".to_owned(),
        Some(b'{') => format!("{}{more}", String::from_utf8_lossy(shown)),
        Some(_) => {
            let hex: String = shown.iter().map(|b| format!("{b:02x}")).collect();
            format!("{hex}{more}")
        }
    };
    Error::BadRequest(format!("the object provided is unrecognized (must be of type {kind}): {error} ({summary})"))
}

/// Group, version and kind that a body names, filled in from what is expected.
struct Named {
    group: String,
    version: String,
    kind: String,
}

impl Named {
    fn read(document: &Node<'_>, wanted: (&str, &str, &str)) -> Result<Self, Unread> {
        let entries = match document {
            Node::Object(entries) => entries.as_slice(),
            Node::Null => &[],
            other => {
                let fields =
                    r#"APIVersion string "json:\"apiVersion,omitempty\""; Kind string "json:\"kind,omitempty\"""#;
                return Err(Unread::Json(format!(
                    "json: cannot unmarshal {} into Go value of type struct {{ {fields} }}",
                    other.kind()
                )));
            }
        };
        let text = |name: &str| -> Result<String, Unread> {
            let mut found = String::new();
            for (key, value) in entries.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name)) {
                match value {
                    Node::String(text) => found = text.to_string(),
                    Node::Null => {}
                    other => {
                        let _ = key;
                        return Err(Unread::Json(format!(
                            "json: cannot unmarshal {} into Go struct field .{name} of type string",
                            other.kind()
                        )));
                    }
                }
            }
            Ok(found)
        };
        Self::new(&text("apiVersion")?, &text("kind")?, wanted).map_err(Unread::Other)
    }

    fn new(api_version: &str, kind: &str, wanted: (&str, &str, &str)) -> Result<Self, String> {
        let (group, version) = match api_version.split_once('/') {
            _ if api_version == "/" => ("", ""),
            None => ("", api_version),
            Some((group, version)) if !version.contains('/') => (group, version),
            Some(_) => return Err(format!("unexpected GroupVersion string: {api_version}")),
        };
        let (group, version) = match (group, version) {
            ("", "") => (wanted.0, wanted.1),
            (group, "") if group == wanted.0 => (group, wanted.1),
            named => named,
        };
        let kind = if kind.is_empty() { wanted.2 } else { kind };
        Ok(Self { group: group.into(), version: version.into(), kind: kind.into() })
    }

    /// The type a body is read as: of the kind it names, even if that is not what is wanted.
    fn target(&self, of: &'static TypeDef, wanted: (&str, &str, &str)) -> Result<&'static TypeDef, Error> {
        let options = self.kind == wanted.2 && of.short_name() == "DeleteOptions";
        if self.is(wanted) || options || self.old(wanted) {
            return Ok(of);
        }
        Schema::get().kind(&self.group, &self.version, &self.kind).ok_or_else(|| {
            let version = api_version(&self.group, &self.version);
            let error = format!(
                "no kind \"{}\" is registered for version \"{version}\" in scheme \"pkg/api/legacyscheme/scheme.go:30\"",
                self.kind
            );
            self.unhandled(wanted.2, &error)
        })
    }

    fn is(&self, wanted: (&str, &str, &str)) -> bool {
        (self.group.as_str(), self.version.as_str(), self.kind.as_str()) == wanted
    }

    /// Whether it is a version of the wanted kind that is read but served no longer.
    fn old(&self, wanted: (&str, &str, &str)) -> bool {
        let old = (self.group.as_str(), self.version.as_str(), wanted.0);
        self.kind == wanted.2
            && match wanted.2 {
                "DaemonSet" | "ReplicaSet" => old != ("apps", "v1beta1", "apps") && OLD.contains(&old),
                "StatefulSet" | "ControllerRevision" => old.0 != "extensions" && OLD.contains(&old),
                _ => OLD.contains(&old),
            }
    }

    fn unhandled(&self, wanted: &str, error: &str) -> Error {
        Error::BadRequest(format!(
            "{} in version \"{}\" cannot be handled as a {wanted}: {error}",
            self.kind, self.version
        ))
    }

    /// That the kind read is the one wanted, after its decoding succeeded.
    fn check(&self, wanted: (&str, &str, &str)) -> Result<(), Error> {
        if self.is(wanted) || wanted.2 == "DeleteOptions" && self.kind == wanted.2 {
            return Ok(());
        }
        if self.old(wanted) || self.kind == wanted.2 && internal(&self.group) == internal(wanted.0) {
            return Err(Error::BadRequest(format!(
                "the API version in the data ({}) does not match the expected API version ({})",
                api_version(&self.group, &self.version),
                api_version(wanted.0, wanted.1)
            )));
        }
        let error = format!(
            "converting ({}.{}) to ({}.{}): unknown conversion",
            self.version,
            self.kind,
            internal(wanted.0),
            wanted.2
        );
        Err(self.unhandled(wanted.2, &error))
    }
}

/// Group versions of old, and the group where their kinds are now.
const OLD: &[(&str, &str, &str)] = &[
    ("apps", "v1beta1", "apps"),
    ("apps", "v1beta2", "apps"),
    ("extensions", "v1beta1", "apps"),
    ("extensions", "v1beta1", "networking.k8s.io"),
    ("batch", "v1beta1", "batch"),
    ("coordination.k8s.io", "v1beta1", "coordination.k8s.io"),
    ("discovery.k8s.io", "v1beta1", "discovery.k8s.io"),
    ("events.k8s.io", "v1beta1", "events.k8s.io"),
    ("events.k8s.io", "v1beta1", ""),
    ("networking.k8s.io", "v1beta1", "networking.k8s.io"),
    ("node.k8s.io", "v1alpha1", "node.k8s.io"),
    ("node.k8s.io", "v1beta1", "node.k8s.io"),
    ("policy", "v1beta1", "policy"),
    ("rbac.authorization.k8s.io", "v1beta1", "rbac.authorization.k8s.io"),
    ("scheduling.k8s.io", "v1beta1", "scheduling.k8s.io"),
    ("storage.k8s.io", "v1beta1", "storage.k8s.io"),
];

/// The Go package of a group's internal types.
fn internal(group: &str) -> &str {
    match group {
        "" | "events.k8s.io" => "core",
        _ => group.split('.').next().unwrap_or(group),
    }
}
