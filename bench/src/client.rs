//! One HTTP/1.1 connection at a time, so that a benchmark says how many it uses: to the API with the
//! administrator's certificate, or to a pod without TLS.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Where the API is and who asks.
#[derive(Clone)]
pub struct Api {
    authority: String,
    name: ServerName<'static>,
    tls: Arc<ClientConfig>,
}

impl Api {
    /// Reads a kubeconfig as `sampan` writes it: a comment, then JSON.
    pub fn open(kubeconfig: &Path) -> Result<Self> {
        let show = kubeconfig.display();
        let text = std::fs::read_to_string(kubeconfig).with_context(|| format!("{show}"))?;
        let json = text.lines().skip_while(|line| line.starts_with('#')).collect::<Vec<_>>().join("\n");
        let config: Value = serde_json::from_str(&json).with_context(|| format!("{show} is not one of sampan's"))?;
        let field = |pointer: &str| {
            config.pointer(pointer).and_then(Value::as_str).with_context(|| format!("{show} has no {pointer}"))
        };
        let decoded = |pointer: &str| Ok::<_, anyhow::Error>(STANDARD.decode(field(pointer)?)?);
        let authority = field("/clusters/0/cluster/server")?.trim_start_matches("https://").to_owned();
        let ca = CertificateDer::from_pem_slice(&decoded("/clusters/0/cluster/certificate-authority-data")?)?;
        let certificate = decoded("/users/0/user/client-certificate-data")?;
        let chain = CertificateDer::pem_slice_iter(&certificate).collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(&decoded("/users/0/user/client-key-data")?)?;
        let mut roots = RootCertStore::empty();
        roots.add(ca)?;
        let tls = ClientConfig::builder().with_root_certificates(roots).with_client_auth_cert(chain, key)?;
        let host = authority.rsplit_once(':').context("the server has no port")?.0;
        let name = ServerName::try_from(host.to_owned())?;
        Ok(Self { authority, name, tls: Arc::new(tls) })
    }

    /// ADDRESS:PORT
    pub fn authority(&self) -> &str {
        &self.authority
    }

    pub async fn connect(&self) -> Result<Connection> {
        let stream = TcpStream::connect(&self.authority).await.with_context(|| self.authority.clone())?;
        stream.set_nodelay(true)?;
        let stream = TlsConnector::from(self.tls.clone()).connect(self.name.clone(), stream).await?;
        Connection::over(stream, &self.authority).await
    }
}

pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    host: String,
}

impl Connection {
    /// Without TLS.
    pub async fn plain(authority: &str) -> Result<Self> {
        let stream = TcpStream::connect(authority).await.with_context(|| authority.to_owned())?;
        stream.set_nodelay(true)?;
        Self::over(stream, authority).await
    }

    async fn over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, authority: &str) -> Result<Self> {
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // Ends with the sender.
        tokio::spawn(connection);
        Ok(Self { sender, host: authority.to_owned() })
    }

    /// The answer once its head is there.
    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        kind: &str,
        body: impl Into<Bytes>,
    ) -> Result<Response<Incoming>> {
        let request = Request::builder().method(method).uri(path).header(HOST, &self.host);
        let request = match kind {
            "" => request,
            kind => request.header(CONTENT_TYPE, kind),
        };
        self.sender.ready().await?;
        Ok(self.sender.send_request(request.body(Full::new(body.into()))?).await?)
    }

    /// Reads the answer to its last byte; anything but success is an error with what the server said.
    pub async fn call(&mut self, method: Method, path: &str, kind: &str, body: impl Into<Bytes>) -> Result<Bytes> {
        let response = self.send(method.clone(), path, kind, body).await?;
        let status = response.status();
        let bytes = response.into_body().collect().await?.to_bytes();
        ensure!(status.is_success(), "{method} {path}: {status} {}", String::from_utf8_lossy(&bytes));
        Ok(bytes)
    }

    pub async fn get(&mut self, path: &str) -> Result<Bytes> {
        self.call(Method::GET, path, "", Bytes::new()).await
    }

    /// Reads the answer to its last byte and keeps none of it: what a reader does with it is not the server's cost.
    pub async fn get_and_forget(&mut self, path: &str) -> Result<()> {
        let response = self.send(Method::GET, path, "", Bytes::new()).await?;
        let status = response.status();
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            frame?;
        }
        ensure!(status.is_success(), "GET {path}: {status}");
        Ok(())
    }

    pub async fn create(&mut self, path: &str, object: &Value) -> Result<Value> {
        let body = serde_json::to_vec(object)?;
        Ok(serde_json::from_slice(&self.call(Method::POST, path, "application/json", body).await?)?)
    }

    pub async fn merge(&mut self, path: &str, patch: &Value) -> Result<Value> {
        let body = serde_json::to_vec(patch)?;
        Ok(serde_json::from_slice(&self.call(Method::PATCH, path, "application/merge-patch+json", body).await?)?)
    }

    /// Begins a watch: `path` with its query.
    pub async fn watch(&mut self, path: &str) -> Result<Watch> {
        let response = self.send(Method::GET, path, "", Bytes::new()).await?;
        ensure!(response.status().is_success(), "GET {path}: {}", response.status());
        Ok(Watch { body: response.into_body(), rest: Vec::new() })
    }
}

/// The events of a watch, a line of JSON each.
pub struct Watch {
    body: Incoming,
    rest: Vec<u8>,
}

impl Watch {
    pub async fn next_line(&mut self) -> Result<Vec<u8>> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line = self.rest.drain(..=end).collect();
                return Ok(line);
            }
            let frame = self.body.frame().await.ok_or_else(|| anyhow!("the watch ended"))??;
            if let Ok(data) = frame.into_data() {
                self.rest.extend_from_slice(&data);
            }
        }
    }

    pub async fn next(&mut self) -> Result<Value> {
        let line = self.next_line().await?;
        let event: Value = serde_json::from_slice(&line)?;
        ensure!(event["type"] != "ERROR", "the watch failed: {event}");
        Ok(event)
    }
}
