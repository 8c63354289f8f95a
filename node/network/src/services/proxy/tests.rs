#![allow(clippy::unwrap_used)]

use std::sync::mpsc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::*;
use crate::testing::own_loopback;

fn key(name: &str) -> Key {
    ("shop".to_owned(), name.to_owned())
}

fn proxy(shift: PortShift) -> (Proxy, mpsc::Receiver<(Key, String, String)>) {
    let (sender, told) = mpsc::channel();
    let plan = Plan {
        nftables: false,
        shift,
        cluster_cidr: "127.0.0.0/8".parse().unwrap(),
        node_addresses: vec![own_loopback(9)],
    };
    let tell: Tell = Arc::new(move |key: &Key, _, reason: &str, message| {
        let _ = sender.send((key.clone(), reason.to_owned(), message));
    });
    (Proxy::new(plan, tell, SharedAddresses::default()), told)
}

/// A port that nobody has at `address` now.
async fn free(address: Ipv4Addr) -> u16 {
    TcpListener::bind((address, 0)).await.unwrap().local_addr().unwrap().port()
}

/// Says its name to whoever connects, then sends back what it hears.
async fn echo(name: &'static str) -> Endpoint {
    let listener = TcpListener::bind((own_loopback(2), 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.write_all(name.as_bytes()).await;
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    Endpoint { address: own_loopback(2), port }
}

fn port(address: Ipv4Addr, number: u16, endpoints: &[Endpoint]) -> Port {
    Port {
        name: String::new(),
        protocol: Protocol::Tcp,
        cluster_ips: vec![address],
        external_ips: Vec::new(),
        port: number,
        node_port: None,
        affinity: None,
        inside: endpoints.to_vec(),
        outside: endpoints.to_vec(),
        keep_source: false,
    }
}

async fn name_at(address: Ipv4Addr, port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect((address, port)).await?;
    let mut name = [0; 3];
    stream.read_exact(&mut name).await?;
    Ok(String::from_utf8_lossy(&name).into_owned())
}

#[tokio::test]
async fn carries_both_ways_and_refuses_without_endpoints() {
    let (mut proxy, _) = proxy(PortShift::default());
    let address = own_loopback(3);
    let number = free(address).await;
    let one = echo("one").await;
    proxy.apply(&[(key("a"), vec![port(address, number, &[one])])]);
    let mut stream = TcpStream::connect((address, number)).await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).await.unwrap();
    assert_eq!(all, "onehello");

    let two = echo("two").await;
    proxy.apply(&[(key("a"), vec![port(address, number, &[two])])]);
    assert_eq!(name_at(address, number).await.unwrap(), "two");

    let mut open = TcpStream::connect((address, number)).await.unwrap();
    let mut name = [0; 3];
    open.read_exact(&mut name).await.unwrap();
    proxy.apply(&[(key("a"), vec![port(address, number, &[])])]);
    assert_eq!(proxy.listening(), []);
    tokio::task::yield_now().await;
    while let Ok(name) = name_at(address, number).await {
        // The listener's task may not have ended yet.
        assert_eq!(name, "two");
        tokio::task::yield_now().await;
    }
    // What was open goes on.
    open.write_all(b"yes").await.unwrap();
    open.read_exact(&mut name).await.unwrap();
    assert_eq!(&name, b"yes");
}

#[tokio::test]
async fn a_dead_endpoint_is_passed_over() {
    let (mut proxy, _) = proxy(PortShift::default());
    let address = own_loopback(4);
    let number = free(address).await;
    let dead = Endpoint { address: own_loopback(2), port: free(own_loopback(2)).await };
    let one = echo("one").await;
    proxy.apply(&[(key("a"), vec![port(address, number, &[dead, one])])]);
    for _ in 0..8 {
        assert_eq!(name_at(address, number).await.unwrap(), "one");
    }
}

#[tokio::test]
async fn balances_unless_it_sticks() {
    let (mut proxy, _) = proxy(PortShift::default());
    let address = own_loopback(5);
    let number = free(address).await;
    let both = [echo("one").await, echo("two").await];
    proxy.apply(&[(key("a"), vec![port(address, number, &both)])]);
    let mut seen = HashSet::new();
    for _ in 0..64 {
        seen.insert(name_at(address, number).await.unwrap());
    }
    assert_eq!(seen.len(), 2);
    let sticky = Port { affinity: Some(60), ..port(address, number, &both) };
    proxy.apply(&[(key("a"), vec![sticky])]);
    let first = name_at(address, number).await.unwrap();
    for _ in 0..16 {
        assert_eq!(name_at(address, number).await.unwrap(), first);
    }
}

#[tokio::test]
async fn datagrams_find_their_way_back() {
    let (mut proxy, _) = proxy(PortShift::default());
    let address = own_loopback(6);
    let number = free(address).await;
    let server = UdpSocket::bind((own_loopback(2), 0)).await.unwrap();
    let endpoint = Endpoint { address: own_loopback(2), port: server.local_addr().unwrap().port() };
    tokio::spawn(async move {
        let mut buffer = [0; 64];
        while let Ok((length, from)) = server.recv_from(&mut buffer).await {
            let answer = [b"re: ", &buffer[..length]].concat();
            let _ = server.send_to(&answer, from).await;
        }
    });
    let udp = Port { protocol: Protocol::Udp, ..port(address, number, &[endpoint]) };
    proxy.apply(&[(key("a"), vec![udp])]);
    for word in ["one", "two"] {
        let client = UdpSocket::bind((own_loopback(1), 0)).await.unwrap();
        client.connect((address, number)).await.unwrap();
        for _ in 0..2 {
            client.send(word.as_bytes()).await.unwrap();
            let mut buffer = [0; 64];
            let length = client.recv(&mut buffer).await.unwrap();
            assert_eq!(&buffer[..length], format!("re: {word}").as_bytes());
        }
    }
}

#[tokio::test]
async fn tells_of_taken_and_of_shifted_ports() {
    let (mut proxy, told) = proxy(PortShift { below: 1024, by: 10_000 });
    let address = own_loopback(7);
    let one = echo("one").await;
    let taken = TcpListener::bind((own_loopback(9), 0)).await.unwrap();
    let node_port = taken.local_addr().unwrap().port();
    let service = Port { node_port: Some(node_port), ..port(address, 81, &[one]) };
    proxy.apply(&[(key("a"), vec![service])]);
    assert_eq!(name_at(address, 10_081).await.unwrap(), "one");
    let mut said: Vec<_> = told.try_iter().collect();
    said.sort_by(|a, b| a.1.cmp(&b.1));
    assert_eq!(said.len(), 2, "{said:?}");
    assert_eq!(said[0].1, "PortAlreadyTaken");
    assert!(said[0].2.contains(&node_port.to_string()), "{}", said[0].2);
    assert_eq!(said[1].1, "PortShifted");
    assert!(said[1].2.contains("port 81 ") && said[1].2.contains("10081"), "{}", said[1].2);
    assert!(proxy.incomplete());
    // Said once; and served as soon as the place is free.
    proxy.apply(&[]);
    assert_eq!(told.try_iter().count(), 0);
    drop(taken);
    while proxy.incomplete() {
        proxy.apply(&[]);
        tokio::task::yield_now().await;
    }
    assert_eq!(name_at(own_loopback(9), node_port).await.unwrap(), "one");
}

#[tokio::test]
async fn two_services_cannot_have_one_port() {
    let (mut proxy, told) = proxy(PortShift::default());
    let address = own_loopback(8);
    let number = free(address).await;
    let (one, two) = (echo("one").await, echo("two").await);
    proxy.apply(&[(key("a"), vec![port(address, number, &[one])])]);
    proxy.apply(&[(key("b"), vec![port(address, number, &[two])])]);
    assert_eq!(name_at(address, number).await.unwrap(), "one");
    let said: Vec<_> = told.try_iter().collect();
    assert!(said.iter().any(|it| it.0 == key("b") && it.2.contains("Service shop/a")), "{said:?}");
    proxy.apply(&[(key("a"), Vec::new())]);
    assert_eq!(name_at(address, number).await.unwrap(), "two");
}

#[test]
fn ports_of_pods_are_shifted_as_those_of_services() {
    let plan = Plan {
        nftables: false,
        shift: PortShift { below: 1024, by: 10_000 },
        cluster_cidr: "127.64.0.0/16".parse().unwrap(),
        node_addresses: Vec::new(),
    };
    let at = |address: [u8; 4], port| plan.reach(Endpoint { address: address.into(), port }).to_string();
    assert_eq!(at([127, 64, 0, 1], 80), "127.64.0.1:10080");
    assert_eq!(at([127, 64, 0, 1], 8080), "127.64.0.1:8080");
    assert_eq!(at([127, 0, 0, 1], 443), "127.0.0.1:443");
}
