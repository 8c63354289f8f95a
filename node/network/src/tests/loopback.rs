//! Without privilege.

use super::*;

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
    let Node0 { network, shutdown, .. } = start(&api, on_loopback(dir.path()), false).await;
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
    until("it answers", || async { hear(None, None, web).await.is_ok() }).await;
    let node_port = (own_loopback(100).into(), 30080);
    until("the node port", || async { hear(None, None, node_port).await.is_ok() }).await;
    assert_eq!(lookup(None, shop.nameserver, "web.shop.svc.cluster.local.").await, [web.0.to_string()]);
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
        Network::start(config, informers, TaskTracker::new(), CancellationToken::new())
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
    let elsewhere = Config { pod_cidr: "127.1.1.0/24".parse().unwrap(), ..good.clone() };
    assert!(attempt(elsewhere).await.contains("the node's range 127.1.1.0/24"));
    let dns = Config { cluster_dns: ip("127.1.1.10"), ..good.clone() };
    assert!(attempt(dns).await.contains("cluster DNS"));
    let six = Config { cluster_cidr: "fd00::/64".parse().unwrap(), ..good };
    assert!(attempt(six).await.contains("not an IPv4 range"));
}

#[test]
fn ports_below_the_limit_are_shifted() {
    let shift = PortShift { below: 1024, by: 10_000 };
    assert_eq!([0, 80, 1023, 1024, 8080].map(|port| shift.apply(port)), [0, 10_080, 11_023, 1024, 8080]);
    assert_eq!(PortShift::default().apply(80), 80);
    let _ = detect_mode();
}
