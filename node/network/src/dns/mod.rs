//! The cluster's DNS, on every node: authoritative for the cluster's names, forwarding the rest.

pub(crate) mod forward;
mod zone;

use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::time::Duration;

use async_trait::async_trait;
use hickory_proto::op::{Edns, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};
use hickory_server::Server;
use hickory_server::net::runtime::Time;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use rustix::net::SocketType;
use tokio::net::{TcpListener, UdpSocket};
use tokio_util::sync::CancellationToken;

pub(crate) use zone::Zone;

use crate::error::{Error, Result};
use crate::services::catalog::Catalog;
use crate::services::proxy::socket;
use forward::Upstream;
use zone::Answer;

const IDLE: Duration = Duration::from_secs(10);
const BUFFERED: usize = 32;
const BACKLOG: i32 = 256;
/// What passes any network in one piece.
const PAYLOAD: u16 = 1232;
/// Aliases followed for one question.
const ALIASES: usize = 8;

pub(crate) struct Handler {
    pub(crate) zone: Zone,
    pub(crate) catalog: Catalog,
    pub(crate) upstream: Upstream,
    /// Set once the cluster's objects are known: "there is none" is no answer before.
    pub(crate) ready: CancellationToken,
}

#[derive(Default)]
struct Reply {
    code: ResponseCode,
    authoritative: bool,
    answers: Vec<Record>,
    authorities: Vec<Record>,
    additionals: Vec<Record>,
}

impl Reply {
    fn failed(code: ResponseCode) -> Self {
        Self { code, ..Self::default() }
    }
}

impl Handler {
    async fn reply(&self, question: &Query) -> Reply {
        let kind = question.query_type();
        let mut reply = Reply::default();
        let mut name = question.name().clone();
        for _ in 0..ALIASES {
            if self.zone.holds(&name) && !self.ready.is_cancelled() {
                return Reply::failed(ResponseCode::ServFail);
            }
            let first = reply.answers.is_empty();
            match self.catalog.read(|state| self.zone.answer(state, &name, kind)) {
                Answer::Records(records) => {
                    reply.authoritative |= first;
                    reply.answers.extend(records.answers);
                    reply.additionals.extend(records.additionals);
                    if reply.answers.is_empty() {
                        reply.authorities.extend(self.zone.soa());
                    }
                    return reply;
                }
                Answer::NotFound => {
                    reply.authoritative |= first;
                    reply.code = ResponseCode::NXDomain;
                    reply.authorities.extend(self.zone.soa());
                    return reply;
                }
                Answer::Alias(target) => {
                    reply.authoritative |= first;
                    reply.answers.push(self.zone.alias(&name, target.clone()));
                    if kind == RecordType::CNAME {
                        return reply;
                    }
                    name = target;
                }
                Answer::Elsewhere => return self.forward(reply, name, kind).await,
            }
        }
        Reply::failed(ResponseCode::ServFail)
    }

    async fn forward(&self, mut reply: Reply, name: Name, kind: RecordType) -> Reply {
        match self.upstream.ask(&Query::query(name, kind)).await {
            Ok(message) => {
                reply.code = message.metadata.response_code;
                reply.answers.extend(message.answers);
                reply.authorities.extend(message.authorities);
                reply.additionals.extend(message.additionals);
                reply
            }
            // The alias alone is of use too.
            Err(_) if !reply.answers.is_empty() => reply,
            Err(code) => Reply::failed(code),
        }
    }
}

#[async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(&self, request: &Request, mut handle: R) -> ResponseInfo {
        let question = request.request_info().ok().map(|info| info.query.original().clone());
        let reply = match question {
            _ if request.metadata.op_code != OpCode::Query => Reply::failed(ResponseCode::NotImp),
            None => Reply::failed(ResponseCode::FormErr),
            Some(question) if question.query_class() != DNSClass::IN => Reply::failed(ResponseCode::Refused),
            Some(question) => self.reply(&question).await,
        };
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = reply.code;
        metadata.authoritative = reply.authoritative;
        metadata.recursion_available = true;
        let edns = request.edns.as_ref().map(|_| {
            let mut edns = Edns::new();
            edns.set_max_payload(request.max_payload().min(PAYLOAD)).set_version(0);
            edns
        });
        let mut builder = MessageResponseBuilder::from_message_request(request);
        if let Some(edns) = &edns {
            builder.edns(edns);
        }
        let response = builder.build(metadata, &reply.answers, &reply.authorities, [], &reply.additionals);
        match handle.send_response(response).await {
            Ok(info) => info,
            Err(error) => {
                tracing::debug!(%error, "a DNS answer was not sent");
                metadata.response_code = ResponseCode::ServFail;
                hickory_proto::op::Header { metadata, counts: Default::default() }.into()
            }
        }
    }
}

/// UDP and TCP at one address; port 0 finds one that is free for both.
async fn bind(address: SocketAddrV4) -> io::Result<(UdpSocket, TcpListener)> {
    let udp = UdpSocket::from_std(socket(SocketType::DGRAM, address, true)?.into())?;
    let port = udp.local_addr()?.port();
    let tcp = socket(SocketType::STREAM, SocketAddrV4::new(*address.ip(), port), true)?;
    rustix::net::listen(&tcp, BACKLOG)?;
    Ok((udp, TcpListener::from_std(tcp.into())?))
}

/// Serves at `address`, which several nodes of a machine may share; where its port is taken and
/// `any_port` is fine, at another one. Tells where.
pub(crate) async fn serve(
    handler: Handler,
    address: SocketAddrV4,
    any_port: bool,
    shutdown: CancellationToken,
) -> Result<SocketAddr> {
    let mut bound = bind(address).await;
    if any_port && bound.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse) {
        bound = bind(SocketAddrV4::new(*address.ip(), 0)).await;
    }
    let failed = |error| Error::Dns { address: (*address.ip()).into(), error };
    let (udp, tcp) = bound.map_err(failed)?;
    let local = udp.local_addr().map_err(failed)?;
    let mut server = Server::new(handler);
    server.register_socket(udp);
    server.register_listener(tcp, IDLE, BUFFERED);
    tokio::spawn(async move {
        tokio::select! {
            () = shutdown.cancelled() => {
                if let Err(error) = server.shutdown_gracefully().await {
                    tracing::debug!(%error, "DNS ended with an error");
                }
            }
            result = server.block_until_done() => {
                if let Err(error) = result {
                    tracing::error!(%error, "DNS ended");
                }
            }
        }
    });
    Ok(local)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
