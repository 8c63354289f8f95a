//! Defaulting, preparation and validation of the kinds against recorded answers of kube-apiserver.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use sampan_api::codec::{FieldValidation, MediaType, decode};
use sampan_api::schema::Schema;
use sampan_api::table::{Include, table};
use sampan_api::validation::requests::object_error;
use sampan_api::{Error, FieldErrors, Kind, kinds, patch};
use serde_json::{Value, json};

/// What differs from run to run, in metadata and below.
const VOLATILE: &[&str] = &["managedFields", "uid", "creationTimestamp", "resourceVersion", "nodePort"];

fn normal(value: &Value) -> Value {
    match value {
        Value::Object(map) => map
            .iter()
            .filter(|(key, _)| !VOLATILE.contains(&key.as_str()))
            .filter(|(key, value)| *key != "description" || !value.is_string())
            .map(|(key, value)| match key.as_str() {
                "clusterIPs" => (key.clone(), json!("IP")),
                "clusterIP" if value != "None" => (key.clone(), json!("IP")),
                _ => (key.clone(), normal(value)),
            })
            .collect(),
        Value::Array(list) => list.iter().map(normal).collect(),
        Value::String(text) => {
            let text = text.replace("10.9.8.7", "IP");
            let unit = text.strip_suffix(['s', 'm', 'h', 'd']);
            let age = unit.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|c| c.is_ascii_digit()));
            if age { json!("AGE") } else { json!(text) }
        }
        other => other.clone(),
    }
}

fn map<'a>(value: &'a mut Value, key: &str) -> &'a mut serde_json::Map<String, Value> {
    value.as_object_mut().unwrap().entry(key).or_insert_with(|| json!({})).as_object_mut().unwrap()
}

/// What admission and allocation add, as far as the answers show it.
fn admit(kind: &Kind, object: &mut Value) {
    match kind.kind {
        "Pod" => {
            let spec = map(object, "spec");
            spec.insert("serviceAccountName".into(), json!("default"));
            spec.insert("priority".into(), json!(0));
            spec.insert("preemptionPolicy".into(), json!("PreemptLowerPriority"));
            let toleration =
                |key: &str| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300});
            let both = [toleration("node.kubernetes.io/not-ready"), toleration("node.kubernetes.io/unreachable")];
            spec.insert("tolerations".into(), json!(both));
        }
        "Service" if object.pointer("/spec/type") != Some(&json!("ExternalName")) => {
            let spec = map(object, "spec");
            let headless = spec.get("clusterIP") == Some(&json!("None"));
            let alone = headless && !spec.contains_key("selector");
            let (families, policy) = match alone {
                true => (json!(["IPv4", "IPv6"]), "RequireDualStack"),
                false => (json!(["IPv4"]), "SingleStack"),
            };
            if !spec.contains_key("clusterIP") {
                spec.insert("clusterIP".into(), json!("10.0.0.1"));
                spec.insert("clusterIPs".into(), json!(["10.0.0.1"]));
            }
            spec.insert("ipFamilies".into(), families);
            spec.insert("ipFamilyPolicy".into(), json!(policy));
        }
        _ => {}
    }
}

/// A server that knows one namespace and stores nothing but the object of the case.
#[derive(Default)]
struct Server {
    objects: HashMap<String, Value>,
}

struct Target {
    kind: &'static Kind,
    /// Of the object in the collection.
    key: String,
    subresource: String,
}

fn target(path: &str) -> Target {
    let path = path.split('?').next().unwrap();
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let (group, version, mut rest) = match parts.as_slice() {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => panic!("path {path}"),
    };
    if let ["namespaces", _, below @ ..] = rest
        && !below.is_empty()
    {
        rest = below;
    }
    let kind = kinds::find(group, version, rest[0]).unwrap();
    let name = rest.get(1).copied().unwrap_or_default();
    let subresource = rest.get(2).copied().unwrap_or_default();
    Target { kind, key: format!("{}/{name}", kind.plural), subresource: subresource.to_owned() }
}

fn checked(kind: &Kind, object: &Value, errors: FieldErrors) -> Result<(), Error> {
    let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    object_error(&kind.qualified_kind(), name, errors)
}

impl Server {
    fn create(&mut self, target: &Target, body: &Value) -> Result<Value, Error> {
        let kind = target.kind;
        let text = body.to_string().replace("{ns}", "ns");
        let mut object = decode(kind, text.as_bytes(), MediaType::Json, FieldValidation::Warn)?.object;
        (kind.strategy.default)(&mut object);
        if kind.namespaced() {
            map(&mut object, "metadata").insert("namespace".into(), json!("ns"));
        }
        admit(kind, &mut object);
        (kind.strategy.prepare_create)(&mut object);
        checked(kind, &object, kind.validate_create(&object))?;
        let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        self.objects.insert(format!("{}/{name}", kind.plural), object.clone());
        Ok(object)
    }

    fn patch(&mut self, target: &Target, media: &str, body: &Value) -> Result<Value, Error> {
        let kind = target.kind;
        let old = self.objects.get(&target.key).unwrap().clone();
        let body = serde_json::to_vec(body).unwrap();
        let mut new = match media {
            "application/merge-patch+json" => patch::merge_patch(&old, &body)?,
            _ => patch::strategic_merge(Schema::get().type_(kind.schema).unwrap(), &old, &body)?,
        };
        (kind.strategy.default)(&mut new);
        kind.prepare_write(&target.subresource, &mut new, &old);
        checked(kind, &new, kind.validate_write(&target.subresource, &new, &old))?;
        self.objects.insert(target.key.clone(), new.clone());
        Ok(new)
    }

    fn answer(&mut self, step: &Value) -> (u16, Value) {
        let target = target(step["path"].as_str().unwrap());
        let result = match step["method"].as_str().unwrap() {
            "POST" => self.create(&target, &step["body"]),
            "PATCH" => self.patch(&target, step["type"].as_str().unwrap_or_default(), &step["body"]),
            _ => {
                let objects: Vec<Value> = self.objects.values().cloned().collect();
                let accept = step["accept"].as_str().unwrap_or_default();
                return match accept.contains("as=Table") {
                    true => (200, table(target.kind, &objects, json!({}), Include::Metadata, true, 0)),
                    // Nothing is stored by a dry run.
                    false => (0, Value::Null),
                };
            }
        };
        let created = step["method"] == "POST";
        match result {
            Ok(object) => (if created { 201 } else { 200 }, object),
            Err(error) => error.status(),
        }
    }
}

/// The parts of an answer that a step compares.
fn picked(step: &Value, answer: &Value) -> Value {
    let Some(paths) = step["pick"].as_array() else {
        return answer.clone();
    };
    let at = |path: &str| {
        let pointer = format!("/{}", path.replace('.', "/"));
        answer.pointer(&pointer).cloned().unwrap_or_default()
    };
    paths.iter().map(|path| (path.as_str().unwrap().to_owned(), at(path.as_str().unwrap()))).collect()
}

fn differences(path: &str, want: &Value, got: &Value, out: &mut Vec<String>) {
    match (want, got) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for key in keys {
                let null = Value::Null;
                differences(&format!("{path}.{key}"), a.get(key).unwrap_or(&null), b.get(key).unwrap_or(&null), out);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                differences(&format!("{path}[{i}]"), a, b, out);
            }
        }
        _ if want == got => {}
        _ => out.push(format!("{path}: want {want}, got {got}")),
    }
}

#[test]
fn kinds_answer_as_recorded() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("fixtures/kinds.json")).unwrap();
    let mut wrong = Vec::new();
    for case in &cases {
        let mut server = Server::default();
        let mut answers = case["answers"].as_array().unwrap().iter();
        for step in case["steps"].as_array().unwrap() {
            let (code, answer) = server.answer(step);
            if step["quiet"] == json!(true) {
                assert!(code < 300, "{}: {answer}", case["name"]);
                continue;
            }
            let want = answers.next().unwrap();
            if code == 0 || want["body"].is_null() {
                continue;
            }
            let mut found = Vec::new();
            differences("code", &want["status"], &json!(code), &mut found);
            let place = |value: Value| -> Value {
                serde_json::from_str(&value.to_string().replace("\"NS\"", "\"ns\"").replace("\"NS-b\"", "\"ns-b\""))
                    .unwrap()
            };
            let (want, got) = (place(normal(&want["body"])), place(normal(&picked(step, &answer))));
            differences("", &want, &got, &mut found);
            wrong.extend(found.into_iter().take(6).map(|line| format!("{}: {line}", case["name"])));
        }
    }
    assert!(wrong.is_empty(), "{} differ\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn defaulting_twice_changes_nothing_and_what_is_valid_stays_valid() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("fixtures/kinds.json")).unwrap();
    for case in &cases {
        for step in case["steps"].as_array().unwrap().iter().filter(|step| step["method"] == "POST") {
            let target = target(step["path"].as_str().unwrap());
            let Ok(object) = Server::default().create(&target, &step["body"]) else {
                continue;
            };
            let mut again = object.clone();
            (target.kind.strategy.default)(&mut again);
            assert_eq!(again, object, "{}", case["name"]);
            // An update that changes nothing is valid and counts no generation.
            let mut same = object.clone();
            target.kind.prepare_write("", &mut same, &object);
            assert_eq!(same, object, "{}", case["name"]);
            assert!(target.kind.validate_write("", &same, &object).is_empty(), "{}", case["name"]);
        }
    }
}

mod laws {
    use std::sync::OnceLock;

    use proptest::prelude::*;

    use super::*;

    /// Values that clients send where something else belongs.
    fn odd() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Null),
            Just(json!("")),
            Just(json!("None")),
            Just(json!("a b/ü")),
            Just(json!("1e3")),
            Just(json!({})),
            Just(json!([])),
            Just(json!({"a": "b"})),
            any::<i32>().prop_map(Value::from),
            any::<bool>().prop_map(Value::from),
            "[a-z./-]{0,70}".prop_map(Value::from),
        ]
    }

    fn leaves(value: &Value, path: &mut Vec<String>, out: &mut Vec<String>) {
        if !path.is_empty() {
            out.push(format!("/{}", path.join("/")));
        }
        let mut below = |key: String, value: &Value| {
            path.push(key.replace('~', "~0").replace('/', "~1"));
            leaves(value, path, out);
            path.pop();
        };
        match value {
            Value::Object(map) => map.iter().for_each(|(key, value)| below(key.clone(), value)),
            Value::Array(list) => list.iter().enumerate().for_each(|(i, value)| below(i.to_string(), value)),
            _ => {}
        }
    }

    fn bodies() -> &'static [(String, Value)] {
        static BODIES: OnceLock<Vec<(String, Value)>> = OnceLock::new();
        BODIES.get_or_init(|| {
            let cases: Vec<Value> = serde_json::from_str(include_str!("fixtures/kinds.json")).unwrap();
            let steps = cases.iter().flat_map(|case| case["steps"].as_array().unwrap());
            let posts = steps.filter(|step| step["method"] == "POST");
            posts.map(|step| (step["path"].as_str().unwrap().to_owned(), step["body"].clone())).collect()
        })
    }

    /// An object of the case, as it is after a create.
    fn made(kind: &Kind, body: &Value) -> Option<Value> {
        let mut object =
            decode(kind, body.to_string().as_bytes(), MediaType::Json, FieldValidation::Ignore).ok()?.object;
        (kind.strategy.default)(&mut object);
        let mut again = object.clone();
        (kind.strategy.default)(&mut again);
        assert_eq!(again, object, "defaulting twice changes more");
        (kind.strategy.prepare_create)(&mut object);
        Some(object)
    }

    proptest! {
        /// Whatever is in a field: defaulting is done once, nothing panics, every column has its cell,
        /// and what is valid stays valid.
        #[test]
        fn no_value_of_a_field_is_beyond_the_kinds(
            which in any::<prop::sample::Index>(),
            place in any::<prop::sample::Index>(),
            value in odd(),
        ) {
            let (path, body) = which.get(bodies());
            let kind = target(path).kind;
            let mut paths = Vec::new();
            leaves(body, &mut Vec::new(), &mut paths);
            let mut changed = body.clone();
            let place: &String = place.get(&paths);
            *changed.pointer_mut(place).unwrap() = value;
            let (Some(old), Some(new)) = (made(kind, body), made(kind, &changed)) else { return Ok(()) };
            let errors = kind.validate_create(&new);
            prop_assert_eq!((kind.cells)(&new, 0).len(), kind.columns.len());
            let _ = (kind.strategy.warnings)(&new, None);
            for subresource in ["", "status", "ephemeralcontainers", "resize"] {
                let mut update = new.clone();
                kind.prepare_write(subresource, &mut update, &old);
                let _ = kind.validate_write(subresource, &update, &old);
            }
            if errors.is_empty() {
                let mut again = new.clone();
                (kind.strategy.default)(&mut again);
                prop_assert!(kind.validate_create(&again).is_empty());
                prop_assert_eq!(&again, &new);
            }
        }
    }
}
