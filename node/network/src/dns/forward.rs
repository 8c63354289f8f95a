//! Names of the world: asked of the machine's own name servers.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use ipnet::Ipv4Net;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// For one try with one server.
const TRY: Duration = Duration::from_secs(2);
const ROUNDS: usize = 2;
/// Questions under way; more are told to come again.
const MOST: usize = 512;
const PAYLOAD: u16 = 1232;
const REREAD: Duration = Duration::from_secs(5);

/// Where the name servers are known from.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// A resolv.conf, read again now and then.
    File(PathBuf),
    #[cfg(test)]
    Fixed(Vec<SocketAddr>),
}

pub(crate) struct Upstream {
    source: Source,
    /// The cluster's own: asking there would go round in circles.
    not_in: [Ipv4Net; 2],
    read: Mutex<Option<(Instant, Vec<SocketAddr>)>>,
    permits: Semaphore,
}

fn parse(text: &str, not_in: [Ipv4Net; 2]) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver")?.split_whitespace().next()?.parse().ok())
        .filter(|address| match address {
            IpAddr::V4(address) => !not_in.iter().any(|range| range.contains(address)),
            IpAddr::V6(_) => true,
        })
        .map(|address| SocketAddr::new(address, 53))
        .take(3)
        .collect()
}

impl Upstream {
    pub(crate) fn new(source: Source, not_in: [Ipv4Net; 2]) -> Self {
        Self { source, not_in, read: Mutex::default(), permits: Semaphore::new(MOST) }
    }

    async fn servers(&self) -> Vec<SocketAddr> {
        #[allow(clippy::infallible_destructuring_match, reason = "tests have another source")]
        let path = match &self.source {
            Source::File(path) => path,
            #[cfg(test)]
            Source::Fixed(servers) => return servers.clone(),
        };
        {
            let read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((at, servers)) = &*read
                && at.elapsed() < REREAD
            {
                return servers.clone();
            }
        }
        let servers = parse(&tokio::fs::read_to_string(path).await.unwrap_or_default(), self.not_in);
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        *read = Some((Instant::now(), servers.clone()));
        servers
    }

    /// The answer of the first server that has one.
    pub(crate) async fn ask(&self, question: &Query) -> Result<Message, ResponseCode> {
        let servers = self.servers().await;
        if servers.is_empty() {
            return Err(ResponseCode::Refused);
        }
        let Ok(_permit) = self.permits.try_acquire() else {
            return Err(ResponseCode::ServFail);
        };
        let mut last = ResponseCode::ServFail;
        for _ in 0..ROUNDS {
            for server in &servers {
                match timeout(TRY, exchange(*server, question)).await {
                    Ok(Ok(answer)) => match answer.metadata.response_code {
                        code @ (ResponseCode::ServFail | ResponseCode::Refused | ResponseCode::NotImp) => last = code,
                        _ => return Ok(answer),
                    },
                    Ok(Err(error)) => {
                        tracing::debug!(%error, %server, "no answer from a name server")
                    }
                    Err(_) => tracing::debug!(%server, "no answer from a name server in time"),
                }
            }
        }
        Err(last)
    }
}

async fn exchange(server: SocketAddr, question: &Query) -> io::Result<Message> {
    let mut message = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(question.clone());
    let mut edns = Edns::new();
    edns.set_max_payload(PAYLOAD).set_version(0);
    message.set_edns(edns);
    let bytes = message.to_vec().map_err(io::Error::other)?;
    let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(&bytes).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let Some(answer) = buffer.get(..length).and_then(|bytes| matching(bytes, &message)) else {
            continue;
        };
        if !answer.metadata.truncation {
            return Ok(answer);
        }
        return over_tcp(server, &bytes, &message).await;
    }
}

async fn over_tcp(server: SocketAddr, bytes: &[u8], asked: &Message) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), bytes].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    matching(&answer, asked).ok_or_else(|| io::Error::other("the answer is to another question"))
}

/// Only an answer to this very question is one.
fn matching(bytes: &[u8], asked: &Message) -> Option<Message> {
    let answer = Message::from_vec(bytes).ok()?;
    let same = answer.metadata.id == asked.metadata.id
        && answer.metadata.message_type == MessageType::Response
        && answer.queries == asked.queries;
    same.then_some(answer)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn name_servers_of_the_machine() {
        let ranges = ["10.96.0.0/16".parse().unwrap(), "10.244.0.0/16".parse().unwrap()];
        let text = "# x\nsearch a.b\nnameserver 192.0.2.1\n nameserver 10.96.0.10\nnameserver nonsense\nnameserver ::1\noptions ndots:5\n";
        let found: Vec<_> = parse(text, ranges).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.1:53", "[::1]:53"]);
        assert_eq!(parse("", ranges), []);
    }
}
