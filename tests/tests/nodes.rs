//! Several nodes, each on a machine of its own: one flat network for pods of both kinds, on a segment
//! and through routers, and what a cut cable does.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use sampan_tests::{
    Cluster, Fabric, Machine, Node, OUTSIDE, eventually, http_get, makes_machines, runs_linux, tcp_echo, within,
};
use serde_json::Value;

/// What a file has that is too long for one packet.
const LENGTH: usize = 60_000;

/// A cluster whose nodes are on machines of their own. Fields go in this order.
struct Fleet {
    nodes: Vec<Node>,
    machines: Vec<Machine>,
    cluster: Cluster,
    fabric: Fabric,
}

impl Fleet {
    /// The server on a machine of the first segment, and a node on one of each of these segments.
    fn new(segments: &[u8]) -> Self {
        let fabric = Fabric::new(segments.iter().max().unwrap() + 1);
        let cluster = Cluster::server_on(&fabric.machine(0, 10), &[]);
        let machines: Vec<_> =
            segments.iter().zip(21..).map(|(segment, host)| fabric.machine(*segment, host)).collect();
        let layout = cluster.get(&["configmap", "sampan-cluster", "-n", "kube-system"]);
        let range = |name: &str| layout["data"][name].as_str().unwrap().to_owned();
        fabric.watch(&[&range("clusterCIDR"), &range("serviceCIDR")]);
        let join = |(machine, name): (&Machine, &str)| Node::join_on(machine, &cluster, name, &[]);
        let mut nodes: Vec<_> = machines.iter().zip(["a", "b", "c"]).map(join).collect();
        nodes.iter_mut().for_each(Node::ready);
        cluster.import_busybox();
        for sample in ["hello", "guestbook", "tcp-echo"] {
            cluster.import(sample);
        }
        Self { nodes, machines, cluster, fabric }
    }

    fn all(&self) -> impl Iterator<Item = (&str, &Machine)> {
        self.nodes.iter().map(|node| node.name.as_str()).zip(&self.machines)
    }

    /// A server of each kind on each node, behind Services `linux`, `hello` and `tcp-echo`, and clients of
    /// the other kinds' Services in WebAssembly.
    fn populate(&self) {
        let mut text = String::from(SERVICES);
        for (node, _) in self.all() {
            text += &linux(node);
            text += &pod("hello", node, "hello", &format!("{ADDRESS}    ports: [{{containerPort: 8080}}]\n"));
            text += &pod("tcp-echo", node, "tcp-echo", "    ports: [{containerPort: 7007}]\n");
            for (name, store) in [
                ("calls-linux", "linux:8080".to_owned()),
                ("calls-hello", "hello:8080".to_owned()),
                ("calls-outside", format!("{OUTSIDE}:8000")),
            ] {
                text += &front(name, node, &store);
            }
        }
        self.cluster.apply(&text);
        self.cluster.kubectl(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"]);
    }

    fn address(&self, pod: &str) -> String {
        self.cluster.get(&["pod", pod])["status"]["podIP"].as_str().unwrap().to_owned()
    }

    /// What a Linux pod hears when it runs a script.
    fn shell(&self, node: &str, script: &str) -> String {
        self.cluster.kubectl(&["exec", &format!("linux-{node}"), "--", "sh", "-c", script])
    }

    /// The first word about who answered at an address, as a Linux pod hears it; the file has to be whole.
    fn linux_hears(&self, node: &str, host: &str) -> Option<String> {
        let said = self.shell(node, &format!("timeout 5 wget -qO- http://{host}:8080/entries || true"));
        speaker(&said)
    }

    /// As a Wasm client hears it.
    fn wasm_hears(&self, machine: &Machine, client: &str) -> Option<String> {
        let authority = format!("{}:8080", self.address(client));
        let (status, said) = machine.place.inside(|| http_get(&authority, "/entries")).ok()?;
        (status == 200).then(|| speaker(&said)).flatten()
    }

    /// Every pod is reached from every node, by its address and by its Service, from both kinds.
    fn everybody_calls_everybody(&self) {
        let pods = |kind: &str| -> BTreeSet<String> { self.all().map(|(node, _)| format!("{kind}-{node}")).collect() };
        let targets: Vec<_> =
            ["linux", "hello"].iter().flat_map(|kind| pods(kind)).map(|pod| (self.address(&pod), pod)).collect();
        for (node, machine) in self.all() {
            for (address, pod) in &targets {
                eventually(&format!("{pod} at its address from {node}"), || {
                    (self.linux_hears(node, address)? == *pod).then_some(())
                });
            }
            for kind in ["linux", "hello"] {
                let service = self.cluster.service_address(kind);
                let calls = format!("calls-{kind}-{node}");
                let (mut from_linux, mut from_wasm) = (BTreeSet::new(), BTreeSet::new());
                eventually(&format!("all of {kind} from {node}"), || {
                    from_linux.extend(self.linux_hears(node, &service));
                    from_wasm.extend(self.wasm_hears(machine, &calls));
                    (from_linux == pods(kind) && from_wasm == pods(kind)).then_some(())
                });
            }
        }
    }

    /// Pods go out under their machine's address.
    fn nobody_outside_sees_a_pod(&self) {
        let listener = self.fabric.outside().inside(|| TcpListener::bind((OUTSIDE, 8000))).unwrap();
        std::thread::spawn(move || {
            while let Ok((stream, from)) = listener.accept() {
                let mut request = BufReader::new(stream);
                let mut line = String::new();
                while request.read_line(&mut line).is_ok_and(|length| length > 2) {
                    line.clear();
                }
                let text = format!("HTTP/1.0 200 OK\r\nConnection: close\r\n\r\nHello from {} at last\n", from.ip());
                let _ = request.get_mut().write_all(text.as_bytes());
            }
        });
        for (node, machine) in self.all() {
            let seen = Some(machine.address.to_string());
            // A busy machine may be late; an answer is the right one or none.
            let from_linux = eventually("an answer from outside", || {
                speaker(&self.shell(node, &format!("timeout 5 wget -qO- http://{OUTSIDE}:8000/ || true")))
            });
            assert_eq!(Some(from_linux), seen);
            let from_wasm = eventually("another", || self.wasm_hears(machine, &format!("calls-outside-{node}")));
            assert_eq!(Some(from_wasm), seen);
        }
    }

    fn ready(&self, node: &str) -> String {
        let node = self.cluster.get(&["node", node]);
        let conditions = node["status"]["conditions"].as_array().unwrap();
        let ready = conditions.iter().find(|condition| condition["type"] == "Ready").unwrap();
        ready["status"].as_str().unwrap().to_owned()
    }

    /// The addresses behind a Service.
    fn endpoints(&self, service: &str) -> BTreeSet<String> {
        let slices = self.cluster.get(&["endpointslices", "-l", &format!("kubernetes.io/service-name={service}")]);
        let slices = slices["items"].as_array().unwrap();
        let endpoints = slices.iter().flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default());
        endpoints
            .filter(|endpoint| endpoint["conditions"]["ready"] == true)
            .map(|endpoint| endpoint["addresses"][0].as_str().unwrap().to_owned())
            .collect()
    }
}

/// Who spoke, if all of it is there.
fn speaker(said: &str) -> Option<String> {
    let rest = said.strip_prefix("Hello from ")?;
    let (name, rest) = rest.split_once(' ')?;
    (!name.starts_with("linux-") || rest.len() > LENGTH).then(|| name.to_owned())
}

const SERVICES: &str = r#"
apiVersion: v1
kind: Secret
metadata: {name: token}
stringData: {token: t}
---
apiVersion: v1
kind: Service
metadata: {name: linux}
spec: {selector: {app: linux}, ports: [{port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: hello}
spec: {selector: {app: hello}, ports: [{port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: tcp-echo}
spec: {selector: {app: tcp-echo}, ports: [{port: 7007}]}
---
"#;

const ADDRESS: &str = "    env:\n    - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}\n";

fn pod(name: &str, node: &str, image: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}-{node}, labels: {{app: {name}}}}}\nspec:\n  \
         nodeSelector: {{kubernetes.io/hostname: {node}}}\n  terminationGracePeriodSeconds: 1\n  containers:\n  \
         - name: main\n    image: localhost/{image}:v1\n{more}---\n"
    )
}

/// Serves a file that says who it is and is long.
fn linux(node: &str) -> String {
    let script = format!(
        "mkdir /www; (echo Hello from linux-{node} with; yes | head -c {LENGTH}) > /www/entries; echo serving; \
         exec httpd -f -p 8080 -h /www"
    );
    let more = format!(
        "    command: [sh, -c, {}]\n    readinessProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 1}}\n",
        serde_json::to_string(&script).unwrap()
    );
    pod("linux", node, "busybox", &more).replace("busybox:v1", "busybox:1")
}

/// Asks a server for what it answers with.
fn front(name: &str, node: &str, store: &str) -> String {
    let more = format!(
        "    env: [{{name: ROLE, value: front}}, {{name: STORE, value: '{store}'}}]\n    \
         ports: [{{containerPort: 8080}}]\n    volumeMounts: [{{name: token, mountPath: /secrets, readOnly: true}}]\n  \
         volumes: [{{name: token, secret: {{secretName: token}}}}]\n"
    );
    pod(name, node, "guestbook", &more)
}

#[test]
fn three_machines_on_one_segment() {
    if !makes_machines() || !runs_linux() {
        return;
    }
    let fleet = Fleet::new(&[0, 0, 0]);
    fleet.populate();
    fleet.everybody_calls_everybody();
    fleet.nobody_outside_sees_a_pod();
    for (node, machine) in fleet.all() {
        assert_eq!(fleet.cluster.kubectl(&["logs", &format!("linux-{node}")]), "serving\n");
        let object = fleet.cluster.get(&["node", node]);
        assert_eq!(object["status"]["addresses"][0]["address"], machine.address.to_string());
    }
    assert_eq!(fleet.fabric.seen(), (0, 0), "no packet of a pod or a Service for the router, and no tunnel");
}

#[test]
fn machines_with_a_router_between() {
    if !makes_machines() || !runs_linux() {
        return;
    }
    let mut fleet = Fleet::new(&[0, 0, 1]);
    fleet.populate();
    fleet.everybody_calls_everybody();
    fleet.nobody_outside_sees_a_pod();

    // Large transfers, with packets as long as the pods' links allow: between pods, both ways at once.
    let bytes: Vec<u8> = (0..4_000_000_u32).map(|n| (n % 251) as u8).collect();
    let (near, far) = (fleet.address("tcp-echo-a"), fleet.address("tcp-echo-c"));
    for (node, address) in [("a", &far), ("c", &near)] {
        let script = format!(
            "head -c 4000000 /dev/urandom > /tmp/sent; nc {address} 7007 < /tmp/sent > /tmp/back; cmp /tmp/sent /tmp/back \
             && echo same"
        );
        assert_eq!(fleet.shell(node, &script), "same\n", "from {node}");
    }
    // From the machine itself, to an address and to the Service.
    let service = fleet.cluster.service_address("tcp-echo");
    for (machine, address) in [(0, &far), (2, &near), (0, &service), (2, &service)] {
        let authority = format!("{address}:7007");
        let back = fleet.machines[machine].place.inside(|| tcp_echo(&authority, &bytes));
        assert!(back.unwrap() == bytes, "from machine {machine} to {address}");
    }
    nobody_breaks_in_through_a_tunnel(&fleet.fabric, &fleet.machines[2]);

    // A port of a machine's own, for a Linux pod and for somebody outside.
    fleet.cluster.apply(
        &linux("c")
            .replace("linux-c", "port-c")
            .replace("app: linux", "app: port")
            .replace("    command:", "    ports: [{containerPort: 8080, hostPort: 8088}]\n    command:"),
    );
    fleet.cluster.kubectl(&["wait", "--for=condition=Ready", "pod/port-c", "--timeout=60s"]);
    let port = format!("{}:8088", fleet.machines[2].address);
    let (status, said) = fleet.fabric.outside().inside(|| http_get(&port, "/entries")).unwrap();
    assert_eq!((status, speaker(&said).as_deref()), (200, Some("port-c")));

    let (leaked, tunnelled) = fleet.fabric.seen();
    assert_eq!(leaked, 0, "the router sees nodes' addresses only");
    assert!(tunnelled > 1000, "{tunnelled} packets in tunnels");

    // A node that is taken away leaves nothing on its machine and no way to it.
    let devices = |fleet: &Fleet, machine: usize| {
        let listed = fleet.machines[machine].place.run("ip".as_ref(), &["-o", "link", "show", "type", "vxlan"]);
        listed.out.lines().count()
    };
    assert_eq!([0, 1, 2].map(|machine| devices(&fleet, machine)), [1, 1, 1]);
    let rules = |fleet: &Fleet| fleet.machines[2].place.run("iptables-save".as_ref(), &[]).out;
    assert!(rules(&fleet).contains("8088"), "{}", rules(&fleet));
    let mut last = fleet.nodes.pop().unwrap();
    last.kill();
    let removed = last.down();
    assert!(removed.contains("interface"), "{removed}");
    assert_eq!(devices(&fleet, 2), 0);
    assert!(!rules(&fleet).contains("8088") && !rules(&fleet).contains("sampan"), "{}", rules(&fleet));
    fleet.cluster.kubectl(&["delete", "node", "c"]);
    eventually("no tunnel to nobody", || (devices(&fleet, 0) + devices(&fleet, 1) == 0).then_some(()));
}

/// Whoever can send to the tunnels' port can send packets out of them, but none that is not a pod's.
fn nobody_breaks_in_through_a_tunnel(fabric: &Fabric, machine: &Machine) {
    let device = || -> Value {
        let listed = machine.place.run("ip".as_ref(), &["-j", "-d", "-s", "address", "show", "type", "vxlan"]).out;
        serde_json::from_str::<Value>(&listed).unwrap()[0].take()
    };
    let before = device();
    let received = |device: &Value| device["stats64"]["rx"]["packets"].as_u64().unwrap();
    let (vni, mac) = (&before["linkinfo"]["info_data"]["id"], before["address"].as_str().unwrap());
    let (inner, remote) = (before["addr_info"][0]["local"].as_str().unwrap(), machine.address);
    // With the route back to it, only the tunnel's own rules are in the way.
    fabric.outside().ip(&format!(
        "link add forged type vxlan id {vni} remote {remote} dstport 8472\naddress add 192.0.2.66/32 dev forged\n\
         link set forged up\nroute add {inner}/32 dev forged src 192.0.2.66\n\
         neighbour add {inner} lladdr {mac} dev forged nud permanent"
    ));
    let address = format!("{inner}:10250").parse().unwrap();
    let connected = fabric.outside().inside(|| TcpStream::connect_timeout(&address, Duration::from_secs(2)));
    assert!(connected.is_err(), "{connected:?}");
    assert!(received(&device()) > received(&before), "it arrived, and was dropped");
    fabric.outside().ip("link delete forged");
}

#[test]
fn a_machine_cut_off_and_healed() {
    if !makes_machines() || !runs_linux() {
        return;
    }
    let fleet = Fleet::new(&[0, 0]);
    let cluster = &fleet.cluster;
    let mut text = String::from(SERVICES);
    for (node, _) in fleet.all() {
        text += &linux(node);
        text += &pod("hello", node, "hello", &format!("{ADDRESS}    ports: [{{containerPort: 8080}}]\n"));
    }
    cluster.apply(&(text + MOVES));
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"]);
    cluster.rolled_out("moves");
    let stays = ["linux-a", "linux-b", "hello-a", "hello-b"];
    let containers = |pod: &str| -> Vec<Value> {
        let status = cluster.get(&["pod", pod])["status"].take();
        assert_eq!(status["phase"], "Running", "{status}");
        let all = status["containerStatuses"].as_array().unwrap().iter();
        all.map(|it| serde_json::json!([it["containerID"], it["restartCount"], it["state"]])).collect()
    };
    let before = stays.map(containers);
    let addresses = stays.map(|pod| fleet.address(pod));
    let moved: Vec<_> = cluster.pods("app=moves").into_iter().filter(|pod| pod["spec"]["nodeName"] == "b").collect();
    let moved_address = moved.first().unwrap()["status"]["podIP"].as_str().unwrap();
    assert_eq!(moved.len(), 1, "one on each node");

    let b = &fleet.machines[1];
    fleet.fabric.cut(b);
    let limit = Duration::from_secs(120);
    within(limit, "the node counts as lost", &mut || (fleet.ready("b") == "Unknown").then_some(()));
    for (service, own) in [("linux", &addresses[0]), ("hello", &addresses[2])] {
        eventually("its endpoints are gone", || (fleet.endpoints(service) == [own.clone()].into()).then_some(()));
    }
    // What it runs goes on.
    for (address, path) in [(&addresses[1], "/entries"), (&addresses[3], "/")] {
        let authority = format!("{address}:8080");
        assert_eq!(b.place.inside(|| http_get(&authority, path)).unwrap().0, 200);
    }
    // What does not want to wait begins elsewhere; there is no word of its end yet.
    within(limit, "another in its place", &mut || {
        let here = cluster.pods("app=moves").into_iter().filter(|pod| pod["spec"]["nodeName"] == "a");
        let ready = here.filter(|pod| {
            let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
            conditions.iter().any(|one| one["type"] == "Ready" && one["status"] == "True")
        });
        (ready.count() == 2).then_some(())
    });
    let name = moved[0]["metadata"]["name"].as_str().unwrap();
    assert!(cluster.get(&["pod", name])["metadata"]["deletionTimestamp"].is_string());

    fleet.fabric.heal(b);
    eventually("the node is ready again", || (fleet.ready("b") == "True").then_some(()));
    eventually("what was replaced has ended", || (!cluster.try_kubectl(&["get", "pod", name]).ok).then_some(()));
    let authority = format!("{moved_address}:8080");
    assert!(b.place.inside(|| http_get(&authority, "/")).is_err(), "and nobody is at its address");
    for (service, own) in [("linux", &addresses[..2]), ("hello", &addresses[2..])] {
        let all: BTreeSet<String> = own.iter().cloned().collect();
        eventually("its endpoints are back", || (fleet.endpoints(service) == all).then_some(()));
    }
    assert_eq!(stays.map(containers), before, "the same containers, not new ones");
    for pod in ["linux-b", "hello-b"] {
        eventually("a call across", || {
            (fleet.linux_hears("a", &fleet.address(pod))? == pod && fleet.linux_hears("b", &addresses[0])? == "linux-a")
                .then_some(())
        });
    }
    let running = fleet.shell("b", "ps | grep -c '[h]ttpd -f'");
    assert_eq!(running.trim(), "1");
}

#[test]
fn a_node_for_which_no_range_is_left() {
    if !makes_machines() {
        return;
    }
    let fabric = Fabric::new(1);
    let (first, second) = (fabric.machine(0, 21), fabric.machine(0, 22));
    // An address beside the one that would be chosen.
    first.place.ip("address add 198.51.100.121/24 dev eth0");
    let cluster = Cluster::server_on(&fabric.machine(0, 10), &["--cluster-cidr", "10.199.7.0/24"]);
    let mut has_all = Node::join_on(&first, &cluster, "a", &["--max-pods", "112", "--node-ip", "198.51.100.121"]);
    has_all.ready();
    let status = cluster.get(&["node", "a"])["status"].take();
    assert_eq!(status["addresses"][0]["address"], "198.51.100.121");
    assert_eq!(status["daemonEndpoints"]["kubeletEndpoint"]["Port"], 10250);
    let mut waits = Node::join_on(&second, &cluster, "b", &["--max-pods", "100"]);
    let ready = eventually("a word about it", || {
        let node = cluster.try_kubectl(&["get", "node", "b", "-o", "json"]);
        let node: Value = serde_json::from_str(&node.out).ok()?;
        let conditions = node["status"]["conditions"].as_array()?;
        let ready = conditions.iter().find(|condition| condition["type"] == "Ready")?.clone();
        ready["message"].as_str()?.contains("spec.podCIDR").then_some(ready)
    });
    assert_eq!((ready["status"].as_str(), ready["reason"].as_str()), (Some("False"), Some("KubeletNotReady")));
    // Room is made, and the node takes it.
    drop(has_all);
    cluster.kubectl(&["delete", "node", "a"]);
    waits.ready();
}

/// Nobody wants to wait the usual five minutes.
const MOVES: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: moves}
spec:
  replicas: 2
  selector: {matchLabels: {app: moves}}
  template:
    metadata: {labels: {app: moves}}
    spec:
      topologySpreadConstraints:
        - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: moves}}}
      tolerations:
        - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 1}
        - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 1}
      containers:
        - name: hello
          image: localhost/hello:v1
          readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
"#;
