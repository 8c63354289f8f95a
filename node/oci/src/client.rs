//! The connection to containerd.

use std::future::Future;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

use crate::error::{Error, Result};
use crate::proto::containerd::services::version::v1::version_client::VersionClient;
use crate::proto::cri;
use crate::proto::cri::image_service_client::ImageServiceClient;
use crate::proto::cri::runtime_service_client::RuntimeServiceClient;

/// The namespace of containerd that CRI works in.
pub(crate) const NAMESPACE: &str = "k8s.io";
/// How long a call may take that starts and ends nothing.
pub(crate) const SHORT: Duration = Duration::from_secs(60);
/// How long a call may take that makes namespaces, mounts, control groups.
pub(crate) const LONG: Duration = Duration::from_secs(240);
/// Lists of a full node pass tonic's 4 MiB.
const MAX_MESSAGE: usize = 16 << 20;

/// A containerd that was reached and whose version is one we speak. Connects again by itself.
#[derive(Debug, Clone)]
pub struct Containerd {
    channel: Channel,
    socket: Arc<Path>,
    version: Arc<Version>,
}

/// What containerd says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// Such as `1.6.20~ds1`.
    pub version: String,
    /// Such as `containerd`.
    pub runtime_name: String,
    /// Of CRI: `v1`.
    pub api_version: String,
}

/// A condition of the runtime: `RuntimeReady`, `NetworkReady`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    pub r#type: String,
    pub status: bool,
    pub reason: String,
    pub message: String,
}

impl Containerd {
    /// Connects, and asks for the version of containerd and of its CRI plugin.
    pub async fn connect(socket: &Path) -> Result<Containerd> {
        let unsuitable = |reason: String| Error::Unsuitable { socket: socket.to_owned(), reason };
        dial(socket).await?;
        let path: Arc<Path> = socket.into();
        let dialed = path.clone();
        let channel = Endpoint::from_static("http://containerd")
            .connect_timeout(Duration::from_secs(5))
            .connect_with_connector(tower::service_fn(move |_| {
                let socket = dialed.clone();
                async move { dial(&socket).await.map(hyper_util::rt::TokioIo::new) }
            }))
            .await
            .map_err(|e| unsuitable(format!("speaks no gRPC ({e}); it is not containerd's socket")))?;
        let limit = Duration::from_secs(10);
        let answer = call("Version", limit, VersionClient::new(channel.clone()).version(())).await;
        let version = match answer {
            Ok(answer) => answer.version,
            Err(Error::Rpc { code: Code::Unimplemented, .. }) => {
                return Err(unsuitable("is not containerd's own socket: it has no version service".into()));
            }
            Err(Error::Broken { reason, .. }) => {
                return Err(unsuitable(format!("speaks no gRPC ({reason}); it is not containerd's socket")));
            }
            Err(error) => return Err(error),
        };
        supported(&version).map_err(unsuitable)?;
        let request = cri::VersionRequest { version: "v1".into() };
        let answer = call("Version", limit, runtime(&channel).version(request)).await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(Error::Rpc { code: Code::Unimplemented, .. }) => {
                let remedy = r#"its CRI plugin is off; take "cri" out of disabled_plugins in its config.toml"#;
                return Err(unsuitable(remedy.into()));
            }
            Err(error) => return Err(error),
        };
        let version = Version { version, runtime_name: answer.runtime_name, api_version: answer.runtime_api_version };
        Ok(Containerd { channel, socket: path, version: version.into() })
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// As told when the connection was made.
    pub fn version(&self) -> &Version {
        &self.version
    }

    /// Whether it can run pods (`RuntimeReady`) and give them a network (`NetworkReady`).
    pub async fn conditions(&self) -> Result<Vec<Condition>> {
        let request = cri::StatusRequest { verbose: false };
        let answer = call("Status", SHORT, self.runtime().status(request)).await?;
        let conditions = answer.status.ok_or(Error::Answer { call: "Status", missing: "status" })?.conditions;
        let condition = |c: cri::RuntimeCondition| Condition {
            r#type: c.r#type,
            status: c.status,
            reason: c.reason,
            message: c.message,
        };
        Ok(conditions.into_iter().map(condition).collect())
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub(crate) fn runtime(&self) -> RuntimeServiceClient<Channel> {
        runtime(&self.channel)
    }

    pub(crate) fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }
}

fn runtime(channel: &Channel) -> RuntimeServiceClient<Channel> {
    RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE)
}

async fn dial(socket: &Path) -> Result<UnixStream> {
    let unreachable = |reason: String| Error::Unreachable { socket: socket.to_owned(), reason };
    UnixStream::connect(socket).await.map_err(|error| match error.kind() {
        ErrorKind::NotFound => Error::Missing { socket: socket.to_owned() },
        ErrorKind::ConnectionRefused => unreachable(
            "nobody listens on this socket; a containerd that has ended left it: start containerd again".into(),
        ),
        ErrorKind::PermissionDenied => unreachable("permission denied; only root may use it".into()),
        _ => unreachable(error.to_string()),
    })
}

/// CRI v1 came with containerd 1.6.
fn supported(version: &str) -> std::result::Result<(), String> {
    let mut parts = version.trim_start_matches('v').split(['.', '-', '~', '+']).map(str::parse::<u32>);
    let number = match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor),
        _ => return Err(format!("version {version:?} is not one we know; 1.6, 1.7 and 2 are")),
    };
    match number {
        (1, 6..) | (2, _) => Ok(()),
        _ => Err(format!("version {version} cannot be used; 1.6, 1.7 and 2 can")),
    }
}

/// Awaits an answer for so long.
pub(crate) async fn call<T>(
    call: &'static str,
    limit: Duration,
    answer: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T> {
    match tokio::time::timeout(limit, answer).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(Error::rpc(call, &status)),
        Err(_) => Err(Error::Timeout { call, seconds: limit.as_secs() }),
    }
}

/// A request to containerd's own services, which want to be told the namespace.
pub(crate) fn namespaced<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", MetadataValue::from_static(NAMESPACE));
    request
}

/// One whose results a lease holds.
pub(crate) fn leased<T>(message: T, lease: &MetadataValue<Ascii>) -> Request<T> {
    let mut request = namespaced(message);
    request.metadata_mut().insert("containerd-lease", lease.clone());
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_that_have_cri_v1() {
        for good in ["1.6.20~ds1", "1.7.0", "v2.0.1", "2.1.0-rc.1", "1.10.0"] {
            assert_eq!(supported(good), Ok(()), "{good}");
        }
        for bad in ["1.5.9", "3.0.0", "0.9", "", "main", "1"] {
            assert!(supported(bad).is_err(), "{bad}");
        }
    }
}
