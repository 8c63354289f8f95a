//! Whole networks: privileged ones in a network namespace of the test's own, without any way out;
//! unprivileged ones on loopback.
#![allow(clippy::unwrap_used)]

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
    let number = node
        .trim_start_matches(|it: char| !it.is_ascii_digit())
        .parse::<u8>()
        .unwrap_or(0);
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
    shutdown: CancellationToken,
}

async fn start(api: &FakeApi, config: Config, nftables: bool) -> Node0 {
    let shutdown = CancellationToken::new();
    let informers = Informers::new(api.client(), shutdown.clone());
    let machine = Machine {
        upstream: forward::Source::Fixed(Vec::new()),
        nftables,
    };
    let network = Network::start_on(machine, config, informers, shutdown.clone())
        .await
        .unwrap();
    Node0 { network, shutdown }
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
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::STREAM,
        None,
    )?;
    if let Some(source) = source {
        rustix::net::bind(&socket, &SocketAddr::new(source, 0))?;
    }
    rustix::net::sockopt::set_socket_timeout(
        &socket,
        rustix::net::sockopt::Timeout::Send,
        Some(WAIT),
    )?;
    rustix::net::connect(&socket, &SocketAddr::from(to))?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(WAIT))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// What a program hears at an address: from a tenant, or from the machine.
async fn hear(
    netns: Option<&Tenant>,
    source: Option<IpAddr>,
    to: (IpAddr, u16),
) -> std::io::Result<String> {
    let work = move || Ok(connect_from(source, to));
    match netns {
        Some(tenant) => namespace::inside(tenant.netns.clone().unwrap(), work)
            .await
            .unwrap(),
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
    netlink
        .add_address(lo, address.parse().unwrap())
        .await
        .unwrap();
}

fn is_refused<T>(result: &std::io::Result<T>) -> bool {
    result
        .as_ref()
        .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
}

fn is_unreachable<T>(result: &std::io::Result<T>) -> bool {
    use std::io::ErrorKind::{HostUnreachable, NetworkUnreachable};
    result
        .as_ref()
        .is_err_and(|error| matches!(error.kind(), HostUnreachable | NetworkUnreachable))
}

#[test]
fn pods_reach_each_other_and_the_machine_reaches_pods() {
    in_fresh_network(|| async {
        let dir = tempfile::tempdir().unwrap();
        // As distributions set it.
        namespace::set("net/ipv4/conf/all/rp_filter", "1").unwrap();
        let Node0 { network, .. } =
            start(&FakeApi::new(), config(dir.path(), "node-0"), false).await;
        let shop = network.tenant("shop").await.unwrap();
        let bank = network.tenant("bank").await.unwrap();
        let one = network.assign("shop", "one").await.unwrap();
        let two = network.assign("shop", "two").await.unwrap();
        let three = network.assign("bank", "three").await.unwrap();
        assert_eq!(
            [one, two, three],
            [ip("10.244.0.1"), ip("10.244.0.2"), ip("10.244.0.3")]
        );
        for (tenant, address, name) in [
            (&shop, one, "one"),
            (&shop, two, "two"),
            (&bank, three, "three"),
        ] {
            // One port for all: each has an address of its own.
            serve(tenant.netns.clone(), address, 80, name).await;
        }

        for (address, name) in [(one, "one"), (two, "two"), (three, "three")] {
            let heard = hear(None, None, (address, 80)).await.unwrap();
            assert_eq!(heard, format!("{name} {}", tenants::GATEWAY));
        }
        // A pod is seen by its own address, in its tenant, in another and by itself.
        assert_eq!(
            hear(Some(&shop), Some(one), (two, 80)).await.unwrap(),
            "two 10.244.0.1"
        );
        assert_eq!(
            hear(Some(&shop), Some(two), (three, 80)).await.unwrap(),
            "three 10.244.0.2"
        );
        assert_eq!(
            hear(Some(&bank), Some(three), (one, 80)).await.unwrap(),
            "one 10.244.0.3"
        );
        assert_eq!(
            hear(Some(&shop), Some(one), (one, 80)).await.unwrap(),
            "one 10.244.0.1"
        );
        // A socket without an address has one of the tenant's.
        assert_eq!(
            hear(Some(&shop), None, (three, 80)).await.unwrap(),
            "three 10.244.0.1"
        );
        assert_eq!(
            hear(Some(&shop), None, (two, 80)).await.unwrap(),
            "two 10.244.0.1"
        );

        // The machine's own addresses are reached, its loopback is not.
        add_own_address("192.0.2.1").await;
        serve(None, ip("192.0.2.1"), 8080, "machine").await;
        serve(None, ip("127.0.0.1"), 8081, "private").await;
        assert_eq!(
            hear(Some(&shop), Some(one), (ip("192.0.2.1"), 8080))
                .await
                .unwrap(),
            "machine 10.244.0.1"
        );
        assert!(
            hear(Some(&shop), None, (ip("127.0.0.1"), 8081))
                .await
                .is_err()
        );

        // Nobody's addresses lead nowhere, and the machine says so at once.
        for nobody in ["10.244.0.77", "10.244.9.9"] {
            assert!(
                is_unreachable(&hear(None, None, (ip(nobody), 80)).await),
                "{nobody}"
            );
        }
        assert!(is_unreachable(
            &hear(Some(&shop), Some(one), (ip("10.244.0.77"), 80)).await
        ));
        assert!(is_refused(
            &hear(Some(&shop), Some(one), (ip("10.96.3.4"), 80)).await
        ));
        assert!(is_refused(&hear(None, None, (ip("10.96.3.4"), 80)).await));
        assert!(is_refused(&hear(None, None, (one, 81)).await));

        // Released, an address is nobody's; what is left of the tenant goes on.
        network.release("one").await.unwrap();
        assert!(is_unreachable(&hear(None, None, (one, 80)).await));
        assert_eq!(
            hear(Some(&shop), None, (three, 80)).await.unwrap(),
            "three 10.244.0.2"
        );
        assert_ne!(network.assign("shop", "four").await.unwrap(), one);
        network.remove_tenant("bank").await.unwrap();
        assert!(is_unreachable(&hear(None, None, (three, 80)).await));
        assert_eq!(network.tenants().await, ["shop"]);
        assert_eq!(network.assigned().await.len(), 2);
        assert!(!bank.netns.unwrap().exists());
    });
}

async fn services(nftables: bool) {
    let dir = tempfile::tempdir().unwrap();
    let api = FakeApi::new();
    add_own_address("192.0.2.1").await;
    let Node0 { network, .. } = start(&api, config(dir.path(), "node-0"), nftables).await;
    assert_eq!(network.uses_nftables(), nftables);
    let shop = network.tenant("shop").await.unwrap();
    let bank = network.tenant("bank").await.unwrap();
    let one = network.assign("shop", "one").await.unwrap();
    let two = network.assign("bank", "two").await.unwrap();
    serve(shop.netns.clone(), one, 8080, "one").await;
    serve(bank.netns.clone(), two, 8080, "two").await;

    let web = (ip("10.96.0.20"), 80);
    api.put(
        "services",
        service(
            "web",
            json!({ "type": "NodePort", "clusterIP": "10.96.0.20",
        "ports": [{ "port": 80, "nodePort": 30080 }] }),
        ),
    );
    api.put("endpointslices", slice("web", 8080, &[(one, true)]));
    until("a Service answers", || async {
        hear(None, None, web).await.is_ok()
    })
    .await;
    // From the machine, and from the pod behind it.
    assert!(hear(None, None, web).await.unwrap().starts_with("one "));
    assert!(
        hear(Some(&shop), Some(one), web)
            .await
            .unwrap()
            .starts_with("one ")
    );
    let heard = hear(Some(&bank), Some(two), web).await.unwrap();
    assert!(heard.starts_with("one "));
    if nftables {
        assert_eq!(heard, "one 10.244.0.2", "the client is seen");
    }
    for node in ["192.0.2.1", "127.0.0.1"] {
        until(node, || async {
            hear(None, None, (ip(node), 30080)).await.is_ok()
        })
        .await;
        assert!(
            hear(None, None, (ip(node), 30080))
                .await
                .unwrap()
                .starts_with("one "),
            "{node}"
        );
    }
    assert!(
        hear(Some(&bank), Some(two), (ip("192.0.2.1"), 30080))
            .await
            .unwrap()
            .starts_with("one ")
    );

    // Both endpoints, from everywhere.
    api.put(
        "endpointslices",
        slice("web", 8080, &[(one, true), (two, true)]),
    );
    for (tenant, source) in [
        (None, None),
        (Some(&shop), Some(one)),
        (Some(&bank), Some(two)),
    ] {
        until("both endpoints", || async {
            let mut seen = HashSet::new();
            for _ in 0..24 {
                seen.insert(hear(tenant, source, web).await.unwrap()[..3].to_owned());
            }
            seen.len() == 2
        })
        .await;
    }
    // One that is not ready is left alone.
    api.put(
        "endpointslices",
        slice("web", 8080, &[(one, false), (two, true)]),
    );
    until("only two", || async {
        let mut all = true;
        for _ in 0..12 {
            all &= hear(Some(&shop), Some(one), web)
                .await
                .unwrap()
                .starts_with("two");
        }
        all
    })
    .await;
    // None: refused.
    api.put("endpointslices", slice("web", 8080, &[(one, false)]));
    until("refused", || async {
        is_refused(&hear(Some(&shop), Some(one), web).await)
    })
    .await;
    assert!(is_refused(&hear(None, None, web).await));
    until("refused", || async {
        is_refused(&hear(None, None, (ip("192.0.2.1"), 30080)).await)
    })
    .await;

    // A client keeps its endpoint.
    api.put(
        "services",
        service(
            "web",
            json!({ "type": "NodePort", "clusterIP": "10.96.0.20",
        "sessionAffinity": "ClientIP", "ports": [{ "port": 80, "nodePort": 30080 }] }),
        ),
    );
    api.put(
        "endpointslices",
        slice("web", 8080, &[(one, true), (two, true)]),
    );
    until("it answers again", || async {
        hear(Some(&shop), Some(one), web).await.is_ok()
    })
    .await;
    let first = hear(Some(&shop), Some(one), web).await.unwrap();
    for _ in 0..16 {
        assert_eq!(
            hear(Some(&shop), Some(one), web).await.unwrap()[..3],
            first[..3]
        );
    }
    // Also while others go.
    let kept = if first.starts_with("one") { one } else { two };
    api.put("endpointslices", slice("web", 8080, &[(kept, true)]));
    api.put(
        "endpointslices",
        slice("web", 8080, &[(one, true), (two, true)]),
    );
    for _ in 0..16 {
        assert_eq!(
            hear(Some(&shop), Some(one), web).await.unwrap()[..3],
            first[..3]
        );
    }

    // An endpoint on the machine's loopback, as the API server may be.
    serve(None, ip("127.0.0.1"), 6443, "api").await;
    api.put(
        "services",
        service(
            "api",
            json!({ "clusterIP": "10.96.0.1", "ports": [{ "port": 443 }] }),
        ),
    );
    api.put(
        "endpointslices",
        slice("api", 6443, &[(ip("127.0.0.1"), true)]),
    );
    let kubernetes = (ip("10.96.0.1"), 443);
    until("the API answers", || async {
        hear(Some(&shop), Some(one), kubernetes).await.is_ok()
    })
    .await;
    assert!(
        hear(None, None, kubernetes)
            .await
            .unwrap()
            .starts_with("api ")
    );

    // Cluster DNS, from a tenant and from the machine.
    assert_eq!(shop.nameserver, "10.96.0.10:53".parse().unwrap());
    for tenant in [Some(&shop), None] {
        assert_eq!(
            lookup(tenant, shop.nameserver, "web.shop.svc.cluster.local.").await,
            ["10.96.0.20"]
        );
    }

    api.delete("services", "web");
    until("gone", || async {
        is_refused(&hear(None, None, web).await)
    })
    .await;
    until("gone", || async {
        is_refused(&hear(None, None, (ip("127.0.0.1"), 30080)).await)
    })
    .await;
}

/// Datagrams of a client that goes on from one port follow the endpoints.
#[test]
fn datagrams_do_not_stay_with_endpoints_that_are_gone() {
    if !has_nft() {
        return;
    }
    in_fresh_network(|| async {
        let dir = tempfile::tempdir().unwrap();
        let api = FakeApi::new();
        let Node0 { network, .. } = start(&api, config(dir.path(), "node-0"), true).await;
        let shop = network.tenant("shop").await.unwrap();
        let mut pods = Vec::new();
        for name in ["one", "two"] {
            let address = network.assign("shop", name).await.unwrap();
            let bind = move || UdpSocket::bind((address, 5000)).map_err(Error::system("bind"));
            let socket = namespace::inside(shop.netns.clone().unwrap(), bind)
                .await
                .unwrap();
            std::thread::spawn(move || {
                let mut buffer = [0; 16];
                while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(name.as_bytes(), from);
                }
            });
            pods.push(address);
        }
        let udp = |endpoints: &[(IpAddr, bool)]| {
            let mut slice = slice("echo", 5000, endpoints);
            slice["ports"][0]["protocol"] = json!("UDP");
            slice
        };
        api.put(
            "services",
            service(
                "echo",
                json!({ "clusterIP": "10.96.0.30",
            "ports": [{ "port": 53, "protocol": "UDP" }] }),
            ),
        );
        api.put("endpointslices", udp(&[(pods[0], true)]));
        let source = pods[1];
        let client = namespace::inside(shop.netns.clone().unwrap(), move || {
            UdpSocket::bind((source, 6000)).map_err(Error::system("bind"))
        });
        let client = client.await.unwrap();
        client
            .set_read_timeout(Some(std::time::Duration::from_millis(50)))
            .unwrap();
        let ask = || {
            let mut buffer = [0; 16];
            client.send_to(b"who", "10.96.0.30:53").ok()?;
            let length = client.recv(&mut buffer).ok()?;
            Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
        };
        until("one answers", || async { ask().as_deref() == Some("one") }).await;
        api.put("endpointslices", udp(&[(pods[1], true)]));
        until("two answers", || async { ask().as_deref() == Some("two") }).await;
    });
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
        Ok(answer
            .answers
            .iter()
            .map(|record| record.data.to_string())
            .collect())
    };
    match tenant {
        Some(tenant) => namespace::inside(tenant.netns.clone().unwrap(), work)
            .await
            .unwrap(),
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

#[test]
fn services_by_nftables() {
    if has_nft() {
        in_fresh_network(|| services(true));
    }
}

#[test]
fn services_by_the_proxy_as_root() {
    in_fresh_network(|| services(false));
}

#[test]
fn a_restart_finds_everything_and_clean_leaves_nothing() {
    in_fresh_network(|| async {
        let dir = tempfile::tempdir().unwrap();
        let nftables = nft::program().is_some();
        let before = Netlink::here().unwrap().routes().await.unwrap().len();
        let api = FakeApi::new();
        let first = start(&api, config(dir.path(), "node-0"), nftables).await;
        let shop = first.network.tenant("shop").await.unwrap();
        let one = first.network.assign("shop", "one").await.unwrap();
        serve(shop.netns.clone(), one, 80, "one").await;
        api.put(
            "services",
            service(
                "web",
                json!({ "clusterIP": "10.96.0.20", "ports": [{ "port": 80 }] }),
            ),
        );
        api.put("endpointslices", slice("web", 80, &[(one, true)]));
        let web = (ip("10.96.0.20"), 80);
        until("it answers", || async {
            hear(None, None, web).await.is_ok()
        })
        .await;

        // As after `kill -9`: nobody tidied up.
        first.shutdown.cancel();
        drop(first);
        assert_eq!(
            hear(None, None, (one, 80)).await.unwrap(),
            format!("one {}", tenants::GATEWAY)
        );
        if nftables {
            assert!(
                hear(None, None, web).await.unwrap().starts_with("one "),
                "Services go on without us"
            );
        }
        // The address is free again once the first one's tasks have ended.
        tokio::task::yield_now().await;
        let second = start(&api, config(dir.path(), "node-0"), nftables).await;
        assert_eq!(second.network.assigned().await.len(), 1);
        assert_eq!(second.network.assign("shop", "one").await.unwrap(), one);
        assert_eq!(second.network.tenant("shop").await.unwrap(), shop);
        assert_eq!(
            hear(None, None, (one, 80)).await.unwrap(),
            format!("one {}", tenants::GATEWAY)
        );
        until("it answers", || async {
            hear(Some(&shop), Some(one), web).await.is_ok()
        })
        .await;
        second.shutdown.cancel();
        drop(second);

        // Another node's and another's table stay.
        let other_dir = tempfile::tempdir().unwrap();
        let other = start(&api, config(other_dir.path(), "node-1"), nftables).await;
        let two = other.network.assign("shop", "two").await.unwrap();
        let removed = clean(dir.path()).await.unwrap();
        assert_eq!(
            removed,
            Removed {
                namespaces: 1,
                links: 1,
                routes: 2,
                tables: usize::from(nftables)
            }
        );
        assert_eq!(clean(dir.path()).await.unwrap(), Removed::default());
        assert!(!shop.netns.unwrap().exists());
        assert!(is_unreachable(&hear(None, None, (one, 80)).await));
        assert!(is_refused(&hear(None, None, (two, 80)).await));
        assert!(is_refused(&hear(None, None, (ip("10.96.3.4"), 80)).await));
        other.shutdown.cancel();
        drop(other);
        clean(other_dir.path()).await.unwrap();
        assert_eq!(
            Netlink::here().unwrap().routes().await.unwrap().len(),
            before
        );
    });
}

#[test]
fn a_damaged_tenant_is_mended() {
    in_fresh_network(|| async {
        let dir = tempfile::tempdir().unwrap();
        let api = FakeApi::new();
        let first = start(&api, config(dir.path(), "node-0"), false).await;
        let shop = first.network.tenant("shop").await.unwrap();
        let one = first.network.assign("shop", "one").await.unwrap();
        serve(shop.netns.clone(), one, 80, "one").await;
        let link = first.network.inner.state.lock().await.records.tenants()["shop"]
            .link
            .clone();
        first.shutdown.cancel();
        drop(first);
        let netlink = Netlink::here().unwrap();
        netlink
            .delete_link(netlink.link(&link).await.unwrap().unwrap().index)
            .await
            .unwrap();
        assert!(is_unreachable(&hear(None, None, (one, 80)).await));
        let _second = start(&api, config(dir.path(), "node-0"), false).await;
        assert!(
            hear(None, None, (one, 80))
                .await
                .unwrap()
                .starts_with("one ")
        );
    });
}

#[test]
fn two_nodes_live_on_one_machine() {
    in_fresh_network(|| async {
        let (dirs, api) = (
            [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()],
            FakeApi::new(),
        );
        let nftables = nft::program().is_some();
        add_own_address("192.0.2.1").await;
        for (name, range) in [("node-0", "10.244.0.0/24"), ("node-1", "10.244.1.0/24")] {
            api.put(
                "nodes",
                json!({ "metadata": { "name": name }, "spec": { "podCIDR": range },
                "status": { "addresses": [{ "type": "InternalIP", "address": "192.0.2.1" }] } }),
            );
        }
        let a = start(&api, config(dirs[0].path(), "node-0"), nftables).await;
        let b = start(&api, config(dirs[1].path(), "node-1"), nftables).await;
        let (shop, shop_b) = (
            a.network.tenant("shop").await.unwrap(),
            b.network.tenant("shop").await.unwrap(),
        );
        let one = a.network.assign("shop", "one").await.unwrap();
        let two = b.network.assign("shop", "two").await.unwrap();
        assert_eq!([one, two], [ip("10.244.0.1"), ip("10.244.1.1")]);
        serve(shop.netns.clone(), one, 80, "one").await;
        serve(shop_b.netns.clone(), two, 80, "two").await;
        assert_eq!(
            hear(Some(&shop), Some(one), (two, 80)).await.unwrap(),
            "two 10.244.0.1"
        );
        assert_eq!(
            hear(Some(&shop_b), Some(two), (one, 80)).await.unwrap(),
            "one 10.244.1.1"
        );
        api.put(
            "services",
            service(
                "web",
                json!({ "type": "NodePort", "clusterIP": "10.96.0.20",
            "ports": [{ "port": 80, "nodePort": 30080 }] }),
            ),
        );
        api.put(
            "endpointslices",
            slice("web", 80, &[(one, true), (two, true)]),
        );
        let web = (ip("10.96.0.20"), 80);
        for (tenant, source) in [
            (None, None),
            (Some(&shop), Some(one)),
            (Some(&shop_b), Some(two)),
        ] {
            until("it answers", || async {
                hear(tenant, source, web).await.is_ok()
            })
            .await;
            assert_eq!(
                lookup(tenant, shop.nameserver, "web.shop.svc.cluster.local.").await,
                ["10.96.0.20"]
            );
        }
        until("the node port", || async {
            hear(None, None, (ip("127.0.0.1"), 30080)).await.is_ok()
        })
        .await;
        // Not a word about ports taken: it is the other node that has them.
        assert_eq!(api.events(), Vec::<Value>::new());
        b.shutdown.cancel();
        b.network.remove_tenant("shop").await.unwrap();
        drop(b);
        clean(dirs[1].path()).await.unwrap();
        api.put("endpointslices", slice("web", 80, &[(one, true)]));
        until("only one", || async {
            hear(Some(&shop), Some(one), web)
                .await
                .is_ok_and(|heard| heard.starts_with("one "))
        })
        .await;
        assert!(is_refused(&hear(None, None, (ip("10.96.3.4"), 80)).await));
    });
}

#[test]
fn ways_to_nodes_on_other_machines() {
    in_fresh_network(|| async {
        let dir = tempfile::tempdir().unwrap();
        let api = FakeApi::new();
        // A segment with nobody else on it.
        let netlink = Netlink::here().unwrap();
        netlink
            .add_veth("seg0", [2, 0, 0, 0, 1, 1], "seg1", [2, 0, 0, 0, 1, 2], None)
            .await
            .unwrap();
        for link in ["seg0", "seg1"] {
            netlink.up(link).await.unwrap();
        }
        let segment = netlink.link("seg0").await.unwrap().unwrap().index;
        netlink
            .add_subnet(segment, "192.0.2.1/24".parse().unwrap())
            .await
            .unwrap();
        let node = |name: &str, range: &str, address: &str| {
            api.put(
                "nodes",
                json!({ "metadata": { "name": name }, "spec": { "podCIDR": range },
                "status": { "addresses": [{ "type": "InternalIP", "address": address }] } }),
            );
        };
        node("node-0", "10.244.0.0/24", "192.0.2.1");
        node("near", "10.244.5.0/24", "192.0.2.5");
        node("far", "10.244.6.0/24", "198.51.100.6");
        let _here = start(&api, config(dir.path(), "node-0"), false).await;
        let there = || async {
            let mut ranges: Vec<String> = Netlink::here()
                .unwrap()
                .routes()
                .await
                .unwrap()
                .iter()
                .filter(|route| route.ours && route.destination.prefix_len() == 24)
                .map(|route| route.destination.to_string())
                .collect();
            ranges.sort();
            ranges
        };
        until("a way to the near one", || async {
            there().await == ["10.244.5.0/24"]
        })
        .await;
        node("near", "10.244.7.0/24", "192.0.2.5");
        until("its new range", || async {
            there().await == ["10.244.7.0/24"]
        })
        .await;
        api.delete("nodes", "near");
        until("no way", || async { there().await.is_empty() }).await;
    });
}

#[test]
fn ranges_in_use_are_refused() {
    in_fresh_network(|| async {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let api = FakeApi::new();
        let first = start(&api, config(one.path(), "node-0"), false).await;
        let other = Config {
            cluster_id: "ffffffff".to_owned(),
            ..config(two.path(), "node-0")
        };
        let informers = Informers::new(api.client(), CancellationToken::new());
        let refused = Network::start(other, informers.clone(), CancellationToken::new()).await;
        assert!(matches!(refused, Err(Error::RangeInUse { .. })));
        first.shutdown.cancel();
        clean(one.path()).await.unwrap();
        let both = Config {
            service_cidr: "10.244.0.0/20".parse().unwrap(),
            cluster_dns: ip("10.244.0.10"),
            ..config(two.path(), "node-0")
        };
        let refused = Network::start(both, informers, CancellationToken::new()).await;
        assert!(matches!(refused, Err(Error::RangesOverlap { .. })));
    });
}

/// The promise that made us lay Services out flat.
#[test]
fn ten_thousand_services_load_in_seconds() {
    if !has_nft() {
        return;
    }
    in_fresh_network(|| async {
        let mut table = Table::new(Settings {
            table: "sampan-many".to_owned(),
            node_name: "node".to_owned(),
            pod_cidr: "10.244.0.0/24".parse().unwrap(),
            cluster_cidr: "10.244.0.0/16".parse().unwrap(),
            service_cidr: "10.96.0.0/16".parse().unwrap(),
            cluster_dns: "10.96.0.10".parse().unwrap(),
            node_addresses: Vec::new(),
        });
        let port = |number: u32, endpoints: u8| Port {
            name: String::new(),
            protocol: Protocol::Tcp,
            cluster_ips: vec![Ipv4Addr::from(
                u32::from(Ipv4Addr::new(10, 96, 1, 0)) + number,
            )],
            external_ips: Vec::new(),
            port: 80,
            node_port: None,
            affinity: None,
            inside: (1..=endpoints)
                .map(|last| Endpoint {
                    address: Ipv4Addr::new(10, 244, 0, last),
                    port: 80,
                })
                .collect(),
            outside: Vec::new(),
            keep_source: false,
        };
        let key = |number: u32| ("shop".to_owned(), format!("web-{number}"));
        let all: Vec<_> = (0..10_000)
            .map(|number| (key(number), vec![port(number, 3)]))
            .collect();
        let start = Instant::now();
        table.apply(&all).await.unwrap();
        let whole = start.elapsed();
        let start = Instant::now();
        let sticky = Port {
            affinity: Some(60),
            ..port(0, 2)
        };
        for change in [
            vec![port(0, 2)],
            vec![sticky.clone()],
            vec![Port {
                affinity: Some(61),
                ..sticky
            }],
            Vec::new(),
        ] {
            table.apply(&[(key(0), change)]).await.unwrap();
        }
        println!(
            "10,000 Services: {whole:?}; a change of one: {:?}",
            start.elapsed() / 4
        );
        // Far above what it takes, for machines that do much else.
        assert!(whole < Duration::from_secs(30), "{whole:?}");
        assert_eq!(table.loads, 1, "a change of one Service touches no other");
    });
}

fn on_loopback(dir: &Path) -> Config {
    // Eight addresses of this process: four for pods, four for Services.
    let range = |last: u8, bits: u8| IpNet::new(own_loopback(last).into(), bits).unwrap();
    Config {
        mode: Mode::Unprivileged,
        pod_cidr: range(128, 26),
        cluster_cidr: range(128, 25),
        service_cidr: range(0, 25),
        cluster_dns: own_loopback(10).into(),
        node_addresses: vec![own_loopback(100).into()],
        ..config(dir, "node-0")
    }
}

#[tokio::test]
async fn unprivileged_everything_is_on_loopback() {
    let dir = tempfile::tempdir().unwrap();
    let api = FakeApi::new();
    let Node0 { network, shutdown } = start(&api, on_loopback(dir.path()), false).await;
    let shop = network.tenant("shop").await.unwrap();
    assert_eq!(shop.netns, None);
    let one = network.assign("shop", "one").await.unwrap();
    assert_eq!(one, IpAddr::from(own_loopback(129)));
    serve(None, one, 8080, "one").await;
    let web = (IpAddr::from(own_loopback(20)), 8000);
    api.put(
        "services",
        service(
            "web",
            json!({ "clusterIP": web.0, "type": "NodePort",
        "ports": [{ "port": 8000, "nodePort": 30080 }] }),
        ),
    );
    api.put("endpointslices", slice("web", 8080, &[(one, true)]));
    until("it answers", || async {
        hear(None, None, web).await.is_ok()
    })
    .await;
    let node_port = (own_loopback(100).into(), 30080);
    until("the node port", || async {
        hear(None, None, node_port).await.is_ok()
    })
    .await;
    assert_eq!(
        lookup(None, shop.nameserver, "web.shop.svc.cluster.local.").await,
        [web.0.to_string()]
    );
    network.release("one").await.unwrap();
    shutdown.cancel();
    assert_eq!(clean(dir.path()).await.unwrap(), Removed::default());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn ranges_must_make_sense() {
    let dir = tempfile::tempdir().unwrap();
    let good = on_loopback(dir.path());
    let attempt = |config: Config| async {
        let informers = Informers::new(FakeApi::new().client(), CancellationToken::new());
        Network::start(config, informers, CancellationToken::new())
            .await
            .map(drop)
            .unwrap_err()
            .to_string()
    };
    let outside = Config {
        cluster_cidr: "10.0.0.0/8".parse().unwrap(),
        pod_cidr: "10.0.0.0/24".parse().unwrap(),
        ..good.clone()
    };
    assert!(attempt(outside).await.contains("127.0.0.0/8"));
    let elsewhere = Config {
        pod_cidr: "127.1.1.0/24".parse().unwrap(),
        ..good.clone()
    };
    assert!(
        attempt(elsewhere)
            .await
            .contains("the node's range 127.1.1.0/24")
    );
    let dns = Config {
        cluster_dns: ip("127.1.1.10"),
        ..good.clone()
    };
    assert!(attempt(dns).await.contains("cluster DNS"));
    let six = Config {
        cluster_cidr: "fd00::/64".parse().unwrap(),
        ..good
    };
    assert!(attempt(six).await.contains("not an IPv4 range"));
}

#[test]
fn ports_below_the_limit_are_shifted() {
    let shift = PortShift {
        below: 1024,
        by: 10_000,
    };
    assert_eq!(
        [0, 80, 1023, 1024, 8080].map(|port| shift.apply(port)),
        [0, 10_080, 11_023, 1024, 8080]
    );
    assert_eq!(PortShift::default().apply(80), 80);
    let _ = detect_mode();
}
