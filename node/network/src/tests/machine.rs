//! Tenants, nodes and what is left of them, in a network namespace of the test's own.

use super::*;

#[test]
fn pods_reach_each_other_and_the_machine_reaches_pods() {
    in_fresh_network(|| async {
        let dir = tempfile::tempdir().unwrap();
        // As distributions set it.
        namespace::set("net/ipv4/conf/all/rp_filter", "1").unwrap();
        let Node0 { network, .. } = start(&FakeApi::new(), config(dir.path(), "node-0"), false).await;
        let shop = network.tenant("shop").await.unwrap();
        let bank = network.tenant("bank").await.unwrap();
        let one = network.assign("shop", "one").await.unwrap();
        let two = network.assign("shop", "two").await.unwrap();
        let three = network.assign("bank", "three").await.unwrap();
        assert_eq!([one, two, three], [ip("10.244.0.1"), ip("10.244.0.2"), ip("10.244.0.3")]);
        for (tenant, address, name) in [(&shop, one, "one"), (&shop, two, "two"), (&bank, three, "three")] {
            // One port for all: each has an address of its own.
            serve(tenant.netns.clone(), address, 80, name).await;
        }

        for (address, name) in [(one, "one"), (two, "two"), (three, "three")] {
            let heard = hear(None, None, (address, 80)).await.unwrap();
            assert_eq!(heard, format!("{name} {}", tenants::GATEWAY));
        }
        // A pod is seen by its own address, in its tenant, in another and by itself.
        assert_eq!(hear(Some(&shop), Some(one), (two, 80)).await.unwrap(), "two 10.244.0.1");
        assert_eq!(hear(Some(&shop), Some(two), (three, 80)).await.unwrap(), "three 10.244.0.2");
        assert_eq!(hear(Some(&bank), Some(three), (one, 80)).await.unwrap(), "one 10.244.0.3");
        assert_eq!(hear(Some(&shop), Some(one), (one, 80)).await.unwrap(), "one 10.244.0.1");
        // A socket without an address has one of the tenant's.
        assert_eq!(hear(Some(&shop), None, (three, 80)).await.unwrap(), "three 10.244.0.1");
        assert_eq!(hear(Some(&shop), None, (two, 80)).await.unwrap(), "two 10.244.0.1");

        // The machine's own addresses are reached, its loopback is not.
        add_own_address("192.0.2.1").await;
        serve(None, ip("192.0.2.1"), 8080, "machine").await;
        serve(None, ip("127.0.0.1"), 8081, "private").await;
        assert_eq!(hear(Some(&shop), Some(one), (ip("192.0.2.1"), 8080)).await.unwrap(), "machine 10.244.0.1");
        assert!(hear(Some(&shop), None, (ip("127.0.0.1"), 8081)).await.is_err());

        // Nobody's addresses lead nowhere, and the machine says so at once.
        for nobody in ["10.244.0.77", "10.244.9.9"] {
            assert!(is_unreachable(&hear(None, None, (ip(nobody), 80)).await), "{nobody}");
        }
        assert!(is_unreachable(&hear(Some(&shop), Some(one), (ip("10.244.0.77"), 80)).await));
        assert!(is_refused(&hear(Some(&shop), Some(one), (ip("10.96.3.4"), 80)).await));
        assert!(is_refused(&hear(None, None, (ip("10.96.3.4"), 80)).await));
        assert!(is_refused(&hear(None, None, (one, 81)).await));

        // Released, an address is nobody's; what is left of the tenant goes on.
        network.release("one").await.unwrap();
        assert!(is_unreachable(&hear(None, None, (one, 80)).await));
        assert_eq!(hear(Some(&shop), None, (three, 80)).await.unwrap(), "three 10.244.0.2");
        assert_ne!(network.assign("shop", "four").await.unwrap(), one);
        network.remove_tenant("bank").await.unwrap();
        assert!(is_unreachable(&hear(None, None, (three, 80)).await));
        assert_eq!(network.tenants().await, ["shop"]);
        assert_eq!(network.assigned().await.len(), 2);
        assert!(!bank.netns.unwrap().exists());
    });
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
        api.put("services", service("web", json!({ "clusterIP": "10.96.0.20", "ports": [{ "port": 80 }] })));
        api.put("endpointslices", slice("web", 80, &[(one, true)]));
        let web = (ip("10.96.0.20"), 80);
        until("it answers", || async { hear(None, None, web).await.is_ok() }).await;

        // As after `kill -9`: nobody tidied up.
        first.shutdown.cancel();
        drop(first);
        assert_eq!(hear(None, None, (one, 80)).await.unwrap(), format!("one {}", tenants::GATEWAY));
        if nftables {
            assert!(hear(None, None, web).await.unwrap().starts_with("one "), "Services go on without us");
        }
        // The address is free again once the first one's tasks have ended.
        tokio::task::yield_now().await;
        // One that ends before it knows any Service leaves them as they are.
        start(&api, config(dir.path(), "node-0"), nftables).await.stop().await;
        if nftables {
            assert!(hear(None, None, web).await.unwrap().starts_with("one "), "Services go on without us");
        }
        tokio::task::yield_now().await;
        let second = start(&api, config(dir.path(), "node-0"), nftables).await;
        assert_eq!(second.network.assigned().await.len(), 1);
        assert_eq!(second.network.assign("shop", "one").await.unwrap(), one);
        assert_eq!(second.network.tenant("shop").await.unwrap(), shop);
        assert_eq!(hear(None, None, (one, 80)).await.unwrap(), format!("one {}", tenants::GATEWAY));
        until("it answers", || async { hear(Some(&shop), Some(one), web).await.is_ok() }).await;
        second.stop().await;

        // Another node's and another's table stay.
        let other_dir = tempfile::tempdir().unwrap();
        let other = start(&api, config(other_dir.path(), "node-1"), nftables).await;
        let two = other.network.assign("shop", "two").await.unwrap();
        let removed = clean(dir.path()).await.unwrap();
        assert_eq!(removed, Removed { namespaces: 1, links: 1, routes: 2, tables: usize::from(nftables) });
        assert_eq!(clean(dir.path()).await.unwrap(), Removed::default());
        assert!(!shop.netns.unwrap().exists());
        assert!(is_unreachable(&hear(None, None, (one, 80)).await));
        assert!(is_refused(&hear(None, None, (two, 80)).await));
        assert!(is_refused(&hear(None, None, (ip("10.96.3.4"), 80)).await));
        other.stop().await;
        clean(other_dir.path()).await.unwrap();
        if nftables {
            assert_eq!(services::nft(&["list", "tables"]).await, "");
        }
        assert_eq!(Netlink::here().unwrap().routes().await.unwrap().len(), before);
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
        let link = first.network.inner.state.lock().await.records.tenants()["shop"].link.clone();
        first.shutdown.cancel();
        drop(first);
        let netlink = Netlink::here().unwrap();
        netlink.delete_link(netlink.link(&link).await.unwrap().unwrap().index).await.unwrap();
        assert!(is_unreachable(&hear(None, None, (one, 80)).await));
        let _second = start(&api, config(dir.path(), "node-0"), false).await;
        assert!(hear(None, None, (one, 80)).await.unwrap().starts_with("one "));
    });
}

#[test]
fn two_nodes_live_on_one_machine() {
    in_fresh_network(|| async {
        let (dirs, api) = ([tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()], FakeApi::new());
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
        let (shop, shop_b) = (a.network.tenant("shop").await.unwrap(), b.network.tenant("shop").await.unwrap());
        let one = a.network.assign("shop", "one").await.unwrap();
        let two = b.network.assign("shop", "two").await.unwrap();
        assert_eq!([one, two], [ip("10.244.0.1"), ip("10.244.1.1")]);
        serve(shop.netns.clone(), one, 80, "one").await;
        serve(shop_b.netns.clone(), two, 80, "two").await;
        assert_eq!(hear(Some(&shop), Some(one), (two, 80)).await.unwrap(), "two 10.244.0.1");
        assert_eq!(hear(Some(&shop_b), Some(two), (one, 80)).await.unwrap(), "one 10.244.1.1");
        api.put(
            "services",
            service(
                "web",
                json!({ "type": "NodePort", "clusterIP": "10.96.0.20",
            "ports": [{ "port": 80, "nodePort": 30080 }] }),
            ),
        );
        api.put("endpointslices", slice("web", 80, &[(one, true), (two, true)]));
        let web = (ip("10.96.0.20"), 80);
        for (tenant, source) in [(None, None), (Some(&shop), Some(one)), (Some(&shop_b), Some(two))] {
            until("it answers", || async { hear(tenant, source, web).await.is_ok() }).await;
            assert_eq!(lookup(tenant, shop.nameserver, "web.shop.svc.cluster.local.").await, ["10.96.0.20"]);
        }
        until("the node port", || async { hear(None, None, (ip("127.0.0.1"), 30080)).await.is_ok() }).await;
        // Not a word about ports taken: it is the other node that has them.
        assert_eq!(api.events(), Vec::<Value>::new());
        b.shutdown.cancel();
        b.network.remove_tenant("shop").await.unwrap();
        drop(b);
        clean(dirs[1].path()).await.unwrap();
        api.put("endpointslices", slice("web", 80, &[(one, true)]));
        until("only one", || async {
            hear(Some(&shop), Some(one), web).await.is_ok_and(|heard| heard.starts_with("one "))
        })
        .await;
        assert!(is_refused(&hear(None, None, (ip("10.96.3.4"), 80)).await));
    });
}

#[test]
fn ranges_in_use_are_refused() {
    in_fresh_network(|| async {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let api = FakeApi::new();
        let first = start(&api, config(one.path(), "node-0"), false).await;
        let other = Config { cluster_id: "ffffffff".to_owned(), ..config(two.path(), "node-0") };
        let informers = Informers::new(api.client(), CancellationToken::new());
        let refused = Network::start(other, informers.clone(), TaskTracker::new(), CancellationToken::new()).await;
        assert!(matches!(refused, Err(Error::RangeInUse { .. })));
        first.shutdown.cancel();
        clean(one.path()).await.unwrap();
        let both = Config {
            service_cidr: "10.244.0.0/20".parse().unwrap(),
            cluster_dns: ip("10.244.0.10"),
            ..config(two.path(), "node-0")
        };
        let refused = Network::start(both, informers, TaskTracker::new(), CancellationToken::new()).await;
        assert!(matches!(refused, Err(Error::RangesOverlap { .. })));
    });
}
