//! etcd, asked by its own protocol: puts, each answered once it is on the disk.

use std::time::Duration;

use anyhow::Result;
use http::uri::PathAndQuery;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use super::{Outcome, for_long};

/// Writers that share a connection.
const SHARE: usize = 8;

// What is used of etcdserverpb.KV, by field numbers: https://etcd.io/docs/v3.4/dev-guide/api_reference_v3/
#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "bytes", tag = "2")]
    value: bytes::Bytes,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct PutResponse {}

pub async fn run(url: &str, writers: usize, value_bytes: usize, length: Duration) -> Result<Outcome> {
    let mut channels = Vec::new();
    for _ in 0..writers.div_ceil(SHARE) {
        channels.push(Endpoint::from_shared(url.to_owned())?.connect().await?);
    }
    let value = bytes::Bytes::from(vec![b'v'; value_bytes]);
    let workers = (0..writers).map(|writer| (writer, channels[writer / SHARE].clone())).collect();
    let each = move |(writer, channel), number| {
        let value = value.clone();
        async move {
            put(&channel, super::store::key(writer, number), value).await?;
            Ok((writer, channel))
        }
    };
    for_long(workers, length, each).await
}

async fn put(channel: &Channel, key: String, value: bytes::Bytes) -> Result<()> {
    let mut client = Grpc::new(channel.clone());
    client.ready().await?;
    let request = tonic::Request::new(PutRequest { key: key.into_bytes(), value });
    let path = PathAndQuery::from_static("/etcdserverpb.KV/Put");
    let _: tonic::Response<PutResponse> = client.unary(request, path, ProstCodec::default()).await?;
    Ok(())
}

/// Whether it answers yet.
pub async fn answers(url: &str) -> bool {
    let Ok(endpoint) = Endpoint::from_shared(url.to_owned()) else { return false };
    match endpoint.connect().await {
        Ok(channel) => put(&channel, "ready".to_owned(), bytes::Bytes::new()).await.is_ok(),
        Err(_) => false,
    }
}
