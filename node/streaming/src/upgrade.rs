//! From a request to an upgraded connection: which protocol is spoken on it.

use std::time::Duration;

use http::header::{CONNECTION, HeaderName, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::activity::Activity;
use crate::channels::Codec;
use crate::forward::{self, PortForward};
use crate::remote::{self, RemoteCommand};
use crate::spdy::{Role, Session};
use crate::{Wanted, websocket};

const SPDY: &str = "SPDY/3.1";
const VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");
pub const FORWARD: &str = "portforward.k8s.io";
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// Why a request cannot be upgraded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error(
        "unable to upgrade: missing upgrade headers in request: ask with \"Upgrade: websocket\" or \"Upgrade: {SPDY}\""
    )]
    NoUpgrade,
    #[error("unable to upgrade: unable to negotiate protocol: client supports [{client}], server accepts [{server}]")]
    Protocol { client: String, server: String },
    #[error("unable to upgrade: {0}")]
    Handshake(&'static str),
    #[error("unable to upgrade: {0}")]
    Ports(String),
}

impl Refused {
    /// The answer to the request.
    pub fn response(&self) -> Response<String> {
        let mut response = Response::new(format!("{self}\n"));
        *response.status_mut() = match self {
            Self::Protocol { server, .. } => {
                if let Ok(server) = HeaderValue::from_str(&server.replace(' ', ", ")) {
                    response.headers_mut().insert(ACCEPTED, server);
                }
                StatusCode::FORBIDDEN
            }
            _ => StatusCode::BAD_REQUEST,
        };
        response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        response
    }
}

/// What is spoken on the connection.
#[derive(Clone, Copy, Debug)]
enum Transport {
    Spdy,
    /// SPDY's frames as WebSocket messages.
    Tunnel,
    Channels(Codec),
}

/// An upgrade that was agreed on. Answer with `response`, then [`Pending::open`] it.
pub struct Pending<T> {
    pub response: Response<()>,
    connection: OnUpgrade,
    transport: Transport,
    kind: T,
}

/// A remote command's protocol and streams.
pub struct Remote {
    version: u8,
    wanted: Wanted,
}

/// The ports that WebSocket channels are for.
pub struct Ports(Vec<u16>);

fn words<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Vec<&'a str> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|word| !word.is_empty()).collect()
}

fn upgrades_to(headers: &HeaderMap, protocol: &str) -> bool {
    words(headers, &CONNECTION).iter().any(|word| word.eq_ignore_ascii_case("upgrade"))
        && words(headers, &UPGRADE).iter().any(|word| word.eq_ignore_ascii_case(protocol))
}

/// The client's first protocol that is known here. A client without any means the oldest.
fn negotiate<T: Copy>(offered: &[&str], known: &[(&'static str, T)], none: T) -> Result<(&'static str, T), Refused> {
    if offered.is_empty() {
        return Ok(("", none));
    }
    let find = |offer: &&str| known.iter().find(|(name, _)| name.eq_ignore_ascii_case(offer)).copied();
    offered.iter().find_map(find).ok_or_else(|| Refused::Protocol {
        client: offered.join(" "),
        server: known.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" "),
    })
}

fn switching(upgrade: &'static str, protocol: (HeaderName, &'static str)) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(upgrade));
    if !protocol.1.is_empty() {
        headers.insert(protocol.0, HeaderValue::from_static(protocol.1));
    }
    response
}

fn websocket_response(headers: &HeaderMap, protocol: &'static str) -> Result<Response<()>, Refused> {
    if headers.get("sec-websocket-version").is_none_or(|version| version != "13") {
        return Err(Refused::Handshake("Sec-WebSocket-Version has to be 13"));
    }
    let key = headers.get("sec-websocket-key").ok_or(Refused::Handshake("Sec-WebSocket-Key is missing"))?;
    let mut response = switching("websocket", (SEC_WEBSOCKET_PROTOCOL, protocol));
    if let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key.as_bytes())) {
        response.headers_mut().insert("sec-websocket-accept", accept);
    }
    Ok(response)
}

/// Agrees on how to speak with a client that runs a command or attaches.
pub fn remote_command<B>(request: &mut Request<B>, wanted: Wanted) -> Result<Pending<Remote>, Refused> {
    let headers = request.headers();
    let (response, transport, version) = if upgrades_to(headers, "websocket") {
        let known = [
            ("v5.channel.k8s.io", (5, Codec::Binary)),
            ("v4.channel.k8s.io", (4, Codec::Binary)),
            ("v4.base64.channel.k8s.io", (4, Codec::Base64)),
            ("channel.k8s.io", (1, Codec::Binary)),
            ("base64.channel.k8s.io", (1, Codec::Base64)),
        ];
        let offered = words(headers, &SEC_WEBSOCKET_PROTOCOL);
        let (name, (version, codec)) = negotiate(&offered, &known, (1, Codec::Binary))?;
        (websocket_response(headers, name)?, Transport::Channels(codec), version)
    } else if upgrades_to(headers, SPDY) {
        let known =
            [("v4.channel.k8s.io", 4), ("v3.channel.k8s.io", 3), ("v2.channel.k8s.io", 2), ("channel.k8s.io", 1)];
        let (name, version) = negotiate(&words(headers, &VERSION), &known, 1)?;
        (switching(SPDY, (VERSION, name)), Transport::Spdy, version)
    } else {
        return Err(Refused::NoUpgrade);
    };
    let connection = hyper::upgrade::on(request);
    Ok(Pending { response, connection, transport, kind: Remote { version, wanted } })
}

/// Agrees on how to speak with a client that forwards ports. `ports` are those of the query, for
/// clients that speak channels.
pub fn port_forward<B>(request: &mut Request<B>, ports: Vec<u16>) -> Result<Pending<Ports>, Refused> {
    let headers = request.headers();
    let (response, transport) = if upgrades_to(headers, "websocket") {
        let known = [
            (TUNNEL, Transport::Tunnel),
            ("v4.channel.k8s.io", Transport::Channels(Codec::Binary)),
            ("v4.base64.channel.k8s.io", Transport::Channels(Codec::Base64)),
        ];
        let offered = words(headers, &SEC_WEBSOCKET_PROTOCOL);
        let (name, transport) = negotiate(&offered, &known, Transport::Channels(Codec::Binary))?;
        if matches!(transport, Transport::Channels(_)) && ports.is_empty() {
            return Err(Refused::Ports("query parameter \"port\" is required".to_owned()));
        }
        (websocket_response(headers, name)?, transport)
    } else if upgrades_to(headers, SPDY) {
        let (name, ()) = negotiate(&words(headers, &VERSION), &[(FORWARD, ())], ())?;
        (switching(SPDY, (VERSION, name)), Transport::Spdy)
    } else {
        return Err(Refused::NoUpgrade);
    };
    let connection = hyper::upgrade::on(request);
    Ok(Pending { response, connection, transport, kind: Ports(ports) })
}

impl Pending<Remote> {
    /// Waits for the connection and for the client's streams, at most `limit`.
    pub async fn open(self, limit: Duration) -> std::io::Result<RemoteCommand> {
        let Remote { version, wanted } = self.kind;
        let transport = self.transport;
        let opening = async {
            let io = TokioIo::new(self.connection.await.map_err(std::io::Error::other)?);
            match transport {
                Transport::Channels(codec) => {
                    Ok(remote::over_channels(websocket::accepted(io).await, codec, version, wanted))
                }
                Transport::Spdy | Transport::Tunnel => {
                    let activity = Activity::default();
                    let (session, incoming) = Session::start(io, Role::Server, activity.clone());
                    remote::over_spdy(session, incoming, activity, version, wanted).await
                }
            }
        };
        let late = || std::io::Error::new(std::io::ErrorKind::TimedOut, "the client did not open its streams in time");
        tokio::time::timeout(limit, opening).await.map_err(|_| late())?
    }
}

impl Pending<Ports> {
    /// Waits for the connection, at most `limit`, which both streams of a port also have.
    pub async fn open(self, limit: Duration) -> std::io::Result<PortForward> {
        let connection = tokio::time::timeout(limit, self.connection).await;
        let connection = connection.map_err(|_| std::io::ErrorKind::TimedOut)?;
        let io = TokioIo::new(connection.map_err(std::io::Error::other)?);
        let activity = Activity::default();
        Ok(match self.transport {
            Transport::Spdy => {
                let (session, incoming) = Session::start(io, Role::Server, activity.clone());
                forward::over_spdy(session, incoming, activity, limit)
            }
            Transport::Tunnel => {
                let io = websocket::Tunnel::new(websocket::accepted(io).await);
                let (session, incoming) = Session::start(io, Role::Server, activity.clone());
                forward::over_spdy(session, incoming, activity, limit)
            }
            Transport::Channels(codec) => {
                forward::over_channels(websocket::accepted(io).await, codec, activity, self.kind.0)
            }
        })
    }
}
