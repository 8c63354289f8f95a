//! Laws of the codec, on objects made up along the schema.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;
use crate::schema::FieldKind;

/// Choices drawn from random bytes; when they run out everything is as small as can be.
struct Choices<'a>(std::slice::Iter<'a, u8>);

impl Choices<'_> {
    fn next(&mut self) -> u8 {
        self.0.next().copied().unwrap_or(0)
    }
}

fn object(of: &TypeDef, choices: &mut Choices<'_>, depth: usize) -> Value {
    let mut map = Map::new();
    let count = usize::from(choices.next() % 5);
    for _ in 0..count {
        let at = usize::from(choices.next()) % of.fields.len().max(1);
        if let Some(field) = of.fields.get(at)
            && field.tags != 0
            && let Some(value) = make(&field.kind, choices, depth + 1)
        {
            map.insert(field.name.into(), value);
        }
    }
    Value::Object(map)
}

fn make(kind: &FieldKind, choices: &mut Choices<'_>, depth: usize) -> Option<Value> {
    if depth > 8 {
        return None;
    }
    let seed = choices.next();
    Some(match kind {
        FieldKind::Bool => json!(seed & 1 == 1),
        FieldKind::Int32 => json!(i32::from(seed) * 7_654_321 - 900_000_000),
        FieldKind::Int64 => {
            json!(i64::from(seed) * 34_567_890_123_456_789 - 4_000_000_000_000_000_000)
        }
        FieldKind::Double => json!(f64::from(seed) / 8.0),
        FieldKind::String => json!(["", "a", "é\n", "x.y/z"][usize::from(seed) % 4]),
        FieldKind::Bytes => json!(["", "YQ==", "AAECAw=="][usize::from(seed) % 3]),
        FieldKind::Time => {
            json!(["2024-02-29T12:30:00Z", "1969-12-31T23:59:59Z"][usize::from(seed) % 2])
        }
        FieldKind::MicroTime => {
            json!(["2024-02-29T12:30:00.000001Z", "1969-12-31T23:59:59.250000Z"][usize::from(seed) % 2])
        }
        FieldKind::Quantity => json!(["0", "100m", "1Gi", "1.5", "1e3"][usize::from(seed) % 5]),
        FieldKind::IntOrString => [json!(0), json!(8080), json!("http"), json!("")][usize::from(seed) % 4].clone(),
        FieldKind::Any => json!({"a": [1, {"b": null}], "c": seed}),
        FieldKind::Type(of) => object(of.get(), choices, depth),
        FieldKind::List(of) => (0..seed % 3).filter_map(|_| make(of, choices, depth + 1)).collect(),
        FieldKind::Map(of) => {
            let entries = (0..seed % 3).filter_map(|i| Some((format!("k{i}"), make(of, choices, depth + 1)?)));
            Value::Object(entries.collect())
        }
    })
}

/// Types with every encoding in them.
const TYPES: &[&str] = &[
    "io.k8s.api.core.v1.Pod",
    "io.k8s.api.core.v1.Secret",
    "io.k8s.api.core.v1.Node",
    "io.k8s.api.core.v1.Service",
    "io.k8s.api.core.v1.Event",
    "io.k8s.api.apps.v1.Deployment",
    "io.k8s.api.batch.v1.Job",
    "io.k8s.api.coordination.v1.Lease",
    "io.k8s.api.discovery.v1.EndpointSlice",
    "io.k8s.api.networking.v1.NetworkPolicy",
    "io.k8s.api.authorization.v1.SubjectAccessReview",
    "io.k8s.api.core.v1.PersistentVolume",
    "io.k8s.api.admissionregistration.v1.ValidatingWebhookConfiguration",
];

/// Puts something of another kind, or of no form at all, in one place.
fn spoil(value: &mut Value, choices: &mut Choices<'_>) {
    let others =
        [json!(null), json!("x"), json!(-1.5), json!(true), json!([]), json!({"x": []}), json!("1Zi"), json!([null])];
    match value {
        Value::Object(map) if !map.is_empty() && !choices.next().is_multiple_of(6) => {
            let at = usize::from(choices.next()) % map.len();
            map.values_mut().nth(at).into_iter().for_each(|inner| spoil(inner, choices));
        }
        Value::Array(items) if !items.is_empty() && !choices.next().is_multiple_of(6) => {
            let at = usize::from(choices.next()) % items.len();
            items.get_mut(at).into_iter().for_each(|inner| spoil(inner, choices));
        }
        value => *value = others[usize::from(choices.next()) % others.len()].clone(),
    }
}

fn gvk(of: &'static TypeDef) -> (&'static str, &'static str, &'static str) {
    *of.kinds.first().unwrap()
}

proptest! {
    #[test]
    fn canonical_form_is_stable(at in 0..TYPES.len(), bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let of = Schema::get().type_(TYPES[at]).unwrap();
        let made = object(of, &mut Choices(bytes.iter()), 0);
        let first = canonicalize_type(of.name, &made).unwrap();
        prop_assert!(first.strict.is_empty(), "{:?} in {made}", first.strict);
        let second = canonicalize_type(of.name, &first.object).unwrap();
        prop_assert_eq!(&second.object, &first.object);
        // As JSON, YAML and protobuf a body says the same.
        let json = serde_json::to_vec(&made).unwrap();
        let gvk = gvk(of);
        let strict = FieldValidation::Strict;
        let decoded = decode_type(of.name, gvk, &json, MediaType::Json, strict).unwrap();
        prop_assert_eq!(&decode_type(of.name, gvk, &json, MediaType::Yaml, strict).unwrap(), &decoded);
        let protobuf = encode_protobuf(of, gvk, &decoded.object);
        let back = decode_type(of.name, gvk, &protobuf, MediaType::Protobuf, strict).unwrap();
        prop_assert_eq!(back.object, decoded.object);
    }

    #[test]
    fn no_body_panics(at in 0..TYPES.len(), bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let of = Schema::get().type_(TYPES[at]).unwrap();
        let mut choices = Choices(bytes.iter());
        let mut made = object(of, &mut choices, 0);
        spoil(&mut made, &mut choices);
        let json = serde_json::to_vec(&made).unwrap();
        for media in [MediaType::Json, MediaType::Yaml] {
            let _ = decode_type(of.name, gvk(of), &json, media, FieldValidation::Warn);
        }
        if let Ok(canonical) = canonicalize_type(of.name, &made) {
            prop_assert_eq!(canonicalize_type(of.name, &canonical.object).unwrap().object, canonical.object);
        }
    }

    #[test]
    fn no_protobuf_panics(
        at in 0..TYPES.len(),
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        cut in any::<prop::sample::Index>(),
        flip in any::<u8>(),
    ) {
        let of = Schema::get().type_(TYPES[at]).unwrap();
        let made = canonicalize_type(of.name, &object(of, &mut Choices(bytes.iter()), 0)).unwrap().object;
        let mut body = encode_protobuf(of, gvk(of), &made);
        let at = cut.index(body.len());
        if flip & 1 == 0 {
            body.truncate(at);
        } else {
            body[at] ^= flip;
        }
        let _ = decode_type(of.name, gvk(of), &body, MediaType::Protobuf, FieldValidation::Warn);
        let raw = [b"k8s\0".as_slice(), &bytes].concat();
        let _ = decode_type(of.name, gvk(of), &raw, MediaType::Protobuf, FieldValidation::Warn);
    }
}

fn pod(body: &str) -> String {
    let of = "io.k8s.api.core.v1.Pod";
    let decoded = decode_type(of, ("", "v1", "Pod"), body.as_bytes(), MediaType::Json, FieldValidation::Strict);
    decoded.map_or_else(|e| e.to_string(), |d| d.object.to_string())
}

#[test]
fn type_errors_are_worded_as_go_words_them() {
    for (body, error) in [
        (
            r#"{"spec":{"containers":[{"name":5}]}}"#,
            "number into Go struct field Container.spec.containers.name of type string",
        ),
        (
            r#"{"spec":{"containers":["x"]}}"#,
            "string into Go struct field PodSpec.spec.containers of type v1.Container",
        ),
        (r#"{"spec":{"containers":{}}}"#, "object into Go struct field PodSpec.spec.containers of type []v1.Container"),
        (r#"{"spec":[]}"#, "array into Go struct field Pod.spec of type v1.PodSpec"),
        (r#"{"metadata":{"labels":{"a":1}}}"#, "number into Go struct field ObjectMeta.metadata.labels of type string"),
        (
            r#"{"metadata":{"labels":[]}}"#,
            "array into Go struct field ObjectMeta.metadata.labels of type map[string]string",
        ),
        (
            r#"{"metadata":{"creationTimestamp":1}}"#,
            "number into Go struct field ObjectMeta.metadata.creationTimestamp of type string",
        ),
        (r#"{"spec":{"priority":"x"}}"#, "string into Go struct field PodSpec.spec.priority of type int32"),
        (r#"{"spec":{"priority":1.5}}"#, "number 1.5 into Go struct field PodSpec.spec.priority of type int32"),
        (
            r#"{"spec":{"containers":[{"ports":[{"containerPort":99999999999}]}]}}"#,
            "number 99999999999 into Go struct field ContainerPort.spec.containers.ports.containerPort of type int32",
        ),
        (
            r#"{"spec":{"containers":[{"imagePullPolicy":1}]}}"#,
            "number into Go struct field Container.spec.containers.imagePullPolicy of type v1.PullPolicy",
        ),
        (
            r#"{"spec":{"containers":[{"livenessProbe":{"httpGet":{"port":true}}}]}}"#,
            "bool into Go struct field HTTPGetAction.spec.containers.livenessProbe.httpGet.port of type int32",
        ),
        (
            r#"{"spec":{"containers":[{"resources":{"limits":[]}}]}}"#,
            "array into Go struct field ResourceRequirements.spec.containers.resources.limits of type v1.ResourceList",
        ),
        // The first of several; but one that ends the decoding goes before it.
        (
            r#"{"metadata":{"name":1},"spec":{"priority":"x"}}"#,
            "number into Go struct field ObjectMeta.metadata.name of type string",
        ),
    ] {
        let want = format!("Pod in version \"v1\" cannot be handled as a Pod: json: cannot unmarshal {error}");
        assert_eq!(pod(body), want, "{body}");
    }
}

#[test]
fn other_faults() {
    for (body, error) in [
        (
            r#"{"metadata":{"name":1},"spec":{"overhead":{"cpu":"x"}}}"#,
            "Pod in version \"v1\" cannot be handled as a Pod: quantities must match the regular expression \
             '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
        (
            r#"{"kind":"Nothing"}"#,
            "Nothing in version \"v1\" cannot be handled as a Pod: no kind \"Nothing\" is registered for version \"v1\" in \
             scheme \"pkg/api/legacyscheme/scheme.go:30\"",
        ),
        (
            r#"{"apiVersion":"a/b/c"}"#,
            "the object provided is unrecognized (must be of type Pod): unexpected GroupVersion string: a/b/c \
             ({\"apiVersion\":\"a/b/c\"})",
        ),
        (
            r#"{"kind":1}"#,
            "the object provided is unrecognized (must be of type Pod): couldn't get version/kind; json parse error: json: \
             cannot unmarshal number into Go struct field .kind of type string ({\"kind\":1})",
        ),
        (
            r#"{"spec":{"containers":[{"name":"a","name":"b","Image":"x"}],"nodeSelector":{"a":"b","a":"c"}}}"#,
            "Pod in version \"v1\" cannot be handled as a Pod: strict decoding error: duplicate field \
             \"spec.containers[0].name\", unknown field \"spec.containers[0].Image\", duplicate field \
             \"spec.nodeSelector.a\"",
        ),
    ] {
        assert_eq!(pod(body), error, "{body}");
    }
    let deployment = |api_version: &str| {
        let body = format!("{{\"apiVersion\":\"{api_version}\",\"kind\":\"Deployment\"}}");
        let of = "io.k8s.api.apps.v1.Deployment";
        decode_type(of, ("apps", "v1", "Deployment"), body.as_bytes(), MediaType::Json, FieldValidation::Strict)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        deployment("extensions/v1beta1"),
        "the API version in the data (extensions/v1beta1) does not match the expected API version (apps/v1)"
    );
    assert_eq!(
        deployment("v1"),
        "Deployment in version \"v1\" cannot be handled as a Deployment: no kind \"Deployment\" is registered for version \
         \"v1\" in scheme \"pkg/api/legacyscheme/scheme.go:30\""
    );
    let event = |api_version: &str| {
        let body = format!("{{\"apiVersion\":\"{api_version}\",\"kind\":\"Event\"}}");
        let of = "io.k8s.api.core.v1.Event";
        let decoded = decode_type(of, ("", "v1", "Event"), body.as_bytes(), MediaType::Json, FieldValidation::Strict);
        decoded.map_or_else(|e| e.to_string(), |_| String::new())
    };
    assert_eq!(event("v1"), "");
    assert_eq!(
        event("events.k8s.io/v1"),
        "the API version in the data (events.k8s.io/v1) does not match the expected API version (v1)"
    );
}

#[test]
fn zero_values_are_kept_where_go_keeps_them() {
    let got: Value = serde_json::from_str(&pod(
        r#"{"metadata":{"name":"x","labels":{},"creationTimestamp":null},
            "spec":{"containers":[{"name":"a","image":"","stdin":false,"resources":{"limits":{"cpu":0.5}}}],"hostNetwork":false,
            "priority":0,"automountServiceAccountToken":false,"volumes":[],"securityContext":{},"nodeName":""}}"#,
    ))
    .unwrap();
    assert_eq!(
        got,
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "x"},
            "spec": {
                "containers": [{"name": "a", "resources": {"limits": {"cpu": "500m"}}}],
                "priority": 0, "automountServiceAccountToken": false, "securityContext": {},
            },
            "status": {},
        })
    );
}

#[test]
fn protobuf_of_a_client_is_read() {
    // metadata {name: "x"}, spec {finalizers: ["kubernetes"]}, as a client writes a Namespace: every plain field.
    let meta = b"\x0a\x01x\x12\x00\x1a\x00\x22\x00\x2a\x00\x32\x00\x38\x00\x42\x00";
    let spec = b"\x0a\x0akubernetes";
    let status = b"\x0a\x00";
    let mut raw = vec![0x0a, meta.len() as u8];
    raw.extend_from_slice(meta);
    raw.extend_from_slice(&[0x12, spec.len() as u8]);
    raw.extend_from_slice(spec);
    raw.extend_from_slice(&[0x1a, status.len() as u8]);
    raw.extend_from_slice(status);
    let mut body = b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09Namespace\x12".to_vec();
    body.push(raw.len() as u8);
    body.extend_from_slice(&raw);
    body.extend_from_slice(b"\x1a\x00\x22\x00");
    let of = "io.k8s.api.core.v1.Namespace";
    let gvk = ("", "v1", "Namespace");
    let got = decode_type(of, gvk, &body, MediaType::Protobuf, FieldValidation::Strict).unwrap().object;
    assert_eq!(
        got,
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}, "spec": {"finalizers": ["kubernetes"]},
               "status": {}})
    );
    let error = decode_type(of, gvk, b"{}", MediaType::Protobuf, FieldValidation::Strict).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the object provided is unrecognized (must be of type Namespace): provided data does not appear to be a protobuf \
         message, expected prefix [107 56 115 0] ({})"
    );
}
