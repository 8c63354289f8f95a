#![allow(clippy::unwrap_used)]

use std::net::Ipv4Addr;
use std::sync::Arc;

use hickory_proto::op::{Message, MessageType};
use hickory_proto::rr::RData;
use hickory_proto::rr::rdata::A;
use sampan_client::Change;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::testing::own_loopback;
use forward::Source;

/// A name server that knows one address, and says it does not fit into a datagram if `large`.
async fn world(large: bool) -> SocketAddr {
    let listener = TcpListener::bind((own_loopback(1), 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let socket = UdpSocket::bind(address).await.unwrap();
    let answer = |bytes: &[u8], cut: bool| {
        let mut message = Message::from_vec(bytes).unwrap();
        message.metadata.message_type = MessageType::Response;
        message.metadata.truncation = cut;
        let name = message.queries[0].name().clone();
        if name == Name::from_ascii("nowhere.test.").unwrap() {
            message.metadata.response_code = ResponseCode::NXDomain;
        } else if !cut {
            message.add_answer(Record::from_rdata(name, 60, RData::A(A(Ipv4Addr::new(192, 0, 2, 7)))));
        }
        message.to_vec().unwrap()
    };
    tokio::spawn(async move {
        let mut buffer = [0; 1024];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            let _ = socket.send_to(&answer(&buffer[..length], large), from).await;
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let length = stream.read_u16().await.unwrap();
            let mut bytes = vec![0; length.into()];
            stream.read_exact(&mut bytes).await.unwrap();
            let answer = answer(&bytes, false);
            stream.write_u16(u16::try_from(answer.len()).unwrap()).await.unwrap();
            stream.write_all(&answer).await.unwrap();
        }
    });
    address
}

struct Dns {
    address: SocketAddr,
    ready: CancellationToken,
    _stop: tokio_util::sync::DropGuard,
}

async fn dns(upstream: Vec<SocketAddr>) -> Dns {
    let catalog = Catalog::default();
    let ranges = ["10.96.0.0/16".parse().unwrap(), "10.244.0.0/16".parse().unwrap()];
    let services = [
        json!({ "metadata": { "name": "web", "namespace": "shop" }, "spec": { "clusterIP": "10.96.0.7" } }),
        json!({ "metadata": { "name": "world", "namespace": "shop" },
            "spec": { "type": "ExternalName", "externalName": "example.test" } }),
        json!({ "metadata": { "name": "same", "namespace": "shop" },
            "spec": { "type": "ExternalName", "externalName": "web.shop.svc.cluster.local" } }),
        json!({ "metadata": { "name": "loop", "namespace": "shop" },
            "spec": { "type": "ExternalName", "externalName": "loop.shop.svc.cluster.local" } }),
        json!({ "metadata": { "name": "many", "namespace": "shop" }, "spec": { "clusterIP": "None" } }),
    ];
    for service in services {
        catalog.apply_service(&Change::Added(Arc::new(serde_json::from_value(service).unwrap())));
    }
    let endpoints: Vec<_> = (1..60).map(|last| json!({ "addresses": [format!("10.244.0.{last}")] })).collect();
    let slice = json!({ "metadata": { "name": "many-1", "namespace": "shop",
        "labels": { "kubernetes.io/service-name": "many" } }, "addressType": "IPv4", "endpoints": endpoints });
    catalog.apply_slice(&Change::Added(Arc::new(serde_json::from_value(slice).unwrap())));
    let ready = CancellationToken::new();
    let handler = Handler {
        zone: Zone::new("cluster.local", Ipv4Addr::new(10, 96, 0, 10), ranges).unwrap(),
        catalog,
        upstream: Upstream::new(Source::Fixed(upstream), ranges),
        ready: ready.clone(),
    };
    let stop = CancellationToken::new();
    let address = serve(handler, SocketAddrV4::new(own_loopback(1), 0), true, stop.clone()).await.unwrap();
    Dns { address, ready, _stop: stop.drop_guard() }
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

impl Dns {
    async fn ask(&self, message: &Message) -> Message {
        let socket = UdpSocket::bind((own_loopback(1), 0)).await.unwrap();
        socket.connect(self.address).await.unwrap();
        socket.send(&message.to_vec().unwrap()).await.unwrap();
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer).await.unwrap();
        let answer = Message::from_vec(&buffer[..length]).unwrap();
        assert_eq!(answer.metadata.id, message.metadata.id);
        answer
    }

    async fn ask_tcp(&self, message: &Message) -> Message {
        let bytes = message.to_vec().unwrap();
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_u16(u16::try_from(bytes.len()).unwrap()).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        let mut answer = vec![0; stream.read_u16().await.unwrap().into()];
        stream.read_exact(&mut answer).await.unwrap();
        Message::from_vec(&answer).unwrap()
    }
}

fn data(message: &Message) -> Vec<String> {
    message.answers.iter().map(|record| record.data.to_string()).collect()
}

#[tokio::test]
async fn answers_for_the_cluster_once_it_knows() {
    let dns = dns(Vec::new()).await;
    let web = question("web.shop.svc.cluster.local.", RecordType::A);
    assert_eq!(dns.ask(&web).await.metadata.response_code, ResponseCode::ServFail);
    dns.ready.cancel();
    let answer = dns.ask(&web).await;
    assert_eq!((answer.metadata.response_code, answer.metadata.authoritative), (ResponseCode::NoError, true));
    assert_eq!(data(&answer), ["10.96.0.7"]);
    assert_eq!(data(&dns.ask_tcp(&web).await), ["10.96.0.7"]);
    let none = dns.ask(&question("none.shop.svc.cluster.local.", RecordType::A)).await;
    assert_eq!(none.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(none.authorities.len(), 1);
    let nothing = dns.ask(&question("web.shop.svc.cluster.local.", RecordType::AAAA)).await;
    assert_eq!((nothing.metadata.response_code, nothing.answers.len()), (ResponseCode::NoError, 0));
    assert_eq!(nothing.authorities.len(), 1);
}

#[tokio::test]
async fn long_answers_are_cut_for_datagrams_only() {
    let dns = dns(Vec::new()).await;
    dns.ready.cancel();
    let many = question("many.shop.svc.cluster.local.", RecordType::A);
    assert!(dns.ask(&many).await.metadata.truncation);
    let whole = dns.ask_tcp(&many).await;
    assert!(!whole.metadata.truncation);
    assert_eq!(whole.answers.len(), 59);
    let mut roomy = many.clone();
    let mut edns = Edns::new();
    edns.set_max_payload(4096).set_version(0);
    roomy.set_edns(edns);
    let answer = dns.ask(&roomy).await;
    assert!(answer.edns.is_some());
    assert_eq!(answer.answers.len(), 59);
}

#[tokio::test]
async fn forwards_the_rest() {
    for large in [false, true] {
        let dns = dns(vec![world(large).await]).await;
        dns.ready.cancel();
        let answer = dns.ask(&question("example.test.", RecordType::A)).await;
        assert_eq!(data(&answer), ["192.0.2.7"], "large: {large}");
        let none = dns.ask(&question("nowhere.test.", RecordType::A)).await;
        assert_eq!(none.metadata.response_code, ResponseCode::NXDomain);
        let alias = dns.ask(&question("world.shop.svc.cluster.local.", RecordType::A)).await;
        assert_eq!(data(&alias), ["example.test.", "192.0.2.7"]);
    }
}

#[tokio::test]
async fn aliases_within_the_cluster_end_somewhere() {
    let dns = dns(Vec::new()).await;
    dns.ready.cancel();
    let same = dns.ask(&question("same.shop.svc.cluster.local.", RecordType::A)).await;
    assert_eq!(data(&same), ["web.shop.svc.cluster.local.", "10.96.0.7"]);
    let around = dns.ask(&question("loop.shop.svc.cluster.local.", RecordType::A)).await;
    assert_eq!(around.metadata.response_code, ResponseCode::ServFail);
    let alias = dns.ask(&question("world.shop.svc.cluster.local.", RecordType::CNAME)).await;
    assert_eq!(data(&alias), ["example.test."]);
}

#[tokio::test]
async fn without_name_servers_the_world_is_refused() {
    let dns = dns(Vec::new()).await;
    let answer = dns.ask(&question("example.test.", RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
}

#[tokio::test]
async fn nonsense_is_answered_or_ignored_but_never_fatal() {
    let dns = dns(Vec::new()).await;
    dns.ready.cancel();
    let socket = UdpSocket::bind((own_loopback(1), 0)).await.unwrap();
    socket.connect(dns.address).await.unwrap();
    for junk in [&b""[..], b"x", &[0xff; 40], &[0; 12]] {
        socket.send(junk).await.unwrap();
    }
    let answer = dns.ask(&question("web.shop.svc.cluster.local.", RecordType::A)).await;
    assert_eq!(data(&answer), ["10.96.0.7"]);
}

#[tokio::test]
async fn two_nodes_of_a_machine_share_the_address() {
    let first = dns(Vec::new()).await;
    let SocketAddr::V4(address) = first.address else { panic!() };
    let again = bind(address).await.unwrap();
    drop(again);
}
