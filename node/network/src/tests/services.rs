//! Services in a network namespace of the test's own.

use std::collections::{BTreeSet, HashSet};

use super::*;

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
    until("a Service answers", || async { hear(None, None, web).await.is_ok() }).await;
    // From the machine, and from the pod behind it.
    assert!(hear(None, None, web).await.unwrap().starts_with("one "));
    assert!(hear(Some(&shop), Some(one), web).await.unwrap().starts_with("one "));
    let heard = hear(Some(&bank), Some(two), web).await.unwrap();
    assert!(heard.starts_with("one "));
    if nftables {
        assert_eq!(heard, "one 10.244.0.2", "the client is seen");
    }
    for node in ["192.0.2.1", "127.0.0.1"] {
        until(node, || async { hear(None, None, (ip(node), 30080)).await.is_ok() }).await;
        assert!(hear(None, None, (ip(node), 30080)).await.unwrap().starts_with("one "), "{node}");
    }
    assert!(hear(Some(&bank), Some(two), (ip("192.0.2.1"), 30080)).await.unwrap().starts_with("one "));

    // Both endpoints, from everywhere.
    api.put("endpointslices", slice("web", 8080, &[(one, true), (two, true)]));
    for (tenant, source) in [(None, None), (Some(&shop), Some(one)), (Some(&bank), Some(two))] {
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
    api.put("endpointslices", slice("web", 8080, &[(one, false), (two, true)]));
    until("only two", || async {
        let mut all = true;
        for _ in 0..12 {
            all &= hear(Some(&shop), Some(one), web).await.unwrap().starts_with("two");
        }
        all
    })
    .await;
    // None: refused.
    api.put("endpointslices", slice("web", 8080, &[(one, false)]));
    until("refused", || async { is_refused(&hear(Some(&shop), Some(one), web).await) }).await;
    assert!(is_refused(&hear(None, None, web).await));
    until("refused", || async { is_refused(&hear(None, None, (ip("192.0.2.1"), 30080)).await) }).await;

    // A client keeps its endpoint.
    api.put(
        "services",
        service(
            "web",
            json!({ "type": "NodePort", "clusterIP": "10.96.0.20",
        "sessionAffinity": "ClientIP", "ports": [{ "port": 80, "nodePort": 30080 }] }),
        ),
    );
    api.put("endpointslices", slice("web", 8080, &[(one, true), (two, true)]));
    until("it answers again", || async { hear(Some(&shop), Some(one), web).await.is_ok() }).await;
    let first = hear(Some(&shop), Some(one), web).await.unwrap();
    for _ in 0..16 {
        assert_eq!(hear(Some(&shop), Some(one), web).await.unwrap()[..3], first[..3]);
    }
    // Also while others go.
    let kept = if first.starts_with("one") { one } else { two };
    api.put("endpointslices", slice("web", 8080, &[(kept, true)]));
    api.put("endpointslices", slice("web", 8080, &[(one, true), (two, true)]));
    for _ in 0..16 {
        assert_eq!(hear(Some(&shop), Some(one), web).await.unwrap()[..3], first[..3]);
    }

    // An endpoint on the machine's loopback, as the API server may be.
    serve(None, ip("127.0.0.1"), 6443, "api").await;
    api.put("services", service("api", json!({ "clusterIP": "10.96.0.1", "ports": [{ "port": 443 }] })));
    api.put("endpointslices", slice("api", 6443, &[(ip("127.0.0.1"), true)]));
    let kubernetes = (ip("10.96.0.1"), 443);
    until("the API answers", || async { hear(Some(&shop), Some(one), kubernetes).await.is_ok() }).await;
    assert!(hear(None, None, kubernetes).await.unwrap().starts_with("api "));

    // Cluster DNS, from a tenant and from the machine.
    assert_eq!(shop.nameserver, "10.96.0.10:53".parse().unwrap());
    for tenant in [Some(&shop), None] {
        assert_eq!(lookup(tenant, shop.nameserver, "web.shop.svc.cluster.local.").await, ["10.96.0.20"]);
    }

    api.delete("services", "web");
    until("gone", || async { is_refused(&hear(None, None, web).await) }).await;
    until("gone", || async { is_refused(&hear(None, None, (ip("127.0.0.1"), 30080)).await) }).await;
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
            let socket = namespace::inside(shop.netns.clone().unwrap(), bind).await.unwrap();
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
        client.set_read_timeout(Some(std::time::Duration::from_millis(50))).unwrap();
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

fn settings() -> Settings {
    Settings {
        tables: nft::table_names("many", "node"),
        node_name: "node".to_owned(),
        pod_cidr: "10.244.0.0/24".parse().unwrap(),
        cluster_cidr: "10.244.0.0/16".parse().unwrap(),
        service_cidr: "10.96.0.0/16".parse().unwrap(),
        cluster_dns: "10.96.0.10".parse().unwrap(),
        tunnels: "v0a0b0c0d010203".to_owned(),
        node_addresses: Vec::new(),
    }
}

fn key(number: u32) -> (String, String) {
    ("shop".to_owned(), format!("web-{number}"))
}

fn port(number: u32, endpoints: u8) -> Port {
    Port {
        name: String::new(),
        protocol: Protocol::Tcp,
        cluster_ips: vec![Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 1, 0)) + number)],
        external_ips: Vec::new(),
        port: 80,
        node_port: None,
        affinity: None,
        inside: (1..=endpoints).map(|last| Endpoint { address: Ipv4Addr::new(10, 244, 0, last), port: 80 }).collect(),
        outside: Vec::new(),
        keep_source: false,
    }
}

pub async fn nft(arguments: &[&str]) -> String {
    let output = tokio::process::Command::new(nft::program().unwrap()).args(arguments).output().await.unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What the kernel has, in the words of `nft`: elements of a kind of every map.
async fn listed(table: &str) -> BTreeSet<String> {
    let text = nft(&["list", "table", "ip", table]).await;
    assert!(!text.contains("dormant"), "{text}");
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut all = BTreeSet::new();
    let mut name = "";
    for (at, word) in words.iter().enumerate() {
        match (*word, &words[at + 1..]) {
            ("map" | "set", [declared, "{", ..]) => name = declared,
            ("elements", ["=", "{", rest @ ..]) => {
                let list = rest.split(|word| *word == "}").next().unwrap().join(" ");
                all.extend(list.split(", ").map(|element| format!("{name} {element}")));
            }
            _ => {}
        }
    }
    all
}

/// The kernel understands elements as the `nft` program does.
#[test]
fn elements_are_what_nft_says_they_are() {
    if !has_nft() {
        return;
    }
    in_fresh_network(|| async {
        let mut table = Table::new(settings());
        let [first, second] = settings().tables;
        let node = Port { node_port: Some(30080), outside: port(0, 2).inside, ..port(0, 2) };
        let outside = Port { external_ips: vec![Ipv4Addr::new(192, 0, 2, 7)], keep_source: true, ..node.clone() };
        let refused =
            Port { external_ips: vec![Ipv4Addr::new(192, 0, 2, 8)], protocol: Protocol::Udp, port: 53, ..port(3, 1) };
        let sticky = Port { affinity: Some(60), ..node.clone() };
        let of = |ports: [&Port; 4]| (0..).map(key).zip(ports.map(|it| vec![it.clone()])).collect::<Vec<_>>();
        table.apply(&of([&node, &port(1, 3), &outside, &refused])).await.unwrap();
        assert_eq!((listed(&first).await, table.loads), (table.shown(), 1));
        // Places that lead elsewhere, places that are gone and new ones.
        let other = Port { port: 8080, ..refused };
        table.apply(&of([&sticky, &port(1, 1), &port(2, 8), &other])).await.unwrap();
        assert_eq!((listed(&first).await, table.loads), (table.shown(), 1));
        table.apply(&of([&port(0, 2), &port(1, 1), &port(2, 8), &other])).await.unwrap();
        assert_eq!((listed(&first).await, table.loads), (table.shown(), 1));
        let chains = nft(&["list", "table", "ip", &first]).await;
        assert!(!chains.contains("sticky"), "{chains}");

        // Somebody else's hand: what is not as we think is made anew, the old in force until then.
        nft(&["delete", "element", "ip", &first, "services", "{ 10.96.1.1 . tcp . 80 }"]).await;
        table.apply(&of([&node, &port(1, 0), &outside, &other])).await.unwrap();
        assert_eq!((listed(&second).await, table.loads), (table.shown(), 2));
        assert!(!nft(&["list", "tables"]).await.lines().any(|line| line.ends_with(&first)));
        // A process that comes after this one replaces its table too.
        let mut next = Table::new(settings());
        next.apply(&of([&node, &port(1, 2), &outside, &other])).await.unwrap();
        assert_eq!(listed(&first).await, next.shown());
        assert_eq!(nft(&["list", "tables"]).await.lines().count(), 1);
    });
}

#[test]
fn tables_that_are_not_in_force_are_not_told() {
    if !has_nft() {
        return;
    }
    in_fresh_network(|| async {
        nft(&["add", "table", "ip", "waking"]).await;
        nft(&["add", "table", "ip", "sleeping", "{", "flags", "dormant", ";", "}"]).await;
        assert_eq!(crate::tables_in_force().await.unwrap(), ["waking"]);
    });
}

/// The promise that made us lay Services out flat.
#[test]
fn ten_thousand_services_load_in_seconds() {
    if !has_nft() {
        return;
    }
    in_fresh_network(|| async {
        let mut table = Table::new(settings());
        let all: Vec<_> = (0..10_000).map(|number| (key(number), vec![port(number, 3)])).collect();
        let start = Instant::now();
        table.apply(&all).await.unwrap();
        let whole = start.elapsed();
        let start = Instant::now();
        let sticky = Port { affinity: Some(60), ..port(0, 2) };
        for change in [vec![port(0, 2)], vec![sticky.clone()], vec![Port { affinity: Some(61), ..sticky }], Vec::new()]
        {
            table.apply(&[(key(0), change)]).await.unwrap();
        }
        println!("10,000 Services: {whole:?}; a change of one: {:?}", start.elapsed() / 4);
        // Far above what it takes, for machines that do much else.
        assert!(whole < Duration::from_secs(30), "{whole:?}");
        assert_eq!(table.loads, 1, "a change of one Service touches no other");
    });
}
