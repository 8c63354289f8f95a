//! The ways to nodes on other machines, in a network namespace of the test's own.

use super::*;
use crate::netlink::{Route, Way};
use crate::overlay;

const PODS_NEAR: &str = "10.244.5.9";
const PODS_FAR: &str = "10.244.6.9";

/// A segment with nobody else on it, at 192.0.2.1; tells its index.
async fn segment() -> u32 {
    let netlink = Netlink::here().unwrap();
    netlink.add_veth("seg0", [2, 0, 0, 0, 1, 1], "seg1", [2, 0, 0, 0, 1, 2], None).await.unwrap();
    for link in ["seg0", "seg1"] {
        netlink.up(link).await.unwrap();
    }
    let segment = netlink.link("seg0").await.unwrap().unwrap().index;
    netlink.add_subnet(segment, "192.0.2.1/24".parse().unwrap()).await.unwrap();
    segment
}

async fn route_to_everywhere() {
    let way = Way::Gateway("192.0.2.254".parse().unwrap());
    let route = Route { destination: "0.0.0.0/0".parse().unwrap(), way, metric: 0 };
    Netlink::here().unwrap().add_route(&route).await.unwrap();
}

fn node(api: &FakeApi, name: &str, range: &str, address: &str) {
    api.put(
        "nodes",
        json!({ "metadata": { "name": name }, "spec": { "podCIDR": range },
            "status": { "addresses": [{ "type": "InternalIP", "address": address }] } }),
    );
}

/// The MTU of the tunnel to an address; `None`: no tunnel leads there.
async fn tunnel_to(address: &str) -> Option<u32> {
    let netlink = Netlink::here().unwrap();
    let way = netlink.way_out(address.parse().unwrap()).await.unwrap()?;
    let device = netlink.link(&overlay::device("0a0b0c0d", "node-0")).await.unwrap()?;
    (!way.on_segment && way.mtu == device.mtu).then_some(device.mtu)
}

async fn is_routed(address: &str) -> bool {
    // Through a gateway, so not straight to a neighbour.
    let way = Netlink::here().unwrap().way_out(address.parse().unwrap()).await.unwrap();
    way.is_some_and(|way| way.mtu == 1500)
}

async fn leads_nowhere(address: &str) -> bool {
    is_unreachable(&hear(None, None, (ip(address), 80)).await)
}

#[test]
fn a_route_on_the_segment_and_a_tunnel_behind_a_router() {
    in_fresh_network(|| async {
        let dir = tempfile::tempdir().unwrap();
        let api = FakeApi::new();
        let segment = segment().await;
        node(&api, "node-0", "10.244.0.0/24", "192.0.2.1");
        node(&api, "near", "10.244.5.0/24", "192.0.2.5");
        node(&api, "far", "10.244.6.0/24", "198.51.100.6");
        let here = start(&api, config(dir.path(), "node-0"), false).await;
        until("a way to the near one", || is_routed(PODS_NEAR)).await;
        assert!(leads_nowhere(PODS_FAR).await, "nothing leads to that node");

        // It is found without a word from the cluster.
        route_to_everywhere().await;
        until("a tunnel", || async { tunnel_to(PODS_FAR).await == Some(1450) }).await;
        assert!(is_routed(PODS_NEAR).await);
        // The machine answers by the first address of its range, which finds back into the tunnel.
        let own = Netlink::here().unwrap().addresses().await.unwrap();
        assert!(own.contains(&"10.244.0.0".parse().unwrap()), "{own:?}");

        // The segment shrinks, and a node moves onto it with another range.
        Netlink::here().unwrap().set_mtu(segment, 1400).await.unwrap();
        until("a narrower tunnel", || async { tunnel_to(PODS_FAR).await == Some(1350) }).await;
        Netlink::here().unwrap().set_mtu(segment, 1500).await.unwrap();
        node(&api, "far", "10.244.6.0/24", "192.0.2.6");
        until("a route in its place", || is_routed(PODS_FAR)).await;
        assert_eq!(tunnel_to(PODS_FAR).await, None);
        node(&api, "far", "10.244.6.0/24", "198.51.100.6");
        until("a tunnel again", || async { tunnel_to(PODS_FAR).await.is_some() }).await;

        // A link that was down for a moment has lost what led over it.
        let netlink = Netlink::here().unwrap();
        netlink.down("seg0").await.unwrap();
        assert!(!is_routed(PODS_NEAR).await);
        netlink.up("seg0").await.unwrap();
        route_to_everywhere().await;
        until("the route is back", || is_routed(PODS_NEAR)).await;

        // As after `kill -9`: the next start finds it, and what went in between is gone.
        here.shutdown.cancel();
        drop(here);
        api.delete("nodes", "near");
        let again = start(&api, config(dir.path(), "node-0"), false).await;
        until("no way to what is gone", || leads_nowhere(PODS_NEAR)).await;
        assert!(tunnel_to(PODS_FAR).await.is_some());
        api.delete("nodes", "far");
        until("no way to the far one", || leads_nowhere(PODS_FAR)).await;
        let device = overlay::device("0a0b0c0d", "node-0");
        until("no device", || async { Netlink::here().unwrap().link(&device).await.unwrap().is_none() }).await;

        // `down` takes one along.
        node(&api, "far", "10.244.6.0/24", "198.51.100.6");
        until("a tunnel once more", || async { tunnel_to(PODS_FAR).await.is_some() }).await;
        again.shutdown.cancel();
        drop(again);
        let removed = clean(dir.path()).await.unwrap();
        assert_eq!((removed.links, removed.routes), (1, 2));
        assert!(netlink.link(&device).await.unwrap().is_none());
    });
}

#[test]
fn without_a_tunnel_nothing_leaks() {
    in_fresh_network(|| async {
        let dir = tempfile::tempdir().unwrap();
        let api = FakeApi::new();
        segment().await;
        route_to_everywhere().await;
        // Somebody else's link has the device's name.
        let name = overlay::device("0a0b0c0d", "node-0");
        let netlink = Netlink::here().unwrap();
        netlink.add_veth(&name, [2, 0, 0, 0, 2, 1], "other", [2, 0, 0, 0, 2, 2], None).await.unwrap();
        node(&api, "near", "10.244.5.0/24", "192.0.2.5");
        node(&api, "far", "10.244.6.0/24", "198.51.100.6");
        let here = start(&api, config(dir.path(), "node-0"), false).await;
        until("a way to the near one", || is_routed(PODS_NEAR)).await;
        assert!(leads_nowhere(PODS_FAR).await, "not by the default route");
        here.shutdown.cancel();
        drop(here);
        assert_eq!(clean(dir.path()).await.unwrap().links, 0);
        assert!(netlink.link(&name).await.unwrap().is_some(), "it was not ours");
    });
}
