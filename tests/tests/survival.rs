//! What a `kill -9`, a lost node and a restart leave whole.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use sampan_tests::{Cluster, Node, eventually, http_get, within};
use serde_json::Value;

async fn client(cluster: &Cluster) -> Client {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let kubeconfig = Kubeconfig::read_from(cluster.kubeconfig()).unwrap();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

#[test]
fn every_acknowledged_write_survives_a_kill() {
    let mut cluster = Cluster::server_that_comes_back(1);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let acknowledged = Arc::new(Mutex::new(Vec::new()));
    let client = runtime.block_on(client(&cluster));
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
            let acknowledged = acknowledged.clone();
            runtime.spawn(async move {
                for number in 0.. {
                    let name = format!("w{writer}-{number}");
                    let map = ConfigMap {
                        metadata: kube::api::ObjectMeta { name: Some(name.clone()), ..Default::default() },
                        data: Some(BTreeMap::from([("name".to_owned(), name.clone())])),
                        ..Default::default()
                    };
                    match maps.create(&Default::default(), &map).await {
                        Ok(_) => acknowledged.lock().unwrap().push(name),
                        Err(_) => return,
                    }
                }
            })
        })
        .collect();
    eventually("two hundred writes", || (acknowledged.lock().unwrap().len() > 200).then_some(()));
    cluster.kill();
    runtime.block_on(async {
        for writer in writers {
            writer.await.unwrap();
        }
    });
    cluster.resume();
    let listed = cluster.get(&["configmaps"]);
    let there: BTreeMap<&str, &Value> = listed["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|map| (map["metadata"]["name"].as_str().unwrap(), &map["data"]["name"]))
        .collect();
    for name in acknowledged.lock().unwrap().iter() {
        assert_eq!(there.get(name.as_str()).and_then(|value| value.as_str()), Some(name.as_str()), "{name} is lost");
    }
}

#[test]
fn pods_outlive_the_program_that_started_them() {
    let mut cluster = Cluster::up();
    cluster.deploy("hello");
    cluster.rolled_out("hello");
    let identity = |cluster: &Cluster| -> BTreeMap<String, Value> {
        cluster
            .pods("app=hello")
            .iter()
            .map(|pod| {
                let state = pod["status"]["containerStatuses"][0].clone();
                let seen = serde_json::json!([
                    state["containerID"],
                    state["restartCount"],
                    state["state"]["running"]["startedAt"],
                    pod["status"]["podIP"]
                ]);
                (pod["metadata"]["uid"].as_str().unwrap().to_owned(), seen)
            })
            .collect()
    };
    let before = identity(&cluster);
    let authority = format!("{}:8080", cluster.service_address("hello"));
    cluster.kill();
    cluster.resume();
    assert_eq!(identity(&cluster), before, "the same containers, not new ones");
    eventually("an answer", || http_get(&authority, "/").ok());
    // And what survived can still be ended.
    cluster.kubectl(&["delete", "deployment", "hello"]);
    eventually("no pod is left", || cluster.get(&["pods"])["items"].as_array().unwrap().is_empty().then_some(()));
}

#[test]
fn pods_of_a_lost_node_come_back_elsewhere() {
    let cluster = Cluster::server();
    let stays = Node::join(&cluster, "stays");
    let mut leaves = Node::join(&cluster, "leaves");
    cluster.deploy("hello");
    // Nobody wants to wait the usual five minutes.
    let tolerations = ["not-ready", "unreachable"].map(|taint| {
        format!(
            r#"{{"key":"node.kubernetes.io/{taint}","operator":"Exists","effect":"NoExecute","tolerationSeconds":1}}"#
        )
    });
    let patch =
        format!(r#"{{"spec":{{"replicas":4,"template":{{"spec":{{"tolerations":[{}]}}}}}}}}"#, tolerations.join(","));
    cluster.kubectl(&["patch", "deployment", "hello", "--patch", &patch]);
    cluster.rolled_out("hello");
    let on = |name: &str| cluster.pods("app=hello").iter().filter(|pod| pod["spec"]["nodeName"] == name).count();
    assert!(on("stays") > 0 && on("leaves") > 0, "spread over both nodes");
    leaves.lose_power();
    let limit = Duration::from_secs(120);
    within(limit, "the node counts as lost", &mut || {
        let node = cluster.get(&["node", "leaves"]);
        let conditions = node["status"]["conditions"].as_array().unwrap();
        conditions.iter().any(|one| one["type"] == "Ready" && one["status"] == "Unknown").then_some(())
    });
    within(limit, "all four run on the other node", &mut || {
        let pods = cluster.pods("app=hello");
        let ready = |pod: &&Value| {
            pod["spec"]["nodeName"] == stays.name.as_str()
                && pod["status"]["conditions"]
                    .as_array()
                    .is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
        };
        (pods.iter().filter(ready).count() == 4).then_some(())
    });
    let authority = format!("{}:8080", cluster.service_address("hello"));
    for _ in 0..20 {
        assert_eq!(http_get(&authority, "/").unwrap().0, 200, "nobody is sent to the lost node");
    }
}
