//! ttrpc: requests and responses in frames of ten bytes of header, on a Unix socket. Written here
//! because it is small, and the crates for it bring compilers of their own.

use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::Arc;

use prost::Message;
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use crate::proto::ttrpc::{Request, Response, Status};

const HEADER: usize = 10;
/// As long as either side may send.
const LONGEST: usize = 4 << 20;
const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;

/// gRPC's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    Unknown = 2,
    InvalidArgument = 3,
    NotFound = 5,
    AlreadyExists = 6,
    FailedPrecondition = 9,
    Unimplemented = 12,
}

#[derive(Debug)]
pub struct Failure {
    pub code: Code,
    pub message: String,
}

struct Frame {
    stream: u32,
    kind: u8,
    payload: Vec<u8>,
}

async fn read(from: &mut (impl tokio::io::AsyncRead + Unpin)) -> io::Result<Frame> {
    let length = from.read_u32().await?;
    let stream = from.read_u32().await?;
    let kind = from.read_u8().await?;
    let _flags = from.read_u8().await?;
    let length = usize::try_from(length).map_err(io::Error::other)?;
    if length > LONGEST {
        return Err(io::Error::other(format!("a frame of {length} bytes")));
    }
    let mut payload = vec![0; length];
    from.read_exact(&mut payload).await?;
    Ok(Frame { stream, kind, payload })
}

async fn write(to: &mut (impl AsyncWrite + Unpin), frame: &Frame) -> io::Result<()> {
    let length = u32::try_from(frame.payload.len()).map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(HEADER + frame.payload.len());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&frame.stream.to_be_bytes());
    bytes.extend_from_slice(&[frame.kind, 0]);
    bytes.extend_from_slice(&frame.payload);
    to.write_all(&bytes).await
}

/// Answers calls by service and method.
pub trait Service: Send + Sync + 'static {
    fn call(
        &self,
        service: &str,
        method: &str,
        payload: &[u8],
    ) -> impl Future<Output = Result<Vec<u8>, Failure>> + Send;
}

/// Serves every connection until dropped.
pub async fn serve(listener: UnixListener, service: Arc<impl Service>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(converse(stream, service.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "accepting");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(stream: UnixStream, service: Arc<impl Service>) {
    let (mut reader, mut writer) = stream.into_split();
    let (sender, mut answers) = mpsc::unbounded_channel::<Frame>();
    tokio::spawn(async move {
        while let Some(frame) = answers.recv().await {
            if write(&mut writer, &frame).await.is_err() {
                return;
            }
        }
    });
    while let Ok(frame) = read(&mut reader).await {
        if frame.kind != REQUEST {
            continue;
        }
        let (service, sender) = (service.clone(), sender.clone());
        // Waits are calls too: none holds up another.
        tokio::spawn(async move {
            let result = match Request::decode(frame.payload.as_slice()) {
                Ok(request) => service.call(&request.service, &request.method, &request.payload).await,
                Err(error) => Err(Failure { code: Code::InvalidArgument, message: error.to_string() }),
            };
            let response = match result {
                Ok(payload) => Response { status: None, payload },
                Err(Failure { code, message }) => {
                    Response { status: Some(Status { code: code as i32, message }), payload: Vec::new() }
                }
            };
            let payload = response.encode_to_vec();
            let _ = sender.send(Frame { stream: frame.stream, kind: RESPONSE, payload });
        });
    }
}

/// One connection for calls of our own, one at a time.
pub struct Client {
    stream: UnixStream,
    next: u32,
}

impl Client {
    pub async fn connect(path: &Path) -> io::Result<Client> {
        Ok(Client { stream: UnixStream::connect(path).await?, next: 1 })
    }

    /// After an error the connection is of no more use.
    pub async fn call(&mut self, service: &str, method: &str, payload: Vec<u8>) -> io::Result<Vec<u8>> {
        let stream = self.next;
        self.next = self.next.wrapping_add(2);
        let request = Request { service: service.into(), method: method.into(), payload, timeout_nano: 0 };
        let frame = Frame { stream, kind: REQUEST, payload: request.encode_to_vec() };
        write(&mut self.stream, &frame).await?;
        loop {
            let frame = read(&mut self.stream).await?;
            if frame.stream != stream || frame.kind != RESPONSE {
                continue;
            }
            let response = Response::decode(frame.payload.as_slice()).map_err(io::Error::other)?;
            return match response.status {
                Some(status) if status.code != 0 => Err(io::Error::other(status.message)),
                _ => Ok(response.payload),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    struct Echo;

    impl Service for Echo {
        async fn call(&self, service: &str, method: &str, payload: &[u8]) -> Result<Vec<u8>, Failure> {
            match method {
                "Echo" => Ok(payload.to_vec()),
                _ => Err(Failure { code: Code::Unimplemented, message: format!("{service} has no {method}") }),
            }
        }
    }

    #[tokio::test]
    async fn calls_are_answered_and_nonsense_ends_only_its_connection() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        tokio::spawn(serve(UnixListener::bind(&path).unwrap(), Arc::new(Echo)));
        let mut client = Client::connect(&path).await.unwrap();
        assert_eq!(client.call("s", "Echo", vec![1, 2]).await.unwrap(), [1, 2]);
        assert_eq!(client.call("s", "Other", vec![]).await.unwrap_err().to_string(), "s has no Other");
        assert_eq!(client.call("s", "Echo", vec![7; 100_000]).await.unwrap().len(), 100_000);
        let mut rude = UnixStream::connect(&path).await.unwrap();
        rude.write_all(&[0xff; 32]).await.unwrap();
        // Closed, as end or as reset.
        assert!(!matches!(rude.read(&mut [0; 8]).await, Ok(1..)));
        assert_eq!(client.call("s", "Echo", vec![3]).await.unwrap(), [3]);
    }
}
