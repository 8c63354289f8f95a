//! Services with endpoints that need no pod.

use std::path::Path;

use anyhow::Result;
use hyper::Method;
use serde_json::json;

use super::{Meter, Outcome};
use crate::client::{Api, Connection};

/// Nobody ever sends to them: addresses for documentation.
const ENDPOINTS: [&str; 3] = ["192.0.2.1", "192.0.2.2", "192.0.2.3"];

pub async fn create(kubeconfig: &Path, namespace: &str, count: usize) -> Result<Outcome> {
    let api = Api::open(kubeconfig)?;
    let core = format!("/api/v1/namespaces/{namespace}/services");
    let slices = format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices");
    let meter = Meter::begin();
    let latencies = super::spread_out(&api, count, move |mut connection: Connection, number| {
        let (core, slices) = (core.clone(), slices.clone());
        async move {
            let name = format!("service-{number:05}");
            let service = json!({ "metadata": { "name": name }, "spec": { "ports": [{ "name": "http", "port": 80 }] } });
            let body = service.to_string();
            connection.call(Method::POST, &core, "application/json", body).await?;
            let slice = json!({
                "metadata": { "name": name, "labels": { "kubernetes.io/service-name": name } },
                "addressType": "IPv4",
                "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
                "endpoints": ENDPOINTS.map(|address| json!({ "addresses": [address], "conditions": { "ready": true } })),
            });
            connection.call(Method::POST, &slices, "application/json", slice.to_string()).await?;
            Ok(connection)
        }
    })
    .await?;
    Ok(meter.end(&latencies))
}
