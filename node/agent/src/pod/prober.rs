//! Asks a container: over HTTP, TCP or gRPC, or by a program in it. When, and what the answer means,
//! is [`super::probes`]'s.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Uri};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::oci;
use crate::runtime::{ContainerId, Runtime};

/// Ports below this listen this much higher where the node may not open them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortShift {
    pub below: u16,
    pub by: u16,
}

impl PortShift {
    pub fn apply(self, port: u16) -> u16 {
        if port < self.below { port.saturating_add(self.by) } else { port }
    }
}

/// A probe or hook of one container, ready to be asked.
#[derive(Clone, Debug)]
pub struct Target {
    pub action: Ask,
    pub timeout: Duration,
}

#[derive(Clone, Debug)]
pub enum Ask {
    Http { scheme: String, host: String, port: u16, path: String, headers: Vec<(String, String)> },
    Tcp { host: String, port: u16 },
    Grpc { host: String, port: u16, service: String },
    Exec(Vec<String>),
}

/// The number of a port that may be a name.
pub fn port(container: &core::Container, port: &IntOrString) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => container
            .ports
            .iter()
            .flatten()
            .find(|port| port.name.as_deref() == Some(name))
            .map(|port| port.container_port)
            .or_else(|| name.parse().ok()),
    };
    match number {
        Some(number) => {
            u16::try_from(number).ok().filter(|port| *port > 0).ok_or_else(|| format!("invalid port number: {number}"))
        }
        None => Err(format!(
            "couldn't find port: {}",
            match port {
                IntOrString::String(name) => name.clone(),
                IntOrString::Int(number) => number.to_string(),
            }
        )),
    }
}

pub fn http(container: &core::Container, action: &core::HTTPGetAction, address: IpAddr) -> Result<Ask, String> {
    Ok(Ask::Http {
        scheme: action.scheme.as_deref().unwrap_or("HTTP").to_lowercase(),
        host: action.host.clone().filter(|host| !host.is_empty()).unwrap_or_else(|| address.to_string()),
        port: port(container, &action.port)?,
        path: action.path.clone().filter(|path| !path.is_empty()).unwrap_or_else(|| "/".to_owned()),
        headers: action
            .http_headers
            .iter()
            .flatten()
            .map(|header| (header.name.clone(), header.value.clone()))
            .collect(),
    })
}

/// What a probe of `container` at `address` asks.
pub fn target(container: &core::Container, probe: &core::Probe, address: IpAddr) -> Result<Target, String> {
    let action = if let Some(action) = &probe.http_get {
        http(container, action, address)?
    } else if let Some(action) = &probe.tcp_socket {
        let host = action.host.clone().filter(|host| !host.is_empty()).unwrap_or_else(|| address.to_string());
        Ask::Tcp { host, port: port(container, &action.port)? }
    } else if let Some(action) = &probe.grpc {
        let number = port(container, &IntOrString::Int(action.port))?;
        Ask::Grpc { host: address.to_string(), port: number, service: action.service.clone().unwrap_or_default() }
    } else if let Some(action) = &probe.exec {
        Ask::Exec(action.command.clone().unwrap_or_default())
    } else {
        return Err("the probe has none of httpGet, tcpSocket, grpc and exec".to_owned());
    };
    let seconds = probe.timeout_seconds.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(1).max(1);
    Ok(Target { action, timeout: Duration::from_secs(seconds) })
}

/// Asks one container.
pub struct Asker<'a> {
    pub shift: PortShift,
    /// Runs programs in it.
    pub runtime: &'a dyn Runtime,
    pub id: &'a ContainerId,
}

impl Asker<'_> {
    /// Asks once; the error is what the kubelet would say.
    pub async fn ask(&self, target: &Target) -> Result<(), String> {
        match self.answer(target).await? {
            Some(status) if !(200..400).contains(&status) => {
                Err(format!("HTTP probe failed with statuscode: {status}"))
            }
            _ => Ok(()),
        }
    }

    /// Asks once; over HTTP the answer is a status, whatever it means.
    pub async fn answer(&self, target: &Target) -> Result<Option<u16>, String> {
        let limit = target.timeout;
        match &target.action {
            Ask::Tcp { host, port } => {
                match tokio::time::timeout(limit, connect(host, self.shift.apply(*port))).await {
                    Ok(Ok(_)) => Ok(None),
                    Ok(Err(error)) => Err(dial_error(host, *port, &error)),
                    Err(_) => Err(format!("dial tcp {}: i/o timeout", join(host, *port))),
                }
            }
            Ask::Http { scheme, host, port, path, headers } => {
                let slash = if path.starts_with('/') { "" } else { "/" };
                let url = format!("{scheme}://{}{slash}{path}", join(host, *port));
                let get = get(scheme, host, *port, self.shift, &url, headers);
                match tokio::time::timeout(limit, get).await {
                    Ok(Ok(status)) => Ok(Some(status)),
                    Ok(Err(error)) => Err(format!("Get \"{url}\": {error}")),
                    Err(_) => Err(format!(
                        "Get \"{url}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
                    )),
                }
            }
            Ask::Grpc { host, port, service } => {
                let shown = join(host, *port);
                let health = health(host, self.shift.apply(*port), service);
                match tokio::time::timeout(limit, health).await {
                    Ok(Ok(SERVING)) => Ok(None),
                    Ok(Ok(status)) => {
                        let word = STATUSES.get(usize::try_from(status).unwrap_or(usize::MAX)).unwrap_or(&"UNKNOWN");
                        Err(format!("service unhealthy (responded with \"{word}\")"))
                    }
                    Ok(Err(error)) => Err(format!("failed to connect service \"{shown}\": {error}")),
                    Err(_) => {
                        Err(format!("timeout: failed to connect service \"{shown}\" within {}s", limit.as_secs()))
                    }
                }
            }
            Ask::Exec(command) => {
                let ran = loop {
                    match self.runtime.run(self.id, command, limit).await {
                        // Nobody was asked: no answer is no failure.
                        Err(error) if oci::is_unavailable(&error) => tokio::time::sleep(AWAY).await,
                        ran => break ran,
                    }
                };
                match ran {
                    Ok(ran) if ran.code == 0 => Ok(None),
                    Ok(ran) if ran.output.is_empty() => {
                        Err(format!("command '{}' exited with {}", command.join(" "), ran.code))
                    }
                    Ok(ran) => Err(ran.output.chars().take(OUTPUT).collect()),
                    Err(error) => Err(format!("command '{}': {error:#}", command.join(" "))),
                }
            }
        }
    }
}

/// How long to wait for a runtime that is away.
const AWAY: Duration = Duration::from_secs(1);
/// As much of a program's output as an event shows.
const OUTPUT: usize = 1024;
const SERVING: i32 = 1;
/// What a health service answers with (`grpc.health.v1`).
const STATUSES: [&str; 4] = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

async fn health(host: &str, port: u16, service: &str) -> Result<i32, String> {
    let uri = format!("http://{}", join(host, port));
    let endpoint = tonic::transport::Endpoint::from_shared(uri).map_err(|error| error.to_string())?;
    let channel = endpoint.connect().await.map_err(|error| {
        // The innermost cause says what happened.
        let mut cause: &dyn std::error::Error = &error;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        cause.to_string()
    })?;
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(|error| error.to_string())?;
    let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
    let path = http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let request = tonic::Request::new(HealthCheckRequest { service: service.to_owned() });
    let answer = client.unary(request, path, codec).await.map_err(|status| status.message().to_owned())?;
    Ok(answer.into_inner().status)
}

fn join(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn dial_error(host: &str, port: u16, error: &std::io::Error) -> String {
    let words = match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        std::io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
        std::io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_owned(),
        _ => error.to_string(),
    };
    format!("dial tcp {}: {words}", join(host, port))
}

async fn connect(host: &str, port: u16) -> std::io::Result<TcpStream> {
    match host.parse::<IpAddr>() {
        Ok(address) => TcpStream::connect(SocketAddr::new(address, port)).await,
        Err(_) => TcpStream::connect((host, port)).await,
    }
}

async fn get(
    scheme: &str,
    host: &str,
    port: u16,
    shift: PortShift,
    url: &str,
    headers: &[(String, String)],
) -> Result<u16, String> {
    let stream = connect(host, shift.apply(port)).await.map_err(|error| dial_error(host, port, &error))?;
    let uri: Uri = url.parse().map_err(|error| format!("{error}"))?;
    let path = uri.path_and_query().map_or("/", |it| it.as_str());
    let mut request = Request::get(path).body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    let own = request.headers_mut();
    own.insert(http::header::USER_AGENT, HeaderValue::from_static("kube-probe/1.36"));
    own.insert(http::header::ACCEPT, HeaderValue::from_static("*/*"));
    own.insert(http::header::CONNECTION, HeaderValue::from_static("close"));
    if let Ok(host) = HeaderValue::from_str(&join(host, port)) {
        own.insert(http::header::HOST, host);
    }
    for (name, value) in headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name.as_str()), HeaderValue::from_str(value)) {
            own.insert(name, value);
        }
    }
    if scheme == "https" {
        let config =
            rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .map_err(|error| error.to_string())?
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AnyCertificate))
                .with_no_client_auth();
        let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
            .map_err(|error| error.to_string())?;
        send(stream, request).await
    } else {
        send(stream, request).await
    }
}

async fn send(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: Request<Empty<Bytes>>,
) -> Result<u16, String> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|error| words(&error))?;
        let status = response.status().as_u16();
        // Ten kilobytes are read for the guest's sake, as the kubelet does; what they say is nothing to us.
        let mut body = response.into_body();
        let mut read = 0;
        while let Some(Ok(frame)) = body.frame().await {
            read += frame.data_ref().map_or(0, Bytes::len);
            if read > 10 * 1024 {
                break;
            }
        }
        Ok(status)
    };
    tokio::pin!(connection);
    tokio::pin!(exchange);
    tokio::select! {
        biased;
        answer = &mut exchange => answer,
        ended = &mut connection => match ended {
            // All was read: the exchange has its answer or says why not.
            Ok(()) => exchange.await,
            Err(error) => Err(words(&error)),
        },
    }
}

fn words(error: &hyper::Error) -> String {
    if error.is_incomplete_message() || error.is_closed() { "EOF".to_owned() } else { error.to_string() }
}

/// Probes ask whether it answers, not who it is.
#[derive(Debug)]
struct AnyCertificate;

impl ServerCertVerifier for AnyCertificate {
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
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    fn target_of(probe: serde_json::Value, address: &str) -> Target {
        let container = core::Container::default();
        target(&container, &serde_json::from_value(probe).unwrap(), address.parse().unwrap()).unwrap()
    }

    /// Has one program: `test`, which fails with a word unless it has an argument.
    struct Programs;

    #[async_trait::async_trait]
    impl Runtime for Programs {
        async fn stop(&self, _: &ContainerId, _: u32) -> anyhow::Result<crate::runtime::Exit> {
            anyhow::bail!("not here")
        }

        async fn remove(&self, _: &ContainerId) -> anyhow::Result<()> {
            anyhow::bail!("not here")
        }

        async fn list(&self) -> anyhow::Result<Vec<(ContainerId, crate::runtime::RunState)>> {
            Ok(Vec::new())
        }

        async fn usage(&self) -> Vec<crate::runtime::Usage> {
            Vec::new()
        }

        async fn run(
            &self,
            _: &ContainerId,
            command: &[String],
            limit: Duration,
        ) -> anyhow::Result<crate::runtime::Ran> {
            match command.len() {
                0 => anyhow::bail!("timed out after {limit:?}"),
                1 => Ok(crate::runtime::Ran { code: 1, output: "not so".to_owned() }),
                _ => Ok(crate::runtime::Ran::default()),
            }
        }
    }

    async fn ask(target: &Target, shift: PortShift) -> Result<(), String> {
        let id = ContainerId { tenant: String::new(), pod_uid: String::new(), container: String::new(), attempt: 0 };
        Asker { shift, runtime: &Programs, id: &id }.ask(target).await
    }

    #[tokio::test]
    async fn programs() {
        let run = async |command: &[&str]| {
            let probe = serde_json::json!({ "exec": { "command": command }, "timeoutSeconds": 2 });
            ask(&target_of(probe, "127.0.0.1"), PortShift::default()).await
        };
        assert_eq!(run(&["test", "x"]).await, Ok(()));
        assert_eq!(run(&["test"]).await, Err("not so".to_owned()));
        assert!(run(&[]).await.unwrap_err().contains("timed out after 2s"));
    }

    async fn server(answer: &'static str) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut buffer = [0; 1024];
                let _ = stream.read(&mut buffer).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        port
    }

    #[tokio::test]
    async fn http_statuses() {
        let port = server("HTTP/1.1 204 No Content\r\n\r\n").await;
        let probe = json!({ "httpGet": { "path": "/healthz?x=1", "port": port } });
        assert_eq!(ask(&target_of(probe, "127.0.0.1"), PortShift::default()).await, Ok(()));
        let port = server("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\nno").await;
        let probe = json!({ "httpGet": { "port": port } });
        assert_eq!(
            ask(&target_of(probe, "127.0.0.1"), PortShift::default()).await,
            Err("HTTP probe failed with statuscode: 503".to_owned())
        );
        let port = server("").await;
        let probe = json!({ "httpGet": { "port": port } });
        assert_eq!(
            ask(&target_of(probe, "127.0.0.1"), PortShift::default()).await,
            Err(format!("Get \"http://127.0.0.1:{port}/\": EOF"))
        );
    }

    #[tokio::test]
    async fn nobody_listens() {
        let port = {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            listener.local_addr().unwrap().port()
        };
        let shown = format!("dial tcp 127.0.0.1:{port}: connect: connection refused");
        let probe = json!({ "tcpSocket": { "port": port } });
        assert_eq!(ask(&target_of(probe, "127.0.0.1"), PortShift::default()).await, Err(shown.clone()));
        let probe = json!({ "httpGet": { "port": port, "path": "ready" } });
        assert_eq!(
            ask(&target_of(probe, "127.0.0.1"), PortShift::default()).await,
            Err(format!("Get \"http://127.0.0.1:{port}/ready\": {shown}"))
        );
    }

    #[test]
    fn ports_by_name() {
        let container: core::Container =
            serde_json::from_value(json!({ "name": "a", "ports": [{ "name": "web", "containerPort": 8080 }] }))
                .unwrap();
        assert_eq!(port(&container, &IntOrString::String("web".to_owned())), Ok(8080));
        assert!(port(&container, &IntOrString::String("other".to_owned())).is_err());
        assert!(port(&container, &IntOrString::Int(0)).is_err());
    }
}
