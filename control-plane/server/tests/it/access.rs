//! Who may come in, and what they may do: over TLS as clients do, and in the router.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sampan_server::Identity;
use serde_json::{Value, json};

use crate::harness::Harness;

type Https = Client<hyper_rustls::HttpsConnector<hyper_util::client::legacy::connect::HttpConnector>, Full<Bytes>>;

/// A client that trusts the CA, with a certificate or without.
fn https(ca: &str, own: Option<(String, String)>) -> Https {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let tls = match own {
        Some((cert, key)) => {
            let chain = CertificateDer::pem_slice_iter(cert.as_bytes()).collect::<Result<_, _>>().unwrap();
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_only()
        .enable_http1()
        .enable_http2()
        .build();
    Client::builder(TokioExecutor::new()).build(connector)
}

async fn send(
    harness: &Harness,
    client: &Https,
    method: Method,
    path: &str,
    token: &str,
    body: String,
) -> (StatusCode, String) {
    let mut request = Request::builder()
        .method(method)
        .uri(format!("https://localhost:{}{path}", harness.server.local_addr().port()));
    if !token.is_empty() {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let request = request.header("content-type", "application/json").body(Full::from(body)).unwrap();
    let response = client.request(request).await.unwrap();
    let code = response.status();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (code, String::from_utf8_lossy(&bytes).into_owned())
}

#[tokio::test]
async fn certificates_and_tokens() {
    let harness = Harness::start().await;
    let ca = harness.server.ca_pem().to_owned();
    let admin = https(&ca, Some(harness.server.client_certificate("root", &["system:masters"]).unwrap()));
    let nobody = https(&ca, None);
    let get = |client: Https, path: &'static str, token: String| {
        let harness = &harness;
        async move { send(harness, &client, Method::GET, path, &token, String::new()).await }
    };
    assert_eq!(get(admin.clone(), "/api/v1/namespaces/default", String::new()).await.0, StatusCode::OK);
    let (code, text) = get(nobody.clone(), "/api/v1/pods", String::new()).await;
    assert_eq!(code, StatusCode::FORBIDDEN);
    let refused: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        refused["message"],
        "pods is forbidden: User \"system:anonymous\" cannot list resource \"pods\" in API group \"\" at the cluster scope"
    );
    assert_eq!(get(nobody.clone(), "/cacerts", String::new()).await, (StatusCode::OK, ca));
    assert_eq!(get(nobody.clone(), "/readyz", String::new()).await, (StatusCode::OK, "ok".to_owned()));
    assert_eq!(get(nobody.clone(), "/api", String::new()).await.0, StatusCode::FORBIDDEN);
    assert_eq!(get(nobody.clone(), "/readyz", "nonsense".to_owned()).await.0, StatusCode::UNAUTHORIZED);

    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    harness.call(Method::POST, accounts, json!({"metadata": {"name": "robot"}})).await;
    let (_, answer) = harness.call(Method::POST, &format!("{accounts}/robot/token"), json!({"spec": {}})).await;
    let token = answer["status"]["token"].as_str().unwrap().to_owned();
    let (code, text) = get(nobody.clone(), "/api/v1/namespaces/default/pods", token.clone()).await;
    assert_eq!(code, StatusCode::FORBIDDEN);
    assert!(text.contains("system:serviceaccount:default:robot"), "{text}");
    assert_eq!(get(nobody.clone(), "/apis", token.clone()).await.0, StatusCode::OK);
    let (_, review) = harness
        .call(Method::POST, "/apis/authentication.k8s.io/v1/tokenreviews", json!({"spec": {"token": token}}))
        .await;
    assert_eq!(review["status"]["user"]["username"], "system:serviceaccount:default:robot");
    harness.call(Method::DELETE, &format!("{accounts}/robot"), Value::Null).await;
    assert_eq!(get(nobody, "/apis", token).await.0, StatusCode::UNAUTHORIZED);
}

fn bootstrap_secret(id: &str, secret: &str, expiration: &str) -> Value {
    let data = |text: &str| STANDARD.encode(text);
    json!({
        "metadata": {"name": format!("bootstrap-token-{id}")},
        "type": "bootstrap.kubernetes.io/token",
        "data": {
            "token-id": data(id), "token-secret": data(secret), "expiration": data(expiration),
            "usage-bootstrap-authentication": data("true"),
        },
    })
}

#[tokio::test]
async fn a_node_gets_its_certificate_for_a_bootstrap_token() {
    let harness = Harness::start().await;
    const SECRETS: &str = "/api/v1/namespaces/kube-system/secrets";
    harness.call(Method::POST, SECRETS, bootstrap_secret("abcdef", "0123456789abcdef", "2999-01-01T00:00:00Z")).await;
    harness.call(Method::POST, SECRETS, bootstrap_secret("expird", "0123456789abcdef", "2001-01-01T00:00:00Z")).await;
    let nobody = https(harness.server.ca_pem(), None);
    let key = rcgen::KeyPair::generate().unwrap();
    let request = |user: &str| {
        let mut params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(rcgen::DnType::CommonName, user);
        params.serialize_request(&key).unwrap().pem().unwrap()
    };
    const PATH: &str = "/bootstrap/v1/node-certificate";
    let ask = |token: &'static str, body: String| send(&harness, &nobody, Method::POST, PATH, token, body);
    let own = request("system:node:n1");
    assert_eq!(ask("", own.clone()).await.0, StatusCode::FORBIDDEN);
    assert_eq!(ask("abcdef.0123456789abcdee", own.clone()).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(ask("expird.0123456789abcdef", own.clone()).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(ask("abcdef.0123456789abcdef", request("kubernetes-admin")).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(ask("abcdef.0123456789abcdef", "rubbish".to_owned()).await.0, StatusCode::BAD_REQUEST);
    let (code, chain) = ask("abcdef.0123456789abcdef", own).await;
    assert_eq!(code, StatusCode::OK, "{chain}");
    let node = https(harness.server.ca_pem(), Some((chain, key.serialize_pem())));
    let (code, text) = send(&harness, &node, Method::GET, "/api/v1/nodes", "", String::new()).await;
    assert_eq!(code, StatusCode::OK, "{text}");
    let made = json!({"metadata": {"name": "n1"}}).to_string();
    assert_eq!(send(&harness, &node, Method::POST, "/api/v1/nodes", "", made).await.0, StatusCode::CREATED);
    let other = json!({"metadata": {"name": "n2"}}).to_string();
    assert_eq!(send(&harness, &node, Method::POST, "/api/v1/nodes", "", other).await.0, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn a_node_sees_what_its_pods_name() {
    let harness = Harness::start().await;
    let node = || Identity::node("n1");
    let default = "/api/v1/namespaces/default";
    harness.call(Method::POST, &format!("{default}/serviceaccounts"), json!({"metadata": {"name": "default"}})).await;
    for name in ["seen", "unseen"] {
        harness.call(Method::POST, &format!("{default}/secrets"), json!({"metadata": {"name": name}})).await;
    }
    let pod = json!({"metadata": {"name": "p"}, "spec": {
        "nodeName": "n1",
        "containers": [{"name": "c", "image": "x:1", "envFrom": [{"secretRef": {"name": "seen"}}]}],
    }});
    let (code, made) = harness.call(Method::POST, &format!("{default}/pods"), pod).await;
    assert_eq!(code, StatusCode::CREATED, "{made}");
    let ask = |identity: Identity, method: Method, path: String, body: Value| {
        let harness = &harness;
        async move { harness.call_as(identity, method, &path, body).await.0 }
    };
    let get = |path: String| ask(node(), Method::GET, path, Value::Null);
    assert_eq!(get(format!("{default}/secrets/seen")).await, StatusCode::OK);
    assert_eq!(get(format!("{default}/secrets/unseen")).await, StatusCode::FORBIDDEN);
    assert_eq!(get(format!("{default}/secrets")).await, StatusCode::FORBIDDEN);
    assert_eq!(get("/api/v1/pods".to_owned()).await, StatusCode::FORBIDDEN);
    assert_eq!(get("/api/v1/pods?fieldSelector=spec.nodeName%3Dn1".to_owned()).await, StatusCode::OK);
    assert_eq!(get("/api/v1/pods?fieldSelector=spec.nodeName%3Dn2".to_owned()).await, StatusCode::FORBIDDEN);
    assert_eq!(get("/api/v1/namespaces/kube-system/configmaps/sampan-cluster".to_owned()).await, StatusCode::OK);
    let status = json!({"status": {"phase": "Running"}});
    assert_eq!(ask(node(), Method::PATCH, format!("{default}/pods/p/status"), status.clone()).await, StatusCode::OK);
    let other = Identity::node("n2");
    assert_eq!(
        ask(other.clone(), Method::PATCH, format!("{default}/pods/p/status"), status).await,
        StatusCode::FORBIDDEN
    );
    let uid = made["metadata"]["uid"].clone();
    let token = json!({"spec": {"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": uid}}});
    let path = format!("{default}/serviceaccounts/default/token");
    assert_eq!(ask(node(), Method::POST, path.clone(), token.clone()).await, StatusCode::CREATED);
    assert_eq!(ask(node(), Method::POST, path.clone(), json!({"spec": {}})).await, StatusCode::FORBIDDEN);
    assert_eq!(ask(other, Method::POST, path, token).await, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn components_have_their_roles() {
    let harness = Harness::start().await;
    for (identity, method, path, code) in [
        (Identity::scheduler(), Method::GET, "/api/v1/pods", StatusCode::OK),
        (Identity::scheduler(), Method::GET, "/api/v1/secrets", StatusCode::FORBIDDEN),
        (Identity::scheduler(), Method::GET, "/apis/apps/v1/replicasets", StatusCode::OK),
        (Identity::controller_manager(), Method::GET, "/api/v1/secrets", StatusCode::OK),
        (
            Identity::new("somebody", [] as [&str; 0]),
            Method::GET,
            "/api/v1/namespaces/default/pods",
            StatusCode::FORBIDDEN,
        ),
        (Identity::new("somebody", [] as [&str; 0]), Method::GET, "/apis/apps/v1", StatusCode::OK),
    ] {
        let (got, answer) = harness.call_as(identity.clone(), method, path, Value::Null).await;
        assert_eq!(got, code, "{} {path}: {answer}", identity.user);
    }
    let request = Request::builder()
        .uri("/api/v1/pods")
        .header("impersonate-user", "somebody")
        .body(axum::body::Body::empty())
        .unwrap();
    assert_eq!(harness.send(Identity::admin(), request).await.status(), StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn the_end_waits_for_answers_not_for_watches() {
    let harness = Harness::start().await;
    let ca = harness.server.ca_pem().to_owned();
    let admin = https(&ca, Some(harness.server.client_certificate("root", &["system:masters"]).unwrap()));
    let port = harness.server.local_addr().port();
    let request = Request::builder()
        .uri(format!("https://localhost:{port}/api/v1/pods?watch=true"))
        .body(Full::from(Bytes::new()))
        .unwrap();
    let response = admin.request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let Harness { server, shutdown, .. } = harness;
    shutdown.cancel();
    response.into_body().collect().await.unwrap();
    tokio::time::timeout(Duration::from_secs(8), server.finished()).await.unwrap();
}
