//! Whole networks: privileged ones in a network namespace of the test's own, without any way out;
//! unprivileged ones on loopback.
#![allow(clippy::unwrap_used)]

mod loopback;
mod machine;
mod services;
mod ways;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Instant;

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use serde_json::{Value, json};

use super::*;
use crate::mode::detect_mode;
use crate::records::{Removed, clean};
use crate::services::model::{Endpoint, Port, Protocol};
use crate::testing::{FakeApi, in_fresh_network, own_loopback};

const WAIT: Duration = Duration::from_secs(3);

fn config(dir: &Path, node: &str) -> Config {
    let number = node.trim_start_matches(|it: char| !it.is_ascii_digit()).parse::<u8>().unwrap_or(0);
    Config {
        cluster_id: "0a0b0c0d".to_owned(),
        node_name: node.to_owned(),
        mode: Mode::Privileged,
        pod_cidr: format!("10.244.{number}.0/24").parse().unwrap(),
        cluster_cidr: "10.244.0.0/16".parse().unwrap(),
        service_cidr: "10.96.0.0/16".parse().unwrap(),
        cluster_dns: "10.96.0.10".parse().unwrap(),
        cluster_domain: "cluster.local".to_owned(),
        dir: dir.to_owned(),
        node_addresses: vec!["192.0.2.1".parse().unwrap(), "127.0.0.1".parse().unwrap()],
    }
}

struct Node0 {
    network: Network,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Node0 {
    /// Ends what it does; what it made stays.
    async fn stop(self) {
        self.shutdown.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

async fn start(api: &FakeApi, config: Config, nftables: bool) -> Node0 {
    let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
    let informers = Informers::new(api.client(), shutdown.clone());
    let machine = Machine { upstream: forward::Source::Fixed(Vec::new()), nftables };
    let network = Network::start_on(machine, config, informers, tasks.clone(), shutdown.clone()).await.unwrap();
    Node0 { network, tasks, shutdown }
}

/// Answers each connection with its name and who it sees.
fn greet(listener: TcpListener, name: &'static str) {
    std::thread::spawn(move || {
        while let Ok((mut stream, from)) = listener.accept() {
            let _ = stream.write_all(format!("{name} {}", from.ip()).as_bytes());
        }
    });
}

/// A server in a tenant's namespace, or on the machine.
async fn serve(netns: Option<PathBuf>, address: IpAddr, port: u16, name: &'static str) {
    let bind = move || TcpListener::bind((address, port)).map_err(Error::system("bind"));
    let listener = match netns {
        Some(path) => namespace::inside(path, bind).await.unwrap(),
        None => bind().unwrap(),
    };
    greet(listener, name);
}

fn connect_from(source: Option<IpAddr>, to: (IpAddr, u16)) -> std::io::Result<String> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None)?;
    if let Some(source) = source {
        rustix::net::bind(&socket, &SocketAddr::new(source, 0))?;
    }
    rustix::net::sockopt::set_socket_timeout(&socket, rustix::net::sockopt::Timeout::Send, Some(WAIT))?;
    rustix::net::connect(&socket, &SocketAddr::from(to))?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(WAIT))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// What a program hears at an address: from a tenant, or from the machine.
async fn hear(netns: Option<&Tenant>, source: Option<IpAddr>, to: (IpAddr, u16)) -> std::io::Result<String> {
    let work = move || Ok(connect_from(source, to));
    match netns {
        Some(tenant) => namespace::inside(tenant.netns.clone().unwrap(), work).await.unwrap(),
        None => namespace::on_thread(work).await.unwrap(),
    }
}

/// Tries until it is so: what is told to the cluster takes a moment to arrive.
async fn until<F: Future<Output = bool>>(what: &str, mut so: impl FnMut() -> F) {
    let start = Instant::now();
    while !so().await {
        assert!(start.elapsed() < Duration::from_secs(10), "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn service(name: &str, spec: Value) -> Value {
    json!({ "metadata": { "name": name, "namespace": "shop" }, "spec": spec })
}

fn slice(service: &str, port: u16, endpoints: &[(IpAddr, bool)]) -> Value {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(address, ready)| json!({ "addresses": [address], "conditions": { "ready": ready } }))
        .collect();
    json!({
        "metadata": { "name": format!("{service}-1"), "namespace": "shop",
            "labels": { "kubernetes.io/service-name": service } },
        "addressType": "IPv4",
        "ports": [{ "name": "", "port": port, "protocol": "TCP" }],
        "endpoints": endpoints,
    })
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

async fn add_own_address(address: &str) {
    let netlink = Netlink::here().unwrap();
    let lo = netlink.up("lo").await.unwrap();
    netlink.add_address(lo, address.parse().unwrap()).await.unwrap();
}

fn is_refused<T>(result: &std::io::Result<T>) -> bool {
    result.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
}

fn is_unreachable<T>(result: &std::io::Result<T>) -> bool {
    use std::io::ErrorKind::{HostUnreachable, NetworkUnreachable};
    result.as_ref().is_err_and(|error| matches!(error.kind(), HostUnreachable | NetworkUnreachable))
}

async fn lookup(tenant: Option<&Tenant>, server: SocketAddr, name: &'static str) -> Vec<String> {
    let work = move || {
        let mut message = Message::new(9, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(WAIT)).unwrap();
        socket.connect(server).unwrap();
        socket.send(&message.to_vec().unwrap()).unwrap();
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer).unwrap();
        let answer = Message::from_vec(&buffer[..length]).unwrap();
        Ok(answer.answers.iter().map(|record| record.data.to_string()).collect())
    };
    match tenant {
        Some(tenant) => namespace::inside(tenant.netns.clone().unwrap(), work).await.unwrap(),
        None => namespace::on_thread(work).await.unwrap(),
    }
}

fn has_nft() -> bool {
    let there = nft::program().is_some();
    if !there {
        println!("skipped: needs the nft program");
    }
    there
}
