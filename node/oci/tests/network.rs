//! How pods are reached.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;

use common::{Pod, node, sandbox, shell, until};
use sampan_oci::testing::{self, Node};
use sampan_oci::{Installed, PortMapping, Protocol};

/// In a child, with a network namespace in which nothing is but loopback: rules of host ports go with it.
const INNER: &str = "SAMPAN_OCI_OWN_NETWORK";

fn get(address: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.write_all(b"GET /passwd HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer).filter(|answer| !answer.is_empty())
}

#[tokio::test]
async fn pods_reach_each_other_and_are_reached() {
    let Some(node) = node().await else { return };
    let (server, client) = (Pod::run(&node, sandbox(&node, "a")).await, Pod::run(&node, sandbox(&node, "b")).await);
    server.start(&shell("main", "httpd -f -p 8080 -h /etc")).await;
    let ip = server.client.sandbox_status(&server.id).await.unwrap().ips[0];
    let answer = until("an answer", || async { get((ip, 8080).into()) }).await;
    assert!(answer.contains("root:x:0:0"), "{answer}");
    let ask = format!("wget -q -O - http://{ip}:8080/passwd | head -1");
    assert_eq!(client.output(&shell("main", &ask)).await, "root:x:0:0::/:/bin/sh\n");
    // An address is given again only when its pod has gone.
    let other = client.client.sandbox_status(&client.id).await.unwrap().ips[0];
    assert_ne!(ip, other);
}

#[tokio::test]
async fn host_ports_lead_into_pods() {
    if let Some(why) = testing::unavailable() {
        return eprintln!("skipped: {why}");
    }
    if !Installed::find().unwrap().iptables {
        return eprintln!("skipped: not installed: iptables");
    }
    if std::env::var_os(INNER).is_none() {
        let mut inner = Command::new("unshare");
        inner.args(["--net", "--", "sh", "-c", "ip link set lo up && exec \"$@\"", "sh"]);
        inner.arg(std::env::current_exe().unwrap()).args(["--exact", "host_ports_lead_into_pods", "--nocapture"]);
        return assert!(inner.env(INNER, "1").status().unwrap().success());
    }
    let node = Node::start_with(|network| {
        network.port_mappings = true;
        network.masquerade = true;
    })
    .await
    .unwrap();
    let mut config = sandbox(&node, "server");
    config.port_mappings =
        vec![PortMapping { protocol: Protocol::Tcp, container_port: 8080, host_port: 80, host_ip: None }];
    let pod = Pod::run(&node, config).await;
    pod.start(&shell("main", "httpd -f -p 8080 -h /etc")).await;
    let machine = IpAddr::V4(Ipv4Addr::from(node.range.network().to_bits() + 1));
    for ip in [machine, Ipv4Addr::LOCALHOST.into()] {
        let answer = until("an answer", || async { get((ip, 80).into()) }).await;
        assert!(answer.contains("root:x:0:0"), "{ip}: {answer}");
    }
    pod.client.stop_sandbox(&pod.id).await.unwrap();
    pod.client.remove_sandbox(&pod.id).await.unwrap();
    assert!(TcpStream::connect((machine, 80)).is_err());
    let rules = Command::new("iptables").args(["-t", "nat", "-S"]).output().unwrap();
    assert!(!String::from_utf8_lossy(&rules.stdout).contains("--dport 80"));
}
