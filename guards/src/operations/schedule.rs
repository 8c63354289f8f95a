//! The decision where a pod goes, in a cluster that holds some.

use std::hint::black_box;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use k8s_openapi::api::core::v1::{Node, Pod};
use sampan_scheduler::Decisions;
use serde_json::json;

use super::Taken;
use crate::meter::Meter;

const NODES: usize = 200;
const PLACED: usize = 600;
const TIMES: usize = 30;

pub async fn schedule() -> Result<Taken> {
    let mut decisions = Decisions::default();
    for number in 0..NODES {
        decisions.set_node(Arc::new(node(number)?));
    }
    let mut place = |pod: &Pod| decisions.schedule(pod).map_err(|diagnosis| anyhow!("{diagnosis}"));
    for number in 0..PLACED {
        place(&pod(number)?)?;
    }
    let pods = (PLACED..PLACED + TIMES).map(pod).collect::<Result<Vec<_>>>()?;
    let meter = Meter::start();
    for pod in &pods {
        black_box(place(pod)?);
    }
    Ok(meter.end(TIMES))
}

/// Half of them have what pods ask for.
fn node(number: usize) -> Result<Node> {
    let name = format!("node-{number:04}");
    Ok(serde_json::from_value(json!({
        "metadata": {
            "name": name,
            "labels": {
                "kubernetes.io/hostname": name,
                "topology.kubernetes.io/zone": format!("zone-{}", number % 3),
                "disk": if number.is_multiple_of(2) { "ssd" } else { "hdd" },
            },
        },
        "status": {
            "allocatable": { "cpu": "16", "memory": "64Gi", "pods": "110" },
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    }))?)
}

fn pod(number: usize) -> Result<Pod> {
    let tolerate = |key: &str| json!({ "key": format!("node.kubernetes.io/{key}"), "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300 });
    Ok(serde_json::from_value(json!({
        "metadata": {
            "name": format!("pod-{number:06}"),
            "namespace": "default",
            "uid": format!("00000000-0000-0000-0000-{number:012}"),
            "labels": { "app": "web" },
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web",
                "uid": format!("owner-{:04}", number / 100), "controller": true,
            }],
        },
        "spec": {
            "containers": [{
                "name": "web",
                "image": "localhost/hello:v1",
                "resources": { "requests": { "cpu": "100m", "memory": "64Mi" } },
            }],
            "nodeSelector": { "disk": "ssd" },
            "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{ "matchExpressions": [
                    { "key": "topology.kubernetes.io/zone", "operator": "In", "values": ["zone-0", "zone-1"] },
                ] }],
            } } },
            "tolerations": [tolerate("not-ready"), tolerate("unreachable")],
        },
    }))?)
}
