#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use super::*;
use crate::kinds;

const NOW: &str = "2026-01-01T00:00:00Z";

fn kind(group: &str, plural: &str) -> &'static Kind {
    kinds::find(group, "v1", plural).unwrap()
}

fn by(manager: &str) -> Writer<'_> {
    Writer { manager, subresource: "", now: NOW }
}

fn map(data: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "x" }, "data": data })
}

fn template(spec: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "PodTemplate", "metadata": { "name": "t" }, "template": { "spec": spec } })
}

fn apply_map(live: Option<&Value>, data: Value, manager: &str, force: bool) -> Result<Value, Error> {
    apply(kind("", "configmaps"), live, &map(data), by(manager), force)
}

fn owned(object: &Value, manager: &str) -> Value {
    let entries = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    entries.into_iter().find(|entry| entry["manager"] == manager).map_or(Value::Null, |entry| entry["fieldsV1"].clone())
}

#[test]
fn a_create_owns_what_it_set_and_what_was_defaulted() {
    let mut object = map(json!({ "a": "b" }));
    update(kind("", "configmaps"), None, &mut object, by("m"));
    assert_eq!(owned(&object, "m"), json!({ "f:data": { ".": {}, "f:a": {} } }));

    let mut deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "d" },
        "spec": {
            "replicas": 0,
            "selector": { "matchLabels": { "app": "x" } },
            "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": "25%" } },
            "template": { "metadata": { "labels": { "app": "x" } }, "spec": {
                "containers": [{ "name": "c", "image": "i", "resources": {} }], "securityContext": {} } },
        },
        "status": {},
    });
    update(kind("apps", "deployments"), None, &mut deployment, by("m"));
    assert_eq!(
        owned(&deployment, "m"),
        json!({ "f:spec": {
            "f:replicas": {},
            "f:selector": {},
            "f:strategy": { "f:rollingUpdate": { ".": {}, "f:maxSurge": {} }, "f:type": {} },
            "f:template": {
                "f:metadata": { "f:labels": { ".": {}, "f:app": {} } },
                "f:spec": {
                    "f:containers": { "k:{\"name\":\"c\"}": { ".": {}, "f:image": {}, "f:name": {}, "f:resources": {} } },
                    "f:securityContext": {},
                },
            },
        } })
    );
}

#[test]
fn an_apply_owns_its_leaves() {
    let object = apply_map(None, json!({ "a": "1" }), "m", false).unwrap();
    assert_eq!(owned(&object, "m"), json!({ "f:data": { "f:a": {} } }));
    assert_eq!(object["metadata"]["managedFields"][0]["time"], NOW);
}

#[test]
fn what_is_no_longer_applied_goes() {
    let first = apply_map(None, json!({ "a": "1", "b": "2" }), "m", false).unwrap();
    let second = apply_map(Some(&first), json!({ "a": "9" }), "m", false).unwrap();
    assert_eq!(second["data"], json!({ "a": "9" }));
    assert_eq!(owned(&second, "m"), json!({ "f:data": { "f:a": {} } }));
    // Nothing new: nothing is written.
    assert_eq!(apply_map(Some(&second), json!({ "a": "9" }), "m", false).unwrap(), second);
}

#[test]
fn what_others_own_stays() {
    let first = apply_map(None, json!({ "a": "1", "b": "2" }), "m1", false).unwrap();
    let second = apply_map(Some(&first), json!({ "b": "2" }), "m2", false).unwrap();
    let third = apply_map(Some(&second), json!({ "a": "1" }), "m1", false).unwrap();
    assert_eq!(third["data"], json!({ "a": "1", "b": "2" }));
    assert_eq!(owned(&third, "m2"), json!({ "f:data": { "f:b": {} } }));
}

#[test]
fn conflicts_name_field_and_manager() {
    let first = apply_map(None, json!({ "a": "1" }), "m1", false).unwrap();
    let error = apply_map(Some(&first), json!({ "a": "2" }), "m2", false).unwrap_err();
    assert_eq!(error.to_string(), "Apply failed with 1 conflict: conflict with \"m1\": .data.a");
    let forced = apply_map(Some(&first), json!({ "a": "2" }), "m2", true).unwrap();
    assert_eq!(forced["data"], json!({ "a": "2" }));
    assert_eq!(owned(&forced, "m1"), Value::Null);

    let mut updated = first.clone();
    updated["data"]["a"] = "3".into();
    update(kind("", "configmaps"), Some(&first), &mut updated, by("e"));
    let error = apply_map(Some(&updated), json!({ "a": "2" }), "m1", false).unwrap_err();
    assert_eq!(error.to_string(), "Apply failed with 1 conflict: conflict with \"e\" using v1: .data.a");
}

#[test]
fn atomic_values_are_one_field() {
    let spec = |command: &str| json!({ "containers": [{ "name": "a", "image": "x", "command": [command] }], "nodeSelector": { command: "b" } });
    let templates = kind("", "podtemplates");
    let first = apply(templates, None, &template(spec("c")), by("m1"), false).unwrap();
    let error = apply(templates, Some(&first), &template(spec("d")), by("m2"), false).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 2 conflicts: conflicts with \"m1\":\n- .template.spec.nodeSelector\n- .template.spec.containers[name=\"a\"].command"
    );
}

#[test]
fn keys_of_items_have_defaults() {
    let spec = |ports: Value| template(json!({ "containers": [{ "name": "a", "ports": ports }] }));
    let templates = kind("", "podtemplates");
    let both = json!([{ "containerPort": 80 }, { "containerPort": 80, "protocol": "UDP" }]);
    let first = apply(templates, None, &spec(both), by("m"), false).unwrap();
    let fields = owned(&first, "m");
    let ports = &fields["f:template"]["f:spec"]["f:containers"]["k:{\"name\":\"a\"}"]["f:ports"];
    assert_eq!(ports["k:{\"containerPort\":80,\"protocol\":\"TCP\"}"], json!({ ".": {}, "f:containerPort": {} }));
    // The server has filled in the protocol meanwhile.
    let mut live = first;
    live["template"]["spec"]["containers"][0]["ports"][0]["protocol"] = "TCP".into();
    let second =
        apply(templates, Some(&live), &spec(json!([{ "containerPort": 80, "name": "q" }])), by("m"), false).unwrap();
    assert_eq!(
        second["template"]["spec"]["containers"][0]["ports"],
        json!([{ "containerPort": 80, "name": "q", "protocol": "TCP" }])
    );
}

#[test]
fn kubectl_takes_over_what_it_applied_itself() {
    let mut live = map(json!({ "a": "1", "b": "2" }));
    live["metadata"]["annotations"] = json!({ LAST_APPLIED: map(json!({ "a": "1", "b": "2" })).to_string() });
    update(kind("", "configmaps"), None, &mut live, by("kubectl-client-side-apply"));
    let applied = apply_map(Some(&live), json!({ "a": "9" }), "kubectl", false).unwrap();
    assert_eq!(applied["data"], json!({ "a": "9", "b": "2" }));
    assert_eq!(last_applied(&applied).unwrap(), format!("{}\n", map(json!({ "a": "9" }))));
    assert!(apply_map(Some(&live), json!({ "a": "9" }), "somebody", false).is_err());
}

#[test]
fn forgetting_managers() {
    let mut live = map(json!({ "a": "1" }));
    update(kind("", "configmaps"), None, &mut live, by("m"));
    let mut reset = live.clone();
    reset["metadata"]["managedFields"] = json!([{}]);
    update(kind("", "configmaps"), Some(&live), &mut reset, by("m"));
    assert!(reset["metadata"].get("managedFields").is_none());
    let mut after = reset.clone();
    after["data"]["b"] = "2".into();
    update(kind("", "configmaps"), Some(&reset), &mut after, by("e"));
    assert!(after["metadata"].get("managedFields").is_none());
}

#[test]
fn what_the_type_does_not_have_is_refused() {
    let mut config = map(json!({ "a": "1" }));
    config["nope"] = 1.into();
    let error = apply(kind("", "configmaps"), None, &config, by("m"), false).unwrap_err();
    assert_eq!(
        error.to_string(),
        "failed to create typed patch object (/x; /v1, Kind=ConfigMap): .nope: field not declared in schema"
    );
}

#[test]
fn many_updaters_are_put_together() {
    let mut live = map(json!({ "k": "v" }));
    update(kind("", "configmaps"), None, &mut live, by("first"));
    for number in 0..15 {
        let mut new = live.clone();
        new["data"][format!("k{number:02}")] = "v".into();
        let now = format!("2026-01-01T00:00:{:02}Z", number + 1);
        update(
            kind("", "configmaps"),
            Some(&live),
            &mut new,
            Writer { manager: &format!("m{number:02}"), subresource: "", now: &now },
        );
        live = new;
    }
    let entries = live["metadata"]["managedFields"].as_array().unwrap();
    assert_eq!(entries.len(), 10);
    assert!(entries.iter().any(|entry| entry["manager"] == "ancient-changes"));
}
