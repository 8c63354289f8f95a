//! The codec against recorded answers of kube-apiserver.
#![allow(clippy::unwrap_used)]

use sampan_api::codec::{FieldValidation, MediaType, canonicalize_type, decode_type};
use sampan_api::schema::Schema;
use serde_json::Value;

fn fixture(text: &str) -> Vec<Value> {
    serde_json::from_str(text).unwrap()
}

fn split(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

#[test]
fn bodies_are_decoded_as_recorded() {
    let mut wrong = Vec::new();
    for case in fixture(include_str!("fixtures/decoding.json")) {
        let text = |name: &str| case[name].as_str().unwrap_or_default();
        let (group, version) = split(text("apiVersion"));
        let of = Schema::get().kind(group, version, text("kind")).unwrap();
        let media = match text("type") {
            "application/yaml" => MediaType::Yaml,
            _ => MediaType::Json,
        };
        let mode = match text("mode") {
            "Strict" => FieldValidation::Strict,
            "Ignore" => FieldValidation::Ignore,
            _ => FieldValidation::Warn,
        };
        let got = decode_type(of.name, (group, version, text("kind")), text("body").as_bytes(), media, mode);
        match (&got, case["error"].as_str()) {
            (Ok(decoded), None) => {
                let warnings: Vec<String> = decoded.warnings.iter().map(|w| format!("{w:?}")).collect();
                let want: Vec<&str> = case["warnings"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
                if warnings != want {
                    wrong.push(format!("{}: want {want:?}, got {warnings:?}", text("case")));
                }
            }
            (Err(error), Some(want)) if error.to_string() == want => {}
            (got, want) => wrong.push(format!("{}: want {want:?}, got {got:?}", text("case"))),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Puts values of the right form where the recording has placeholders.
fn restore(value: &mut Value, key: &str) {
    match value {
        Value::Object(map) => map.iter_mut().for_each(|(key, value)| restore(value, key)),
        Value::Array(items) => items.iter_mut().for_each(|item| restore(item, key)),
        Value::String(text) => match text.as_str() {
            "T" if matches!(key, "renewTime" | "acquireTime" | "eventTime" | "lastObservedTime") => {
                *text = "2024-01-01T00:00:00.000000Z".into();
            }
            "T" => *text = "2024-01-01T00:00:00Z".into(),
            // A pattern for ages also matched small quantities.
            "AGE" => *text = "100m".into(),
            "IP" if key == "clusterIPs" => *value = serde_json::json!(["10.0.0.1"]),
            "PORT" => *value = 30000.into(),
            _ => {}
        },
        _ => {}
    }
}

#[test]
fn recorded_objects_are_canonical() {
    let mut wrong = Vec::new();
    for case in fixture(include_str!("fixtures/objects.json")) {
        let mut object = case["object"].clone();
        restore(&mut object, "");
        let (group, version) = split(object["apiVersion"].as_str().unwrap());
        let Some(of) = Schema::get().kind(group, version, object["kind"].as_str().unwrap()) else {
            continue;
        };
        match canonicalize_type(of.name, &object) {
            Ok(canonical) => {
                if canonical.object != object || !canonical.strict.is_empty() {
                    wrong.push(format!(
                        "{}:\n want {object}\n got  {}\n {:?}",
                        case["case"], canonical.object, canonical.strict
                    ));
                }
            }
            Err(error) => wrong.push(format!("{}: {error}", case["case"])),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
