//! The node's heartbeat.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio_util::sync::CancellationToken;

const NAMESPACE: &str = "kube-node-lease";
const DURATION: i32 = 40;
const EVERY: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(2);

/// Renews the node's lease every ten seconds, until shutdown.
pub async fn renew(client: Client, node: core::Node, shutdown: CancellationToken) {
    let leases: Api<Lease> = Api::namespaced(client, NAMESPACE);
    let name = node.metadata.name.clone().unwrap_or_default();
    loop {
        let wait = match renew_once(&leases, &name, &node).await {
            Ok(()) => EVERY,
            Err(error) => {
                tracing::warn!(%error, "lease not renewed; trying again");
                RETRY
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

async fn renew_once(leases: &Api<Lease>, name: &str, node: &core::Node) -> kube::Result<()> {
    let now = MicroTime(Timestamp::now());
    let patch = json!({ "spec": { "holderIdentity": name, "leaseDurationSeconds": DURATION, "renewTime": now } });
    match leases.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        result => return result.map(|_| ()),
    }
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(NAMESPACE.to_owned()),
            owner_references: node.metadata.uid.clone().map(|uid| {
                vec![OwnerReference {
                    api_version: "v1".to_owned(),
                    kind: "Node".to_owned(),
                    name: name.to_owned(),
                    uid,
                    ..Default::default()
                }]
            }),
            ..Default::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(name.to_owned()),
            lease_duration_seconds: Some(DURATION),
            renew_time: Some(now),
            ..Default::default()
        }),
    };
    leases.create(&PostParams::default(), &lease).await.map(|_| ())
}
