//! Asks a container over HTTP or TCP. When, and what the answer means, is [`super::probes`]'s.

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
    } else {
        return Err("the probe has neither httpGet nor tcpSocket".to_owned());
    };
    let seconds = probe.timeout_seconds.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(1).max(1);
    Ok(Target { action, timeout: Duration::from_secs(seconds) })
}

/// Asks once; the error is what the kubelet would say.
pub async fn ask(target: &Target, shift: PortShift) -> Result<(), String> {
    match &target.action {
        Ask::Tcp { host, port } => {
            match tokio::time::timeout(target.timeout, connect(host, shift.apply(*port))).await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(error)) => Err(dial_error(host, *port, &error)),
                Err(_) => Err(format!("dial tcp {}: i/o timeout", join(host, *port))),
            }
        }
        Ask::Http { scheme, host, port, path, headers } => {
            let url = format!("{scheme}://{}{}{path}", join(host, *port), if path.starts_with('/') { "" } else { "/" });
            let get = get(scheme, host, *port, shift, &url, headers);
            match tokio::time::timeout(target.timeout, get).await {
                Ok(Ok(status)) if (200..400).contains(&status) => Ok(()),
                Ok(Ok(status)) => Err(format!("HTTP probe failed with statuscode: {status}")),
                Ok(Err(error)) => Err(format!("Get \"{url}\": {error}")),
                Err(_) => Err(format!(
                    "Get \"{url}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
                )),
            }
        }
    }
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
