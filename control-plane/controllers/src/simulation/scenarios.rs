//! What users do, and what has to come of it.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use super::{HOSTILE, RELIABLE, World, condition, is_active, is_ready, place, simulate, text};

/// How many seeds; more where `SAMPAN_SEEDS` says so.
fn seeds() -> u64 {
    std::env::var("SAMPAN_SEEDS").ok().and_then(|it| it.parse().ok()).unwrap_or(4)
}

/// Over several seeds, on a good day and on bad ones.
fn for_seeds<F: Future<Output = ()>>(scenario: impl Fn(World) -> F) {
    for seed in 0..seeds() {
        simulate(seed, if seed % 3 == 0 { RELIABLE } else { HOSTILE }, &scenario);
    }
}

/// Never more pods wanted than the surge allows, never fewer available than promised.
fn keep_bounds(world: &World, replicas: i64) {
    let (most, fewest) = (replicas + (replicas + 3) / 4, replicas - replicas / 4);
    let was_full = std::cell::Cell::new(false);
    world.api.check(move |objects| {
        let of =
            |plural: &'static str| objects.iter().filter(move |((it, _, _), _)| it == plural).map(|(_, object)| object);
        let wanted: i64 = of("replicasets").filter_map(|set| set["spec"]["replicas"].as_i64()).sum();
        assert!(wanted <= most, "{wanted} pods wanted, {most} allowed");
        for set in of("replicasets") {
            let owned = of("pods")
                .filter(|pod| pod["metadata"]["ownerReferences"][0]["uid"] == set["metadata"]["uid"] && is_active(pod));
            let owned = owned.count();
            assert!(owned as i64 <= most, "{owned} pods of one set");
        }
        let ready = of("pods").filter(|pod| is_active(pod) && is_ready(pod)).count() as i64;
        was_full.set(was_full.get() || ready >= replicas);
        assert!(!was_full.get() || ready >= fewest, "{ready} available, {fewest} promised");
    });
}

#[test]
fn a_deployment_rolls_out_rolls_back_and_keeps_its_history() {
    for_seeds(|world| async move {
        world.node("a");
        world.node("b");
        keep_bounds(&world, 5);
        world.api.create("deployments", "default", world.deployment(5, "v1"));
        world.rolled_out(5).await;
        assert_eq!(world.current(), ("1".into(), "v1".into()));
        for (number, image) in ["v2", "v3", "v4"].into_iter().enumerate() {
            world.set_image(image);
            world.rolled_out(5).await;
            assert_eq!(world.current(), ((number + 2).to_string(), image.into()));
        }
        let deployment = world.api.get("deployments", "default", "web").unwrap();
        assert_eq!(deployment["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "4");
        assert_eq!(deployment["metadata"]["generation"], 4, "only users make generations");
        world.until("old sets to go", |api| api.list("replicasets").len() == 3).await;
        // As `kubectl rollout undo` does: the old template is set again.
        let before: BTreeSet<String> = world.sets().into_keys().collect();
        world.set_image("v3");
        world.rolled_out(5).await;
        assert_eq!(world.current(), ("5".into(), "v3".into()));
        let after: BTreeSet<String> = world.sets().into_keys().collect();
        assert_eq!(before, after, "the old set is used again");
        let set = world.sets().into_values().find(|set| set["spec"]["replicas"] == 5).unwrap();
        let history = &set["metadata"]["annotations"]["deployment.kubernetes.io/revision-history"];
        assert_eq!(history, "3");
    });
}

#[test]
fn a_broken_rollout_stops_at_its_bounds_and_times_out() {
    for_seeds(|world| async move {
        world.node("a");
        keep_bounds(&world, 8);
        world.api.create("deployments", "default", world.deployment(8, "v1"));
        world.rolled_out(8).await;
        world.set_image("broken");
        tokio::time::sleep(Duration::from_secs(60)).await;
        let count = |image: &str| {
            let fits = |pod: &&Value| pod["spec"]["containers"][0]["image"] == *image;
            world.api.list("pods").iter().filter(fits).count()
        };
        assert_eq!((count("v1"), count("broken")), (6, 4));
        world.api.requests();
        tokio::time::sleep(Duration::from_secs(150)).await;
        let requests = world.api.requests();
        let asked: Vec<_> = requests.iter().filter(|it| !it.contains("watch=true")).collect();
        assert!(asked.len() < 20, "at rest nothing is asked for: {asked:?}");
        let deployment = world.api.get("deployments", "default", "web").unwrap();
        assert_eq!(condition(&deployment, "Progressing")["reason"], "ProgressDeadlineExceeded");
        assert_eq!(condition(&deployment, "Progressing")["status"], "False");
        world.set_image("v1");
        world.rolled_out(8).await;
    });
}

#[test]
fn a_paused_deployment_waits_and_scales_in_proportion() {
    for_seeds(|world| async move {
        world.node("a");
        world.api.create("deployments", "default", world.deployment(10, "v1"));
        world.rolled_out(10).await;
        world.api.edit("deployments", "default", "web", json!({ "spec": { "paused": true } }));
        world.set_image("v2");
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(world.sets().len(), 1, "nothing happens while it is paused");
        let deployment = world.api.get("deployments", "default", "web").unwrap();
        assert_eq!(condition(&deployment, "Progressing")["reason"], "DeploymentPaused");
        world.api.edit("deployments", "default", "web", json!({ "spec": { "replicas": 4 } }));
        world.until("fewer pods", |api| api.list("pods").iter().filter(|pod| is_active(pod)).count() == 4).await;
        world.api.edit("deployments", "default", "web", json!({ "spec": { "paused": false } }));
        world.rolled_out(4).await;
        // Scaled in the middle of a rollout that cannot go on.
        world.set_image("broken");
        tokio::time::sleep(Duration::from_secs(30)).await;
        world.api.edit("deployments", "default", "web", json!({ "spec": { "replicas": 12 } }));
        world
            .until("both sets to grow", |api| {
                let mut sizes: Vec<i64> =
                    api.list("replicasets").iter().filter_map(|set| set["spec"]["replicas"].as_i64()).collect();
                sizes.retain(|size| *size > 0);
                sizes.len() == 2 && sizes.iter().sum::<i64>() == 15
            })
            .await;
    });
}

#[test]
fn recreate_never_runs_two_templates_at_once() {
    for_seeds(|world| async move {
        world.node("a");
        world.api.check(|objects| {
            let images: BTreeSet<String> = objects
                .iter()
                .filter(|((plural, _, _), _)| plural == "pods")
                .map(|(_, pod)| text(&pod["spec"]["containers"][0]["image"]))
                .collect();
            assert!(images.len() <= 1, "{images:?}");
        });
        let mut deployment = world.deployment(3, "v1");
        deployment["spec"]["strategy"] = json!({ "type": "Recreate" });
        world.api.create("deployments", "default", deployment);
        world.rolled_out(3).await;
        world.set_image("v2");
        world.rolled_out(3).await;
        assert_eq!(world.current(), ("2".into(), "v2".into()));
    });
}

#[test]
fn a_thousand_pods_are_made_in_seconds_and_none_twice() {
    simulate(1, RELIABLE, |world| async move {
        world.api.check(|objects| {
            let pods = objects.keys().filter(|(plural, _, _)| plural == "pods").count();
            assert!(pods <= 1000, "{pods}");
        });
        let start = tokio::time::Instant::now();
        world.api.create("deployments", "default", world.deployment(1000, "v1"));
        world.until("a thousand pods", |api| api.list("pods").len() == 1000).await;
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        // So that the status comes to rest, too.
        world
            .until("the status", |api| {
                api.list("replicasets").first().is_some_and(|set| set["status"]["replicas"] == 1000)
            })
            .await;
        let events = world.api.list("events").len();
        assert!(events < 60, "{events} events");
    });
}

#[test]
fn pods_that_fit_are_adopted_and_others_are_let_go() {
    for_seeds(|world| async move {
        world.node("a");
        let template = world.deployment(2, "v1")["spec"]["template"].clone();
        let stray = json!({ "metadata": { "name": "stray", "labels": { "app": "web" } }, "spec": template["spec"] });
        world.api.create("pods", "default", stray);
        world.api.create(
            "replicasets",
            "default",
            json!({
                "metadata": { "name": "set" },
                "spec": { "replicas": 2, "selector": { "matchLabels": { "app": "web" } }, "template": template },
            }),
        );
        let owned = |pod: &Value| pod["metadata"]["ownerReferences"][0]["controller"] == true;
        world
            .until("two pods, one adopted", |api| {
                api.list("pods").len() == 2 && api.list("pods").iter().all(|pod| owned(pod) && is_ready(pod))
            })
            .await;
        world.api.edit("pods", "default", "stray", json!({ "metadata": { "labels": { "app": "other" } } }));
        world
            .until("a replacement", |api| {
                let stray = api.get("pods", "default", "stray");
                api.list("pods").len() == 3 && stray.is_some_and(|pod| !owned(&pod))
            })
            .await;
    });
}

#[test]
fn pods_of_a_lost_node_are_replaced_elsewhere() {
    for_seeds(|world| async move {
        let first = world.node("a");
        world.node("b");
        world
            .until("ranges", |api| {
                let ranges: BTreeSet<String> =
                    api.list("nodes").iter().map(|node| text(&node["spec"]["podCIDR"])).collect();
                ranges == BTreeSet::from(["10.42.0.0/24".to_owned(), "10.42.1.0/24".to_owned()])
            })
            .await;
        world.api.create("deployments", "default", world.deployment(4, "v1"));
        world.rolled_out(4).await;
        let lost = world.api.list("pods").iter().filter(|pod| pod["spec"]["nodeName"] == "a").count();
        assert!(lost > 0);
        let start = tokio::time::Instant::now();
        first.cancel();
        world
            .until("the node to be NotReady", |api| {
                let node = api.get("nodes", "", "a").unwrap();
                condition(&node, "Ready")["status"] == "Unknown"
                    && node["spec"]["taints"].as_array().is_some_and(|taints| taints.len() == 2)
            })
            .await;
        let noticed = start.elapsed().as_secs();
        assert!((29..60).contains(&noticed), "noticed after {noticed} s");
        world
            .until("pods elsewhere", |api| {
                let pods = api.list("pods");
                let on = |node: &str| pods.iter().filter(|pod| pod["spec"]["nodeName"] == node).count();
                let ready = pods.iter().filter(|pod| pod["spec"]["nodeName"] == "b" && is_ready(pod)).count();
                on("a") == lost && ready == 4
            })
            .await;
        for pod in world.api.list("pods").iter().filter(|pod| pod["spec"]["nodeName"] == "a") {
            assert!(!is_ready(pod) && pod["metadata"]["deletionTimestamp"].is_string());
        }
        // Its object is deleted: so is what was left of its pods.
        world.api.delete("nodes", "", "a", json!({}));
        world.until("the rest to go", |api| api.list("pods").len() == 4).await;
    });
}

#[test]
fn a_node_that_comes_back_is_ready_again() {
    for_seeds(|world| async move {
        world.node("b");
        world.api.create("nodes", "", json!({ "metadata": { "name": "a" } }));
        world
            .until("silence to be noticed", |api| {
                let node = api.get("nodes", "", "a").unwrap();
                condition(&node, "Ready")["reason"] == "NodeStatusNeverUpdated"
                    && node["spec"]["taints"].as_array().is_some_and(|taints| taints.len() == 2)
            })
            .await;
        world.api.edit(
            "nodes",
            "",
            "a",
            json!({ "status": { "conditions": [
            { "type": "Ready", "status": "True", "lastHeartbeatTime": world.api.clock.time() }] } }),
        );
        world
            .until("no taints", |api| {
                let node = api.get("nodes", "", "a").unwrap();
                node["spec"]["taints"].as_array().is_none_or(Vec::is_empty)
            })
            .await;
        // Cordoned, as kubectl does it.
        world.api.edit("nodes", "", "a", json!({ "spec": { "unschedulable": true } }));
        world
            .until("the taint", |api| {
                api.get("nodes", "", "a").unwrap()["spec"]["taints"][0]["key"] == "node.kubernetes.io/unschedulable"
            })
            .await;
    });
}

#[test]
fn endpoints_follow_the_pods() {
    for_seeds(|world| async move {
        world.node("a");
        world.api.create(
            "services",
            "default",
            json!({
                "metadata": { "name": "web", "labels": { "team": "x" } },
                "spec": { "selector": { "app": "web" }, "clusterIP": "10.43.0.9", "ipFamilies": ["IPv4"],
                          "ports": [{ "name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP" }] },
            }),
        );
        world.until("an empty slice", |api| api.list("endpointslices").len() == 1).await;
        world.api.create("deployments", "default", world.deployment(3, "v1"));
        world.rolled_out(3).await;
        let addresses = |api: &super::api::FakeApi| -> BTreeSet<String> {
            api.list("endpointslices")
                .iter()
                .flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default())
                .filter(|endpoint| endpoint["conditions"]["ready"] == true)
                .map(|endpoint| text(&endpoint["addresses"][0]))
                .collect()
        };
        let legacy = |api: &super::api::FakeApi| -> BTreeSet<String> {
            api.list("endpoints")
                .iter()
                .flat_map(|it| it["subsets"][0]["addresses"].as_array().cloned().unwrap_or_default())
                .map(|address| text(&address["ip"]))
                .collect()
        };
        let pods = |api: &super::api::FakeApi| -> BTreeSet<String> {
            api.list("pods").iter().filter(|pod| is_ready(pod)).map(|pod| text(&pod["status"]["podIP"])).collect()
        };
        world
            .until("three endpoints", |api| {
                let slices = api.list("endpointslices").len();
                slices == 1 && pods(api).len() == 3 && addresses(api) == pods(api) && legacy(api) == pods(api)
            })
            .await;
        let slice = world.api.list("endpointslices").into_iter().next().unwrap();
        assert_eq!(slice["ports"][0]["port"], 8080);
        assert_eq!(slice["metadata"]["labels"]["team"], "x");
        assert_eq!(slice["metadata"]["ownerReferences"][0]["kind"], "Service");
        world.api.edit("deployments", "default", "web", json!({ "spec": { "replicas": 1 } }));
        world.rolled_out(1).await;
        world.until("one endpoint", |api| addresses(api) == pods(api) && legacy(api) == pods(api)).await;
        world.api.delete("services", "default", "web", json!({}));
        world
            .until("nothing left", |api| api.list("endpointslices").is_empty() && api.list("endpoints").is_empty())
            .await;
    });
}

#[test]
fn deleting_a_deployment_deletes_what_it_made() {
    for (seed, policy) in (0..seeds() + 2).zip(["Background", "Foreground", "Orphan"].into_iter().cycle()) {
        simulate(seed, if seed < 3 { RELIABLE } else { HOSTILE }, |world| async move {
            world.node("a");
            world.api.create("deployments", "default", world.deployment(3, "v1"));
            world.rolled_out(3).await;
            if policy == "Foreground" {
                world.api.check(|objects| {
                    let there = |plural: &str| objects.keys().any(|(of, _, _)| of == plural);
                    assert!(there("deployments") || !there("replicasets"), "owners go last");
                    assert!(there("replicasets") || !there("pods"), "owners go last");
                });
            }
            world.api.delete("deployments", "default", "web", json!({ "propagationPolicy": policy }));
            world.until("the Deployment to go", |api| api.list("deployments").is_empty()).await;
            if policy == "Orphan" {
                tokio::time::sleep(Duration::from_secs(60)).await;
                assert_eq!(world.api.list("pods").len(), 3);
                let set = world.sets().into_values().next().unwrap();
                assert!(set["metadata"]["ownerReferences"].as_array().is_none_or(Vec::is_empty));
                // A new one of the same template takes it over.
                world.api.create("deployments", "default", world.deployment(3, "v1"));
                world.rolled_out(3).await;
                assert_eq!(world.sets().len(), 1);
            } else {
                world.until("all to go", |api| api.list("replicasets").is_empty() && api.list("pods").is_empty()).await;
            }
        });
    }
}

#[test]
fn a_namespace_goes_with_all_that_is_in_it() {
    for_seeds(|world| async move {
        world.node("a");
        world.api.create("namespaces", "", json!({ "metadata": { "name": "team" } }));
        world
            .until("its account and certificate", |api| {
                api.get("serviceaccounts", "team", "default").is_some()
                    && api
                        .get("configmaps", "team", "kube-root-ca.crt")
                        .is_some_and(|map| map["data"]["ca.crt"] == "PEM")
            })
            .await;
        world.api.delete("serviceaccounts", "team", "default", json!({}));
        world.until("the account again", |api| api.get("serviceaccounts", "team", "default").is_some()).await;
        world.api.create("deployments", "team", world.deployment(3, "v1"));
        world.api.create("secrets", "team", json!({ "metadata": { "name": "kept", "finalizers": ["a.b/c"] } }));
        world.until("pods", |api| api.list("pods").iter().filter(|pod| is_ready(pod)).count() == 3).await;
        world.api.delete("namespaces", "", "team", json!({}));
        world
            .until("what remains to be told", |api| {
                let namespace = api.get("namespaces", "", "team").unwrap();
                text(&condition(&namespace, "NamespaceFinalizersRemaining")["message"]).contains("a.b/c")
            })
            .await;
        world.api.edit("secrets", "team", "kept", json!({ "metadata": { "finalizers": [] } }));
        world.until("the namespace to go", |api| api.get("namespaces", "", "team").is_none()).await;
        let left: Vec<_> = super::api::KINDS
            .iter()
            .flat_map(|kind| world.api.list(kind.3))
            .filter(|object| place(object).0 == "team")
            .collect();
        assert!(left.is_empty(), "{left:?}");
    });
}
