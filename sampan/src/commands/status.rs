//! `sampan status`: the cluster at a glance.

use anyhow::Result;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Event, Node, Pod, Service};
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt as _};
use sampan_api::quantity::Quantity;
use serde::Serialize;
use serde_json::Value;

use super::warnings::{self, Existing, Warning};
use super::{explain, get, print_json};
use crate::cli::StatusArgs;
use crate::kubeconfig;
use crate::terminal::print_table;

#[derive(Serialize)]
struct Status {
    server: String,
    version: String,
    nodes: Vec<NodeStatus>,
    pods: Pods,
    deployments: Vec<DeploymentStatus>,
    services: Vec<ServiceStatus>,
    warnings: Vec<Warning>,
}

#[derive(Serialize)]
struct NodeStatus {
    name: String,
    ready: bool,
    pods: usize,
    /// Pods it takes; `None` until it says so.
    capacity: Option<i64>,
    /// Conditions that are not as they should be, in their own words.
    notes: Vec<String>,
}

#[derive(Default, Serialize)]
struct Pods {
    total: usize,
    running: usize,
    ready: usize,
    pending: usize,
    succeeded: usize,
    failed: usize,
}

#[derive(Serialize)]
struct DeploymentStatus {
    namespace: String,
    name: String,
    ready: i32,
    wanted: i32,
}

#[derive(Serialize)]
struct ServiceStatus {
    namespace: String,
    name: String,
    address: String,
    ports: Vec<String>,
}

pub async fn run(args: StatusArgs) -> Result<()> {
    let client = kubeconfig::client(args.cluster.kubeconfig.as_deref()).await?;
    let status = gather(&client, kubeconfig::find(args.cluster.kubeconfig.as_deref())?.display().to_string()).await?;
    if args.output.is_some() {
        return print_json(&status);
    }
    print(&status);
    Ok(())
}

async fn gather(client: &Client, kubeconfig: String) -> Result<Status> {
    let all = ListParams::default();
    let (nodes, pods, sets, deployments, services, events) = (
        Api::<Node>::all(client.clone()),
        Api::<Pod>::all(client.clone()),
        Api::<ReplicaSet>::all(client.clone()),
        Api::<Deployment>::all(client.clone()),
        Api::<Service>::all(client.clone()),
        Api::<Event>::all(client.clone()),
    );
    let only_warnings = ListParams::default().fields("type=Warning");
    let (version, nodes, pods, sets, deployments, services, events) = tokio::try_join!(
        get::<Value>(client, "/version", "application/json"),
        async { nodes.list(&all).await.map_err(explain) },
        async { pods.list(&all).await.map_err(explain) },
        async { sets.list(&all).await.map_err(explain) },
        async { deployments.list(&all).await.map_err(explain) },
        async { services.list(&all).await.map_err(explain) },
        async { events.list(&only_warnings).await.map_err(explain) },
    )?;
    let mut existing = Existing::default();
    existing.add("Node", &nodes.items);
    existing.add("Pod", &pods.items);
    existing.add("ReplicaSet", &sets.items);
    existing.add("Deployment", &deployments.items);
    existing.add("Service", &services.items);
    Ok(Status {
        server: kubeconfig,
        version: version["gitVersion"].as_str().unwrap_or("unknown").to_owned(),
        nodes: nodes.items.iter().map(|node| node_status(node, &pods.items)).collect(),
        pods: count(&pods.items),
        deployments: deployments.items.iter().map(deployment_status).collect(),
        services: services.items.iter().map(service_status).collect(),
        warnings: warnings::newest(events.items, &existing),
    })
}

fn node_status(node: &Node, pods: &[Pod]) -> NodeStatus {
    let name = node.name_any();
    let status = node.status.clone().unwrap_or_default();
    let conditions = status.conditions.unwrap_or_default();
    let notes = conditions
        .iter()
        // What a node can run is no trouble either way.
        .filter(|condition| condition.type_ != "LinuxContainers")
        .filter(|condition| {
            let good = matches!(condition.type_.as_str(), "Ready" | "GuestsConfined");
            good != (condition.status == "True")
        })
        .map(|condition| {
            format!(
                "{}: {}",
                condition.type_,
                condition.message.as_deref().or(condition.reason.as_deref()).unwrap_or("")
            )
        })
        .collect();
    NodeStatus {
        ready: conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True"),
        pods: pods
            .iter()
            .filter(|pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(&name))
            .count(),
        capacity: status
            .capacity
            // A quantity: a thousand pods are "1k".
            .and_then(|capacity| Quantity::parse(&capacity.get("pods")?.0).ok())
            .map(|pods| pods.value()),
        name,
        notes,
    }
}

fn count(pods: &[Pod]) -> Pods {
    let mut counted = Pods { total: pods.len(), ..Default::default() };
    for status in pods.iter().filter_map(|pod| pod.status.as_ref()) {
        match status.phase.as_deref() {
            Some("Running") => counted.running += 1,
            Some("Succeeded") => counted.succeeded += 1,
            Some("Failed") => counted.failed += 1,
            _ => counted.pending += 1,
        }
        let ready = |condition: &k8s_openapi::api::core::v1::PodCondition| {
            condition.type_ == "Ready" && condition.status == "True"
        };
        if status.conditions.iter().flatten().any(ready) {
            counted.ready += 1;
        }
    }
    counted
}

fn deployment_status(deployment: &Deployment) -> DeploymentStatus {
    DeploymentStatus {
        namespace: deployment.namespace().unwrap_or_default(),
        name: deployment.name_any(),
        ready: deployment.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0),
        wanted: deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1),
    }
}

fn service_status(service: &Service) -> ServiceStatus {
    let spec = service.spec.clone().unwrap_or_default();
    ServiceStatus {
        namespace: service.namespace().unwrap_or_default(),
        name: service.name_any(),
        address: spec.cluster_ip.or(spec.external_name).unwrap_or_default(),
        ports: spec
            .ports
            .iter()
            .flatten()
            .map(|port| match port.node_port {
                Some(node_port) => format!("{}:{node_port}/{}", port.port, port.protocol.as_deref().unwrap_or("TCP")),
                None => format!("{}/{}", port.port, port.protocol.as_deref().unwrap_or("TCP")),
            })
            .collect(),
    }
}

fn print(status: &Status) {
    let line = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<String>>();
    println!("server {} ({})\n", status.version, status.server);
    print_table(
        &line(&["NODE", "READY", "PODS", "OF"]),
        status.nodes.iter().map(|node| {
            let capacity = node.capacity.map_or_else(|| "-".to_owned(), |pods| pods.to_string());
            line(&[&node.name, if node.ready { "yes" } else { "no" }, &node.pods.to_string(), &capacity])
        }),
    );
    for node in &status.nodes {
        node.notes.iter().for_each(|note| println!("  {}: {note}", node.name));
    }
    let pods = &status.pods;
    println!(
        "\n{} pods: {} running, {} ready, {} pending, {} succeeded, {} failed",
        pods.total, pods.running, pods.ready, pods.pending, pods.succeeded, pods.failed
    );
    if !status.deployments.is_empty() {
        println!();
        print_table(
            &line(&["NAMESPACE", "DEPLOYMENT", "READY"]),
            status
                .deployments
                .iter()
                .map(|it| line(&[&it.namespace, &it.name, &format!("{}/{}", it.ready, it.wanted)])),
        );
    }
    println!();
    print_table(
        &line(&["NAMESPACE", "SERVICE", "ADDRESS", "PORTS"]),
        status.services.iter().map(|it| line(&[&it.namespace, &it.name, &it.address, &it.ports.join(",")])),
    );
    if !status.warnings.is_empty() {
        println!("\nnewest warnings:");
        for warning in &status.warnings {
            let Warning { object, others, reason, message, count } = warning;
            let more = if *others > 0 { format!(" and {others} more") } else { String::new() };
            println!("  {object}{more} {reason} ({count}x): {message}");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    #[test]
    fn only_trouble_is_noted() {
        let node = |conditions: serde_json::Value| {
            serde_json::from_value(json!({ "status": { "conditions": conditions } })).unwrap()
        };
        let condition = |kind: &str, status: &str| json!({ "type": kind, "status": status, "message": "m", "lastHeartbeatTime": null, "lastTransitionTime": null });
        let fine =
            [("Ready", "True"), ("GuestsConfined", "True"), ("LinuxContainers", "True"), ("DiskPressure", "False")];
        let fine: Vec<_> = fine.iter().map(|(kind, status)| condition(kind, status)).collect();
        assert!(super::node_status(&node(fine.into()), &[]).notes.is_empty());
        let trouble = [("GuestsConfined", "False"), ("LinuxContainers", "False"), ("DiskPressure", "True")];
        let trouble: Vec<_> = trouble.iter().map(|(kind, status)| condition(kind, status)).collect();
        assert_eq!(super::node_status(&node(trouble.into()), &[]).notes, ["GuestsConfined: m", "DiskPressure: m"]);
    }

    #[test]
    fn a_thousand_pods_are_a_number() {
        for (text, number) in [("1k", Some(1000)), ("110", Some(110)), ("many", None)] {
            let node = serde_json::from_value(json!({ "status": { "capacity": { "pods": text } } })).unwrap();
            assert_eq!(super::node_status(&node, &[]).capacity, number);
        }
    }
}
