//! `sampan token create`: a bootstrap token, as Kubernetes keeps them, that also pins the CA.

use anyhow::{Context as _, Result};
use http::Request;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, PostParams};
use rand::distr::Distribution as _;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{explain, print_json};
use crate::cli::TokenCommand;
use crate::kubeconfig;

/// The letters of both parts of a bootstrap token.
struct Letters;

impl rand::distr::Distribution<char> for Letters {
    fn sample<R: rand::Rng + ?Sized>(&self, random: &mut R) -> char {
        char::from_digit(random.random_range(0..36), 36).unwrap_or('0')
    }
}

pub async fn run(TokenCommand::Create { ttl, output, cluster }: TokenCommand) -> Result<()> {
    let client = kubeconfig::client(cluster.kubeconfig.as_deref()).await?;
    let ca = client.request_text(Request::get("/cacerts").body(Vec::new())?).await.map_err(explain)?;
    let pin = pin(&ca)?;

    let letters = |count| Letters.sample_iter(rand::rng()).take(count).collect::<String>();
    let (id, secret) = (letters(6), letters(16));
    let mut data = json!({
        "token-id": id,
        "token-secret": secret,
        "usage-bootstrap-authentication": "true",
        "usage-bootstrap-signing": "true",
        "description": "made by sampan token create",
    });
    let mut expiration = None;
    if ttl > 0 {
        let end = Timestamp::now().checked_add(SignedDuration::from_hours(ttl.into()))?;
        let text = end.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        data["expiration"] = text.clone().into();
        expiration = Some(text);
    }
    let object: Secret = serde_json::from_value(json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": { "name": format!("bootstrap-token-{id}"), "namespace": "kube-system" },
        "type": "bootstrap.kubernetes.io/token",
        "stringData": data,
    }))?;
    let secrets: Api<Secret> = Api::namespaced(client, "kube-system");
    secrets.create(&PostParams::default(), &object).await.map_err(explain)?;
    let token = format!("{id}.{secret}.{pin}");
    if output.is_some() {
        return print_json(&json!({ "token": token, "expiration": expiration }));
    }
    println!("{token}");
    Ok(())
}

/// SHA-256 of the CA's certificate, in hexadecimal: what a joining node checks before it trusts the server.
fn pin(ca_pem: &str) -> Result<String> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;
    let der = CertificateDer::from_pem_slice(ca_pem.as_bytes()).context("the server's CA certificate")?;
    Ok(Sha256::digest(&der).iter().map(|byte| format!("{byte:02x}")).collect())
}
