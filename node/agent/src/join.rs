//! How a node gets into a cluster: a token that pins the cluster's CA, a key made here, and a
//! certificate that the server signs for it.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kube::client::ConfigExt as _;
use kube::client::retry::RetryPolicy;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tower::retry::RetryLayer;
use tower::{BoxError, ServiceBuilder};
use x509_parser::prelude::{FromDer, X509Certificate};

const LARGEST: usize = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(15);
/// After so long without a sign of the server a connection is given up: a watch on one that was cut
/// would wait for ever.
const SILENCE: Duration = Duration::from_secs(30);
/// A certificate with less left than this is asked for anew, where a token is given.
const RENEW_DAYS: i64 = 30;

/// A certificate and its key, both PEM.
#[derive(Clone, Debug)]
pub struct Certificate {
    pub cert_pem: String,
    pub key_pem: String,
}

/// What a node needs to take part.
#[derive(Clone)]
pub struct Joined {
    pub server: Uri,
    pub ca_pem: String,
    /// Client certificate of `system:node:NAME`, and what the node's own listener shows.
    pub certificate: Certificate,
}

/// A key and the request to certify it.
pub struct CertificateRequest {
    pub csr_pem: String,
    pub key_pem: String,
}

impl CertificateRequest {
    /// For the node of this name at these addresses.
    pub fn new(node_name: &str, addresses: &[IpAddr]) -> anyhow::Result<Self> {
        let mut names: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        names.push(node_name.to_owned());
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(DnType::CommonName, format!("system:node:{node_name}"));
        let key = KeyPair::generate()?;
        Ok(Self { csr_pem: params.serialize_request(&key)?.pem()?, key_pem: key.serialize_pem() })
    }
}

/// The parts of what `sampan token create` printed: `ID.SECRET.CAHASH`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Token<'a> {
    bearer: &'a str,
    ca_hash: &'a str,
}

fn parse_token(text: &str) -> anyhow::Result<Token<'_>> {
    let text = text.trim();
    let form = "a token is ID.SECRET.CAHASH, as `sampan token create` prints it";
    let (bearer, ca_hash) = text.rsplit_once('.').context(form)?;
    let (id, secret) = bearer.split_once('.').context(form)?;
    let word =
        |text: &str, length| text.len() == length && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let hash = ca_hash.len() == 64 && ca_hash.bytes().all(|b| b.is_ascii_hexdigit());
    ensure!(word(id, 6) && word(secret, 16) && hash, "{form}");
    Ok(Token { bearer, ca_hash })
}

/// Joins the cluster behind `server_url`, or goes on as a member: what `dir` holds is used while it
/// is valid, and only then is a token needed.
pub async fn join(
    server_url: &str,
    token: Option<&str>,
    dir: &Path,
    node_name: &str,
    addresses: &[IpAddr],
) -> anyhow::Result<Joined> {
    let server: Uri = server_url.parse().with_context(|| format!("--server {server_url:?} is not a URL"))?;
    ensure!(
        server.scheme_str() == Some("https") && server.host().is_some(),
        "--server {server_url:?}: give it as https://ADDRESS:PORT"
    );
    if let Some(certificate) = member(dir, node_name, addresses, token.is_some())? {
        let ca_pem = read(&dir.join("ca.crt"))?.context("ca.crt is missing")?;
        return Ok(Joined { server, ca_pem, certificate });
    }
    let token = token.context("this node is not a member yet: give --token, as `sampan token create` prints it")?;
    let token = parse_token(token)?;
    let ca_pem = fetch_ca(&server, token.ca_hash).await?;
    let request = CertificateRequest::new(node_name, addresses)?;
    let tls = trusting(&ca_pem)?;
    let post = Request::post("/bootstrap/v1/node-certificate")
        .header("authorization", format!("Bearer {}", token.bearer))
        .header("content-type", "application/x-pem-file")
        .body(Full::new(Bytes::from(request.csr_pem)))?;
    let (status, body) = send(&server, tls, post).await?;
    let text = String::from_utf8_lossy(&body).into_owned();
    if !status.is_success() {
        let message = serde_json::from_slice::<serde_json::Value>(&body)
            .ok()
            .and_then(|status| status.get("message")?.as_str().map(str::to_owned))
            .unwrap_or(text);
        let remedy = match status.as_u16() {
            401 => "; --token is of no use, or its time is over: `sampan token create` makes another",
            _ => "",
        };
        bail!("the cluster gave no certificate ({status}): {message}{remedy}");
    }
    check(&text, node_name).context("the cluster's answer")?;
    fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    write(&dir.join("ca.crt"), &ca_pem)?;
    write(&dir.join("node.key"), &request.key_pem)?;
    // Last: its presence says that the others are whole.
    write(&dir.join("node.crt"), &text)?;
    Ok(Joined { server, ca_pem, certificate: Certificate { cert_pem: text, key_pem: request.key_pem } })
}

impl Joined {
    /// How to reach the cluster's API as this node.
    pub fn client(&self) -> anyhow::Result<kube::Client> {
        let mut config = kube::Config::new(self.server.clone());
        let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(self.ca_pem.as_bytes())
            .map(|certificate| certificate.map(|certificate| certificate.to_vec()))
            .collect();
        config.root_cert = Some(roots.context("the cluster's CA")?);
        config.read_timeout = None;
        config.auth_info.client_certificate_data = Some(encode(&self.certificate.cert_pem));
        config.auth_info.client_key_data = Some(encode(&self.certificate.key_pem).into());
        // Another may be there already, which is as good.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(PATIENCE));
        http.set_keepalive(Some(SILENCE / 2));
        http.set_keepalive_interval(Some(SILENCE / 6));
        http.set_tcp_user_timeout(Some(SILENCE));
        let https = config.rustls_https_connector_with_connector(http)?;
        let service = ServiceBuilder::new()
            .layer(config.base_uri_layer())
            .layer(RetryLayer::new(RetryPolicy::server_retry()))
            .map_err(BoxError::from)
            .service(legacy::Client::builder(TokioExecutor::new()).build(https));
        Ok(kube::Client::new(service, config.default_namespace))
    }
}

fn encode(text: &str) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(text)
}

fn read(path: &Path) -> anyhow::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let temporary = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().with_context(|| path.display().to_string())
}

/// The certificate in `dir`, if it can still be used.
fn member(dir: &Path, node_name: &str, addresses: &[IpAddr], renewable: bool) -> anyhow::Result<Option<Certificate>> {
    let (Some(cert_pem), Some(key_pem)) = (read(&dir.join("node.crt"))?, read(&dir.join("node.key"))?) else {
        return Ok(None);
    };
    let days = check(&cert_pem, node_name)
        .with_context(|| format!("{}: remove it to join anew", dir.join("node.crt").display()))?;
    if days < 0 || (renewable && (days < RENEW_DAYS || !covers(&cert_pem, addresses))) {
        return Ok(None);
    }
    Ok(Some(Certificate { cert_pem, key_pem }))
}

/// Days that are left to a node's certificate.
fn check(cert_pem: &str, node_name: &str) -> anyhow::Result<i64> {
    let der = CertificateDer::from_pem_slice(cert_pem.as_bytes())
        .map_err(|error| anyhow::anyhow!("no PEM certificate: {error:?}"))?;
    let (_, certificate) = X509Certificate::from_der(&der).context("no X.509 certificate")?;
    let user = format!("system:node:{node_name}");
    let names: Vec<&str> = certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok()).collect();
    ensure!(names == [user.as_str()], "the certificate is for {names:?}, this node is {user:?}");
    let seconds = certificate.validity().not_after.timestamp() - jiff::Timestamp::now().as_second();
    Ok(seconds.div_euclid(24 * 3600))
}

/// Whether the certificate names all addresses.
fn covers(cert_pem: &str, addresses: &[IpAddr]) -> bool {
    use x509_parser::extensions::GeneralName;
    let Ok(der) = CertificateDer::from_pem_slice(cert_pem.as_bytes()) else { return false };
    let Ok((_, certificate)) = X509Certificate::from_der(&der) else { return false };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return false };
    addresses.iter().all(|address| {
        let octets = match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        names.value.general_names.iter().any(|name| matches!(name, GeneralName::IPAddress(known) if *known == octets))
    })
}

/// The cluster's CA, held against the hash that the token carries.
async fn fetch_ca(server: &Uri, hash: &str) -> anyhow::Result<String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(NotYet(provider)))
        .with_no_client_auth();
    let get = Request::get("/cacerts").body(Full::new(Bytes::new()))?;
    let (status, body) = send(server, tls, get).await?;
    ensure!(status == StatusCode::OK, "{server}cacerts answered {status}: is this a sampan server?");
    let pem = String::from_utf8(body.to_vec()).context("/cacerts is not text")?;
    let mut pinned = None;
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|error| anyhow::anyhow!("/cacerts: {error:?}"))?;
        let found: String = Sha256::digest(&certificate).iter().map(|byte| format!("{byte:02x}")).collect();
        if found.eq_ignore_ascii_case(hash) {
            pinned = Some(certificate);
        }
    }
    ensure!(
        pinned.is_some(),
        "the server's CA is not the one that the token pins: this is another cluster, or somebody is in between"
    );
    Ok(pem)
}

/// TLS that trusts one CA.
fn trusting(ca_pem: &str) -> anyhow::Result<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        roots.add(certificate.map_err(|error| anyhow::anyhow!("the cluster's CA: {error:?}"))?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

async fn send(
    server: &Uri,
    tls: rustls::ClientConfig,
    mut request: Request<Full<Bytes>>,
) -> anyhow::Result<(StatusCode, Bytes)> {
    let host = server.host().context("no host")?.trim_matches(['[', ']']).to_owned();
    let port = server.port_u16().unwrap_or(443);
    let authority = server.authority().map(ToString::to_string).unwrap_or_default();
    request.headers_mut().insert(http::header::HOST, authority.parse()?);
    let exchange = async {
        let stream =
            TcpStream::connect((host.as_str(), port)).await.with_context(|| format!("connecting to {server}"))?;
        let name = ServerName::try_from(host.clone())?;
        let stream = tokio_rustls::TlsConnector::from(Arc::new(tls))
            .connect(name, stream)
            .await
            .with_context(|| format!("TLS with {server}"))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), LARGEST)
            .collect()
            .await
            .map_err(|error| anyhow::anyhow!("reading the answer: {error}"))?;
        anyhow::Ok((status, body.to_bytes()))
    };
    tokio::time::timeout(PATIENCE, exchange).await.with_context(|| format!("{server} does not answer"))?
}

/// Before the CA is known anybody may answer: the answer is held against the pin afterwards, and
/// nothing secret is sent.
#[derive(Debug)]
struct NotYet(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for NotYet {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn tokens() {
        let hash = "a".repeat(64);
        let token = format!("abcdef.0123456789abcdef.{hash}");
        assert_eq!(parse_token(&token).unwrap(), Token { bearer: "abcdef.0123456789abcdef", ca_hash: &hash });
        for wrong in ["", "abc", "abcdef.0123456789abcdef", "abcdef.0123456789abcdef.12", "ABCDEF.0123456789abcdef.x"] {
            assert!(parse_token(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_members_certificate_is_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        let mut params = CertificateParams::new(vec!["192.0.2.1".to_owned()]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "system:node:n1");
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        assert!(member(dir.path(), "n1", &[address], false).unwrap().is_none());
        write(&dir.path().join("node.key"), &key.serialize_pem()).unwrap();
        write(&dir.path().join("node.crt"), &certificate).unwrap();
        assert!(member(dir.path(), "n1", &[address], true).unwrap().is_some());
        assert!(member(dir.path(), "other", &[address], true).is_err());
        let elsewhere: IpAddr = "192.0.2.2".parse().unwrap();
        assert!(member(dir.path(), "n1", &[elsewhere], true).unwrap().is_none());
        assert!(member(dir.path(), "n1", &[elsewhere], false).unwrap().is_some());
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(dir.path().join("node.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn requests_name_the_node() {
        let request = CertificateRequest::new("n1", &["192.0.2.1".parse().unwrap()]).unwrap();
        assert!(request.csr_pem.contains("CERTIFICATE REQUEST"));
        assert!(request.key_pem.contains("PRIVATE KEY"));
    }
}
