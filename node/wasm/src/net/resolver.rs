//! Names as a pod's resolv.conf and hosts file would have them, without either file.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::proto::ContainerSpec;

/// How often the servers are asked in turn, as resolv.conf's `attempts`.
const ATTEMPTS: usize = 2;
const NDOTS: u32 = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Error {
    /// No name at all.
    Invalid,
    NotFound,
    /// No server answered in time.
    Unanswered,
    /// A server could not or would not say.
    Failed,
}

#[derive(Debug)]
pub struct Names {
    servers: Vec<SocketAddr>,
    search: Vec<String>,
    ndots: u32,
    hosts: Vec<(IpAddr, Vec<String>)>,
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
    /// The kernel chooses where questions come from: no other pod is in this network.
    any_source: bool,
}

impl Names {
    pub fn new(
        spec: &ContainerSpec,
        fallback: Option<SocketAddr>,
        v4: Option<Ipv4Addr>,
        v6: Option<Ipv6Addr>,
        any_source: bool,
    ) -> Result<Names, String> {
        let mut servers = Vec::new();
        for text in &spec.nameservers {
            let server = text.parse().or_else(|_| text.parse().map(|ip| SocketAddr::new(ip, 53)));
            servers.push(server.map_err(|_| format!("nameservers: {text:?} is no address"))?);
        }
        if servers.is_empty() {
            servers.extend(fallback);
        }
        let mut hosts = vec![(IpAddr::V4(Ipv4Addr::LOCALHOST), vec!["localhost".to_owned()])];
        for alias in &spec.host_aliases {
            let ip = alias.address.parse();
            let ip = ip.map_err(|_| format!("host_aliases: {:?} is no address", alias.address))?;
            hosts.push((ip, alias.names.iter().map(|n| n.to_ascii_lowercase()).collect()));
        }
        if !spec.hostname.is_empty() {
            let own = v4.map(IpAddr::V4).into_iter().chain(v6.map(IpAddr::V6));
            hosts.extend(own.map(|ip| (ip, vec![spec.hostname.to_ascii_lowercase()])));
        }
        let search = spec.search_domains.iter().map(|d| d.trim_end_matches('.').to_owned()).collect();
        let ndots = if spec.ndots == 0 { NDOTS } else { spec.ndots };
        Ok(Names { servers, search, ndots, hosts, v4, v6, any_source })
    }

    /// The names that are asked for, in order.
    fn candidates(&self, name: &str) -> Vec<String> {
        if let Some(absolute) = name.strip_suffix('.') {
            return vec![absolute.to_owned()];
        }
        let mut names: Vec<_> = self.search.iter().map(|domain| format!("{name}.{domain}")).collect();
        let dots = name.matches('.').count() as u32;
        names.insert(if dots >= self.ndots { 0 } else { names.len() }, name.to_owned());
        names
    }

    pub async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, Error> {
        let bare = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
        if let Ok(ip) = bare.parse() {
            return Ok(vec![ip]);
        }
        let name = name.to_ascii_lowercase();
        let plain = name.trim_end_matches('.');
        if plain.is_empty() || plain.len() > 253 || Name::from_ascii(plain).is_err() {
            return Err(Error::Invalid);
        }
        let known: Vec<_> =
            self.hosts.iter().filter(|(_, names)| names.iter().any(|n| n == plain)).map(|(ip, _)| *ip).collect();
        if !known.is_empty() {
            return Ok(known);
        }
        let mut worst = Error::NotFound;
        for candidate in self.candidates(&name) {
            match self.lookup(&candidate).await {
                Ok(addresses) if !addresses.is_empty() => return Ok(addresses),
                Ok(_) | Err(Error::NotFound) => {}
                // A server that is away will be away for the other names too.
                Err(Error::Unanswered) => return Err(Error::Unanswered),
                Err(error) => worst = error,
            }
        }
        Err(worst)
    }

    async fn lookup(&self, name: &str) -> Result<Vec<IpAddr>, Error> {
        let both = async {
            let a = async {
                match self.v4 {
                    Some(_) => self.query(name, RecordType::A).await,
                    None => Ok(Vec::new()),
                }
            };
            let aaaa = async {
                match self.v6 {
                    Some(_) => self.query(name, RecordType::AAAA).await,
                    None => Ok(Vec::new()),
                }
            };
            futures::future::join(a, aaaa).await
        };
        match both.await {
            (Ok(mut a), Ok(aaaa)) => {
                a.extend(aaaa);
                Ok(a)
            }
            (Ok(found), Err(_)) | (Err(_), Ok(found)) if !found.is_empty() => Ok(found),
            (Err(error), _) | (_, Err(error)) => Err(error),
        }
    }

    async fn query(&self, name: &str, kind: RecordType) -> Result<Vec<IpAddr>, Error> {
        let name = Name::from_ascii(format!("{name}.")).map_err(|_| Error::Invalid)?;
        let mut last = Error::NotFound;
        for _ in 0..ATTEMPTS {
            for server in &self.servers {
                match tokio::time::timeout(super::RESOLVE, self.ask(*server, &name, kind)).await {
                    Ok(Ok(message)) => match message.metadata.response_code {
                        ResponseCode::NoError => return Ok(addresses(&message)),
                        ResponseCode::NXDomain => return Err(Error::NotFound),
                        _ => last = Error::Failed,
                    },
                    Ok(Err(error)) => {
                        tracing::debug!(%server, %error, "name server");
                        last = Error::Failed;
                    }
                    Err(_) => last = Error::Unanswered,
                }
            }
            if last == Error::Failed {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Err(last)
    }

    /// From the pod's own address, so that policies for the pod hold for its names too.
    fn source(&self, server: SocketAddr) -> SocketAddr {
        let ip = match server {
            SocketAddr::V4(_) if self.any_source => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) if self.any_source => Ipv6Addr::UNSPECIFIED.into(),
            SocketAddr::V4(_) => IpAddr::V4(self.v4.unwrap_or(Ipv4Addr::UNSPECIFIED)),
            SocketAddr::V6(_) => IpAddr::V6(self.v6.unwrap_or(Ipv6Addr::UNSPECIFIED)),
        };
        SocketAddr::new(ip, 0)
    }

    async fn ask(&self, server: SocketAddr, name: &Name, kind: RecordType) -> io::Result<Message> {
        let id = rand::random();
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(name.clone(), kind));
        let bytes = message.to_vec().map_err(io::Error::other)?;

        let socket = tokio::net::UdpSocket::bind(self.source(server)).await?;
        socket.connect(server).await?;
        socket.send(&bytes).await?;
        let mut buffer = vec![0; 4096];
        loop {
            let length = socket.recv(&mut buffer).await?;
            // Anything that does not answer this very question is not for us.
            let Some(answer) = buffer.get(..length).and_then(|b| Message::from_vec(b).ok()) else {
                continue;
            };
            if !answers(&answer, &message) {
                continue;
            }
            if !answer.metadata.truncation {
                return Ok(answer);
            }
            break;
        }
        let socket = super::tcp_socket(server.is_ipv4())?;
        socket.bind(self.source(server))?;
        let mut stream = socket.connect(server).await?;
        let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
        stream.write_all(&[&length.to_be_bytes()[..], &bytes].concat()).await?;
        let length = stream.read_u16().await?;
        let mut buffer = vec![0; length.into()];
        stream.read_exact(&mut buffer).await?;
        let answer = Message::from_vec(&buffer).map_err(io::Error::other)?;
        match answers(&answer, &message) {
            true => Ok(answer),
            false => Err(io::Error::other("answers another question")),
        }
    }
}

fn answers(answer: &Message, query: &Message) -> bool {
    answer.metadata.id == query.metadata.id
        && answer.metadata.message_type == MessageType::Response
        && answer.queries == query.queries
}

fn addresses(message: &Message) -> Vec<IpAddr> {
    let address = |data: &RData| match data {
        RData::A(a) => Some(IpAddr::V4(a.0)),
        RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
        _ => None,
    };
    message.answers.iter().filter_map(|record| address(&record.data)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::proto::HostAlias;
    use hickory_proto::rr::{Record, rdata};

    fn names(spec: ContainerSpec) -> Names {
        Names::new(&spec, None, Some(Ipv4Addr::LOCALHOST), None, false).unwrap()
    }

    #[test]
    fn search_domains_by_dots() {
        let names = names(ContainerSpec {
            search_domains: vec!["default.svc.cluster.local".into(), "cluster.local.".into()],
            ndots: 2,
            ..Default::default()
        });
        assert_eq!(names.candidates("web"), ["web.default.svc.cluster.local", "web.cluster.local", "web"]);
        assert_eq!(names.candidates("a.b.c")[0], "a.b.c");
        assert_eq!(names.candidates("web."), ["web"]);
    }

    #[tokio::test]
    async fn own_names_need_no_server() {
        let names = names(ContainerSpec {
            hostname: "web-0".into(),
            host_aliases: vec![HostAlias { address: "192.0.2.1".into(), names: vec!["Foo.example".into()] }],
            ..Default::default()
        });
        let one = |ip: &str| Ok(vec![ip.parse::<IpAddr>().unwrap()]);
        assert_eq!(names.resolve("localhost").await, one("127.0.0.1"));
        assert_eq!(names.resolve("WEB-0").await, one("127.0.0.1"));
        assert_eq!(names.resolve("foo.example").await, one("192.0.2.1"));
        assert_eq!(names.resolve("[::1]").await, one("::1"));
        assert_eq!(names.resolve("").await, Err(Error::Invalid));
        assert_eq!(names.resolve("nobody").await, Err(Error::NotFound));
    }

    #[tokio::test]
    async fn servers_are_asked_with_the_search_domains() {
        let server = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            while let Ok((length, from)) = server.recv_from(&mut buffer).await {
                let query = Message::from_vec(&buffer[..length]).unwrap();
                let name = query.queries[0].name().clone();
                let mut answer = Message::response(query.metadata.id, OpCode::Query);
                answer.add_query(query.queries[0].clone());
                if name.to_ascii() == "web.default.svc.cluster.local." {
                    let data = RData::A(rdata::A(Ipv4Addr::new(10, 43, 0, 9)));
                    answer.add_answer(Record::from_rdata(name, 5, data));
                } else {
                    answer.metadata.response_code = ResponseCode::NXDomain;
                }
                server.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
            }
        });
        let names = names(ContainerSpec {
            nameservers: vec![address.to_string()],
            search_domains: vec!["svc.cluster.local".into(), "default.svc.cluster.local".into()],
            ..Default::default()
        });
        assert_eq!(names.resolve("web").await, Ok(vec![IpAddr::from([10, 43, 0, 9])]));
        assert_eq!(names.resolve("absent").await, Err(Error::NotFound));
    }
}
