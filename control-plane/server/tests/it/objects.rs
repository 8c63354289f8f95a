//! Objects over time: writes that compete, deletes that wait, lists in chunks, watches, Services.

use std::sync::Arc;

use axum::body::Body;
use futures::{StreamExt, TryStreamExt};
use http::{Method, Request, StatusCode};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use sampan_server::Identity;
use sampan_store::{Options, RedbStore};
use serde_json::{Value, json};

use crate::harness::Harness;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str) -> Value {
    json!({"metadata": {"name": name}})
}

fn client(harness: &Harness) -> Client {
    Client::new(harness.server.router(Identity::admin()), "default")
}

fn config_map(name: &str) -> ConfigMap {
    serde_json::from_value(map(name)).unwrap()
}

#[tokio::test]
async fn kube_reads_its_writes() {
    let harness = Harness::start().await;
    let maps: Api<ConfigMap> = Api::default_namespaced(client(&harness));
    for number in 0..20 {
        let name = format!("m{number}");
        let made = maps.create(&PostParams::default(), &config_map(&name)).await.unwrap();
        assert_eq!(maps.get(&name).await.unwrap().resource_version(), made.resource_version());
        let patch = Patch::Merge(json!({"data": {"k": "v"}}));
        let patched = maps.patch(&name, &PatchParams::default(), &patch).await.unwrap();
        let listed = maps.list(&ListParams::default()).await.unwrap();
        let found = listed.items.iter().find(|item| item.name_any() == name).unwrap();
        assert_eq!(found.resource_version(), patched.resource_version());
        maps.delete(&name, &DeleteParams::default()).await.unwrap();
        assert!(maps.get_opt(&name).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn a_watcher_sees_all_and_ends_with_the_server() {
    let harness = Harness::start().await;
    let maps: Api<ConfigMap> = Api::default_namespaced(client(&harness));
    maps.create(&PostParams::default(), &config_map("before")).await.unwrap();
    let mut events = Box::pin(watcher(maps.clone(), watcher::Config::default().streaming_lists()).applied_objects());
    assert_eq!(events.try_next().await.unwrap().unwrap().name_any(), "before");
    for name in ["a", "b", "c"] {
        maps.create(&PostParams::default(), &config_map(name)).await.unwrap();
        assert_eq!(events.try_next().await.unwrap().unwrap().name_any(), name);
    }
    let mut raw = maps.watch(&WatchParams::default().timeout(60), "0").await.unwrap().boxed();
    for _ in 0..4 {
        assert!(matches!(raw.try_next().await.unwrap(), Some(WatchEvent::Added(_))));
    }
    harness.shutdown.cancel();
    assert!(raw.try_next().await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn competing_patches_all_arrive() {
    let harness = Harness::start().await;
    harness.call(Method::POST, MAPS, map("shared")).await;
    let patches = (0..24).map(|number| {
        let path = format!("{MAPS}/shared");
        let harness = &harness;
        async move { harness.call(Method::PATCH, &path, json!({"data": {format!("k{number}"): "v"}})).await.0 }
    });
    let codes = futures::future::join_all(patches).await;
    assert!(codes.iter().all(|code| *code == StatusCode::OK), "{codes:?}");
    let (_, object) = harness.call(Method::GET, &format!("{MAPS}/shared"), Value::Null).await;
    assert_eq!(object["data"].as_object().unwrap().len(), 24);
}

#[tokio::test]
async fn finalizers_hold_an_object_until_the_last_is_gone() {
    let harness = Harness::start().await;
    let path = format!("{MAPS}/held");
    harness.call(Method::POST, MAPS, json!({"metadata": {"name": "held", "finalizers": ["example.com/a"]}})).await;
    let (code, object) = harness.call(Method::DELETE, &path, json!({"propagationPolicy": "Foreground"})).await;
    assert_eq!(code, StatusCode::ACCEPTED);
    assert_eq!(object["metadata"]["finalizers"], json!(["example.com/a", "foregroundDeletion"]));
    assert!(object["metadata"]["deletionTimestamp"].is_string());
    let (code, error) = harness.call(Method::POST, MAPS, map("held")).await;
    assert_eq!(code, StatusCode::CONFLICT);
    assert_eq!(error["message"], "object is being deleted: configmaps \"held\" already exists");
    let (code, _) = harness.call(Method::PATCH, &path, json!({"metadata": {"finalizers": ["example.com/b"]}})).await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY);
    let (code, _) = harness.call(Method::PATCH, &path, json!({"metadata": {"finalizers": null}})).await;
    assert_eq!(code, StatusCode::OK);
    let (code, _) = harness.call(Method::GET, &path, Value::Null).await;
    assert_eq!(code, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_bound_pod_has_time_to_end() {
    let harness = Harness::start().await;
    const PODS: &str = "/api/v1/namespaces/default/pods";
    harness.call(Method::POST, "/api/v1/namespaces/default/serviceaccounts", map("default")).await;
    let pod = |name: &str| json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "x:1"}]}});
    for name in ["free", "bound"] {
        let (code, made) = harness.call(Method::POST, PODS, pod(name)).await;
        assert_eq!(code, StatusCode::CREATED, "{made}");
        let mounts = &made["spec"]["containers"][0]["volumeMounts"];
        assert_eq!(mounts[0]["mountPath"], "/var/run/secrets/kubernetes.io/serviceaccount");
    }
    let path = format!("{PODS}/bound/binding");
    let wrong = json!({"metadata": {"name": "bound", "labels": {"a b": "c"}}, "target": {"name": "No_node"}});
    let (code, error) = harness.call(Method::POST, &path, wrong).await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY);
    let causes = error["details"]["causes"].as_array().unwrap();
    assert_eq!(causes.iter().map(|cause| &cause["field"]).collect::<Vec<_>>(), ["target.name", "metadata.labels"]);
    let stale = json!({"metadata": {"name": "bound", "resourceVersion": "1"}, "target": {"name": "n1"}});
    assert_eq!(harness.call(Method::POST, &path, stale).await.0, StatusCode::CONFLICT);
    let about = json!({"name": "bound", "annotations": {"example.com/why": "because"}});
    let binding = json!({"metadata": about, "target": {"kind": "Node", "name": "n1"}});
    let (code, _) = harness.call(Method::POST, &format!("{PODS}/bound/binding"), binding.clone()).await;
    assert_eq!(code, StatusCode::CREATED);
    let (code, error) = harness.call(Method::POST, &format!("{PODS}/bound/binding"), binding).await;
    assert_eq!(code, StatusCode::CONFLICT);
    assert_eq!(
        error["message"],
        "Operation cannot be fulfilled on pods/binding \"bound\": pod bound is already assigned to node \"n1\""
    );
    let (_, bound) = harness.call(Method::GET, &format!("{PODS}/bound"), Value::Null).await;
    assert_eq!(bound["spec"]["nodeName"], "n1");
    assert_eq!(bound["metadata"]["annotations"]["example.com/why"], "because");
    assert_eq!(bound["metadata"]["generation"], 2);
    // A binding is no field manager's.
    assert!(!bound["metadata"]["managedFields"].to_string().contains("nodeName"), "{bound}");
    assert_eq!(bound["status"]["conditions"][0]["type"], "PodScheduled");

    harness.call(Method::DELETE, &format!("{PODS}/free"), Value::Null).await;
    assert_eq!(harness.call(Method::GET, &format!("{PODS}/free"), Value::Null).await.0, StatusCode::NOT_FOUND);
    let (_, ending) = harness.call(Method::DELETE, &format!("{PODS}/bound"), Value::Null).await;
    assert_eq!(ending["metadata"]["deletionGracePeriodSeconds"], 30);
    let (_, ending) = harness.call(Method::DELETE, &format!("{PODS}/bound"), json!({"gracePeriodSeconds": 5})).await;
    assert_eq!(ending["metadata"]["deletionGracePeriodSeconds"], 5);
    // The node's last word.
    harness.call(Method::DELETE, &format!("{PODS}/bound?gracePeriodSeconds=0"), Value::Null).await;
    assert_eq!(harness.call(Method::GET, &format!("{PODS}/bound"), Value::Null).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_namespace_ends_when_it_is_finalized() {
    let harness = Harness::start().await;
    harness.call(Method::POST, "/api/v1/namespaces", map("short")).await;
    let (code, ending) = harness.call(Method::DELETE, "/api/v1/namespaces/short", Value::Null).await;
    assert_eq!(code, StatusCode::OK);
    assert_eq!(ending["status"]["phase"], "Terminating");
    let (code, error) = harness.call(Method::POST, "/api/v1/namespaces/short/configmaps", map("late")).await;
    assert_eq!(code, StatusCode::FORBIDDEN);
    assert_eq!(error["details"]["causes"][0]["reason"], "NamespaceTerminating");
    let mut done = ending.clone();
    done["spec"] = json!({});
    let (code, _) = harness.call(Method::PUT, "/api/v1/namespaces/short/finalize", done).await;
    assert_eq!(code, StatusCode::OK);
    assert_eq!(harness.call(Method::GET, "/api/v1/namespaces/short", Value::Null).await.0, StatusCode::NOT_FOUND);
    let (code, _) = harness.call(Method::DELETE, "/api/v1/namespaces/kube-system", Value::Null).await;
    assert_eq!(code, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn chunks_show_one_moment() {
    let harness = Harness::start().await;
    harness.call(Method::POST, "/api/v1/namespaces", map("chunks")).await;
    let maps = "/api/v1/namespaces/chunks/configmaps";
    for number in 0..6 {
        harness.call(Method::POST, maps, map(&format!("m{number}"))).await;
    }
    let (_, first) = harness.call(Method::GET, &format!("{maps}?limit=2"), Value::Null).await;
    assert_eq!(first["metadata"]["remainingItemCount"], 4);
    harness.call(Method::DELETE, &format!("{maps}/m3"), Value::Null).await;
    harness.call(Method::POST, maps, map("m2a")).await;
    let mut names = Vec::new();
    let mut next = first["metadata"]["continue"].as_str().unwrap().to_owned();
    while !next.is_empty() {
        let (code, page) = harness.call(Method::GET, &format!("{maps}?limit=2&continue={next}"), Value::Null).await;
        assert_eq!(code, StatusCode::OK, "{page}");
        assert_eq!(page["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
        names.extend(page["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].clone()));
        next = page["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
    }
    assert_eq!(names, ["m2", "m3", "m4", "m5"]);
}

#[tokio::test]
async fn service_addresses_are_given_once() {
    let harness = Harness::start().await;
    const SERVICES: &str = "/api/v1/namespaces/default/services";
    let service = |name: &str, spec: Value| json!({"metadata": {"name": name}, "spec": spec});
    let (_, one) = harness
        .call(Method::POST, SERVICES, service("one", json!({"ports": [{"port": 80}], "type": "NodePort"})))
        .await;
    let address = one["spec"]["clusterIP"].as_str().unwrap();
    let port = &one["spec"]["ports"][0]["nodePort"];
    let (code, error) = harness
        .call(Method::POST, SERVICES, service("two", json!({"ports": [{"port": 80}], "clusterIP": address})))
        .await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(error["message"].as_str().unwrap().ends_with("provided IP is already allocated"), "{error}");
    let wants = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]});
    let (_, error) = harness.call(Method::POST, SERVICES, service("two", wants.clone())).await;
    assert_eq!(
        error["message"],
        format!(
            "Service \"two\" is invalid: spec.ports[0].nodePort: Invalid value: {port}: provided port is already allocated"
        )
    );
    harness.call(Method::DELETE, &format!("{SERVICES}/one"), Value::Null).await;
    let (code, _) = harness.call(Method::POST, SERVICES, service("two", wants)).await;
    assert_eq!(code, StatusCode::CREATED);
}

#[tokio::test]
async fn a_version_from_before_the_start_is_expired() {
    let store = Arc::new(RedbStore::in_memory(Options::default()).unwrap());
    let first = Harness::start_on(store.clone()).await;
    let (_, made) = first.call(Method::POST, MAPS, map("kept")).await;
    let (_, changed) = first.call(Method::PATCH, &format!("{MAPS}/kept"), json!({"data": {"k": "v"}})).await;
    drop(first);
    let second = Harness::start_on(store).await;
    let (_, read) = second.call(Method::GET, &format!("{MAPS}/kept"), Value::Null).await;
    assert_eq!(read, changed);
    let version = made["metadata"]["resourceVersion"].as_str().unwrap();
    let path = format!("{MAPS}?watch=true&resourceVersion={version}&timeoutSeconds=5");
    let (code, event) = second.call(Method::GET, &path, Value::Null).await;
    assert_eq!(code, StatusCode::OK);
    assert!(event["type"] == "ERROR" && event["object"]["code"] == 410, "{event}");
    // Lists of that time are still there.
    let path = format!("{MAPS}?resourceVersion={version}&resourceVersionMatch=Exact");
    let (_, list) = second.call(Method::GET, &path, Value::Null).await;
    assert_eq!(list["metadata"]["resourceVersion"], version);
    assert_eq!(list["items"][0]["data"], Value::Null);
}

#[tokio::test]
async fn broken_requests_are_answered() {
    let harness = Harness::start().await;
    for (path, body) in [
        (MAPS, Value::from("x")),
        (MAPS, json!([1])),
        (MAPS, json!({"metadata": []})),
        (MAPS, json!({"metadata": {"name": {"a": 1}}})),
        ("/api/v1/namespaces/default/pods", json!({"spec": []})),
    ] {
        let (code, status) = harness.call(Method::POST, path, body).await;
        assert!(code.is_client_error(), "{code} {status}");
        assert_eq!(status["kind"], "Status");
    }
    let request = Request::builder()
        .method(Method::POST)
        .uri(MAPS)
        .header("content-type", "application/json")
        .body(Body::from(vec![b' '; 4 << 20]))
        .unwrap();
    assert_eq!(harness.send(Identity::admin(), request).await.status(), StatusCode::PAYLOAD_TOO_LARGE);
}

/// A watch tells every write once and in order, whatever else goes on; what it adds up to is the list.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_adds_up_to_the_list() {
    const WRITERS: usize = 6;
    const WRITES: usize = 30;
    let harness = Harness::start().await;
    harness.call(Method::POST, "/api/v1/namespaces", map("busy")).await;
    let maps: Api<ConfigMap> = Api::namespaced(client(&harness), "busy");
    let version = maps.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    let mut events = maps.watch(&WatchParams::default().labels("seen=yes"), &version).await.unwrap().boxed();
    let writers = (0..WRITERS).map(|writer| {
        let maps = maps.clone();
        async move {
            for turn in 0..WRITES {
                let name = format!("m{writer}-{}", turn % 3);
                let seen = if turn % 4 == 3 { "no" } else { "yes" };
                let labels = json!({"metadata": {"labels": {"seen": seen, "turn": turn.to_string()}}});
                match turn % 5 {
                    4 => {
                        let _ = maps.delete(&name, &DeleteParams::default()).await;
                    }
                    _ if maps.get_opt(&name).await.unwrap().is_some() => {
                        maps.patch(&name, &PatchParams::default(), &Patch::Merge(labels)).await.unwrap();
                    }
                    _ => {
                        let mut made = config_map(&name);
                        made.labels_mut().insert("seen".to_owned(), seen.to_owned());
                        maps.create(&PostParams::default(), &made).await.unwrap();
                    }
                }
            }
        }
    });
    futures::future::join_all(writers).await;
    let mut last = config_map("last");
    last.labels_mut().insert("seen".to_owned(), "yes".to_owned());
    maps.create(&PostParams::default(), &last).await.unwrap();
    let mut known = std::collections::BTreeMap::new();
    let mut revision = 0u64;
    loop {
        let event = events.try_next().await.unwrap().unwrap();
        let (WatchEvent::Added(object) | WatchEvent::Modified(object) | WatchEvent::Deleted(object)) = &event else {
            panic!("{event:?}");
        };
        let now: u64 = object.resource_version().unwrap().parse().unwrap();
        assert!(now > revision, "{now} after {revision}");
        revision = now;
        let name = object.name_any();
        let had = known.contains_key(&name);
        match &event {
            WatchEvent::Added(_) => assert!(!had, "{name} was there"),
            _ => assert!(had, "{name} was not there"),
        }
        if matches!(event, WatchEvent::Deleted(_)) {
            known.remove(&name);
        } else {
            known.insert(name.clone(), object.resource_version());
        }
        if name == "last" {
            break;
        }
    }
    let listed = maps.list(&ListParams::default().labels("seen=yes")).await.unwrap();
    let listed: std::collections::BTreeMap<_, _> =
        listed.items.iter().map(|item| (item.name_any(), item.resource_version())).collect();
    assert_eq!(known, listed);
}
