//! What a registry has under a reference.
//!
//! A client knows one pull's credentials: what one tenant may read is not cached for another.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;

use super::program::{self, Found};
use super::source::{Descriptor, Error, Source};
use super::{Credentials, Reference};

const CONNECT: Duration = Duration::from_secs(30);
/// Without a byte.
const STALLED: Duration = Duration::from_secs(60);

const MANIFESTS: &[&str] = &[
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

struct Registry {
    client: oci_client::Client,
    auth: RegistryAuth,
    reference: Reference,
    name: oci_client::Reference,
}

#[async_trait]
impl Source for Registry {
    async fn manifest(&self, digest: Option<&str>) -> Result<(Bytes, String), Error> {
        let name = digest.map_or(self.name.clone(), |digest| self.name.clone_with_digest(digest.to_owned()));
        let pulled = self.client.pull_manifest_raw(&name, &self.auth, MANIFESTS).await;
        pulled.map_err(|error| told(&self.reference, &error))
    }

    async fn blob(&self, part: &Descriptor) -> Result<BoxStream<'static, io::Result<Bytes>>, Error> {
        let part = OciDescriptor {
            media_type: part.media_type.clone(),
            digest: part.digest.clone(),
            size: i64::try_from(part.size).unwrap_or(i64::MAX),
            ..OciDescriptor::default()
        };
        let pulled = self.client.pull_blob_stream(&self.name, &part).await;
        Ok(pulled.map_err(|error| told(&self.reference, &error))?.stream.boxed())
    }
}

/// Asks a registry, with one set of credentials or as nobody.
pub async fn resolve(reference: &Reference, credentials: Option<&Credentials>) -> Result<Found, Error> {
    let name = reference.to_string();
    let source = Registry {
        client: client(reference).map_err(|error| told(reference, &error))?,
        auth: match credentials {
            Some(Credentials { username, password }) => RegistryAuth::Basic(username.clone(), password.clone()),
            None => RegistryAuth::Anonymous,
        },
        reference: reference.clone(),
        name: name.parse().map_err(|error| Error::Malformed(format!("{reference}: {error}")))?,
    };
    program::resolve(&name, Arc::new(source)).await
}

fn client(reference: &Reference) -> Result<oci_client::Client, OciDistributionError> {
    let registry = reference.registry();
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    // As everywhere in the container world: a registry on the machine itself needs no certificate.
    let local = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    oci_client::Client::try_from(ClientConfig {
        protocol: if local { ClientProtocol::Http } else { ClientProtocol::Https },
        connect_timeout: Some(CONNECT),
        read_timeout: Some(STALLED),
        user_agent: concat!("sampan/", env!("CARGO_PKG_VERSION")),
        ..ClientConfig::default()
    })
}

fn told(reference: &Reference, error: &OciDistributionError) -> Error {
    use OciDistributionError as E;
    match error {
        E::ImageManifestNotFoundError(_) => Error::NotFound(reference.clone()),
        E::ServerError { code: 404, .. } => Error::NotFound(reference.clone()),
        E::RegistryError { envelope, url } => {
            let codes: Vec<String> = envelope.errors.iter().map(|error| format!("{:?}", error.code)).collect();
            let has = |code: &str| codes.iter().any(|it| it == code);
            if has("ManifestUnknown") || has("NameUnknown") || has("NotFound") {
                Error::NotFound(reference.clone())
            } else if has("Unauthorized") || has("Denied") {
                Error::Denied(url.clone())
            } else {
                Error::Unreachable(error.to_string())
            }
        }
        E::UnauthorizedError { url } => Error::Denied(url.clone()),
        E::AuthenticationFailure(message) => Error::Denied(message.clone()),
        E::RequestError(error) => {
            // The innermost cause says what happened: refused, no such name, not trusted.
            let mut cause: &dyn std::error::Error = error;
            while let Some(inner) = cause.source() {
                cause = inner;
            }
            Error::Unreachable(format!("{}: {cause}", reference.registry()))
        }
        E::DigestError(error) => Error::Malformed(format!("{reference}: {error}")),
        error => Error::Unreachable(error.to_string()),
    }
}
