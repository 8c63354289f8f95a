//! A large cluster that only exists in the API: simulated nodes, and pods to place on them.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use hyper::Method;
use serde_json::{Value, json};

use super::{Meter, Outcome, spread_out};
use crate::client::{Api, Connection};

const ZONE: &str = "topology.kubernetes.io/zone";
const HOST: &str = "kubernetes.io/hostname";
const ZONES: usize = 3;
const PODS_A_NODE: usize = 110;
const CPU_MILLIS: usize = 8000;
const MEMORY_MIB: usize = 16384;
/// Pods of one owner, which are to be spread.
const OWNED: usize = 100;
/// A node is lost after 40 s without a renewal of its lease.
const RENEW: Duration = Duration::from_secs(15);
const PATIENCE: Duration = Duration::from_secs(420);
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";

/// What a pod asks for, by its number.
struct Wish {
    cpu: usize,
    memory: usize,
    zone: Option<usize>,
    ssd: bool,
    among: Among,
}

/// What a pod asks of those of its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Among {
    /// Preferably not two on a node.
    Apart,
    /// Never two on a node.
    Alone,
    /// As many in each zone as in any other, give or take one.
    Even,
    /// All in one zone.
    Together,
}

fn wish(number: usize) -> Wish {
    let sizes = [(50, 64), (100, 128), (250, 256), (500, 512)];
    let (cpu, memory) = sizes.get(number % sizes.len()).copied().unwrap_or((50, 64));
    let among = match (number / OWNED) % 5 {
        0 | 1 => Among::Apart,
        2 => Among::Alone,
        3 => Among::Even,
        _ => Among::Together,
    };
    // Who is to be in every zone, or in one that is found, does not name one.
    let names_zone = matches!(among, Among::Apart | Among::Alone) && number % 3 == 1;
    Wish {
        cpu,
        memory,
        zone: names_zone.then_some(number % ZONES),
        ssd: among != Among::Even && number % 3 == 2,
        among,
    }
}

fn zone(node: usize) -> usize {
    node % ZONES
}

fn has_ssd(node: usize) -> bool {
    node.is_multiple_of(2)
}

/// A latency is one pod's, from its create to its binding at a watcher.
pub async fn run(kubeconfig: &Path, namespace: &str, nodes: usize, pods: usize) -> Result<Outcome> {
    let api = Api::open(kubeconfig)?;
    let mut connection = api.connect().await?;
    spread_out(&api, nodes, make_node).await?;
    let _heart = tokio::spawn(beat(api.clone(), nodes));
    let owners = make_owners(&mut connection, namespace, pods.div_ceil(OWNED)).await?;
    let all: Arc<str> = format!("/api/v1/namespaces/{namespace}/pods").into();
    let list: Value = serde_json::from_slice(&connection.get(&format!("{all}?limit=1")).await?)?;
    let version = list["metadata"]["resourceVersion"].as_str().context("no resourceVersion")?.to_owned();
    let mut watching = api.connect().await?;
    let mut watch = watching.watch(&format!("{all}?watch=true&resourceVersion={version}")).await?;

    let meter = Meter::begin();
    let making = {
        let (api, all, owners) = (api.clone(), all.clone(), Arc::new(owners));
        let begun = Instant::now();
        tokio::spawn(async move {
            let each = move |mut connection: Connection, number: usize| {
                let (all, owners) = (all.clone(), owners.clone());
                async move {
                    let body = pod(number, owners.get(number / OWNED).map_or("", String::as_str)).to_string();
                    connection.call(Method::POST, &all, "application/json", body).await?;
                    Ok(connection)
                }
            };
            spread_out(&api, pods, each).await.map(|_| begun.elapsed())
        })
    };
    let mut added: HashMap<String, Instant> = HashMap::with_capacity(pods);
    let mut latencies = Vec::with_capacity(pods);
    let bound = async {
        while latencies.len() < pods {
            let line = watch.next_line().await?;
            let seen = Instant::now();
            let pod = PodEvent::read(&line)?;
            if pod.node.is_none() {
                added.entry(pod.name).or_insert(seen);
            } else if let Some(since) = added.remove(&pod.name) {
                latencies.push(seen.duration_since(since).as_secs_f64() * 1e3);
            }
        }
        Ok::<_, anyhow::Error>(())
    };
    let result = tokio::time::timeout(PATIENCE, bound).await;
    if result.is_err() {
        bail!("{} of {pods} pods are bound after {PATIENCE:?}", latencies.len());
    }
    result??;
    let mut outcome = meter.end(&latencies);
    let making = making.await??;
    // A server closes what was idle for as long as this took.
    let most = check(&mut api.connect().await?, &all, nodes, pods).await?;
    outcome.note = format!(
        "made at {:.0} pods/s meanwhile; placements are right; at most {most} pods of an owner on a node",
        pods as f64 / making.as_secs_f64()
    );
    Ok(outcome)
}

/// What is wanted of a watch event: parsing it whole would take longer than scheduling the pod.
struct PodEvent {
    name: String,
    node: Option<String>,
}

impl PodEvent {
    fn read(line: &[u8]) -> Result<Self> {
        #[derive(serde::Deserialize)]
        struct Event {
            object: Object,
        }
        #[derive(serde::Deserialize)]
        struct Object {
            metadata: Metadata,
            #[serde(default)]
            spec: Spec,
        }
        #[derive(serde::Deserialize)]
        struct Metadata {
            name: String,
        }
        #[derive(Default, serde::Deserialize)]
        struct Spec {
            #[serde(rename = "nodeName")]
            node: Option<String>,
        }
        let event: Event = serde_json::from_slice(line).with_context(|| String::from_utf8_lossy(line).into_owned())?;
        Ok(Self { name: event.object.metadata.name, node: event.object.spec.node })
    }
}

async fn make_node(mut connection: Connection, number: usize) -> Result<Connection> {
    let name = format!("node-{number:05}");
    let labels = json!({
        "kubernetes.io/hostname": name,
        "topology.kubernetes.io/zone": format!("zone-{}", zone(number)),
        "disk": if has_ssd(number) { "ssd" } else { "hdd" },
    });
    connection.create("/api/v1/nodes", &json!({ "metadata": { "name": name, "labels": labels } })).await?;
    let size = json!({ "cpu": format!("{CPU_MILLIS}m"), "memory": format!("{MEMORY_MIB}Mi"), "pods": PODS_A_NODE.to_string() });
    let condition = |kind: &str, status: &str| json!({ "type": kind, "status": status, "reason": "Simulated" });
    let conditions = [
        condition("Ready", "True"),
        condition("MemoryPressure", "False"),
        condition("DiskPressure", "False"),
        condition("PIDPressure", "False"),
    ];
    let status = json!({ "status": { "capacity": size, "allocatable": size, "conditions": conditions } });
    connection.merge(&format!("/api/v1/nodes/{name}/status"), &status).await?;
    let lease = json!({ "metadata": { "name": name }, "spec": { "holderIdentity": name, "leaseDurationSeconds": 40 } });
    connection.create(LEASES, &lease).await?;
    Ok(connection)
}

/// Renews every node's lease, as the nodes would.
async fn beat(api: Api, nodes: usize) -> Result<()> {
    let mut connection = api.connect().await?;
    let mut turn = 0_u64;
    loop {
        let start = Instant::now();
        for number in 0..nodes {
            // The time is the node's own business; that it changes is the sign.
            let time = format!("2030-01-01T{:02}:{:02}:{:02}.000000Z", turn / 3600 % 24, turn / 60 % 60, turn % 60);
            let renewal = json!({ "spec": { "renewTime": time } });
            connection.merge(&format!("{LEASES}/node-{number:05}"), &renewal).await?;
            // Spread over the whole time.
            let due = RENEW.mul_f64(number as f64 / nodes as f64);
            tokio::time::sleep(due.saturating_sub(start.elapsed())).await;
        }
        turn += 1;
    }
}

/// Objects that own the pods: their uids. Config maps, because no controller counts their pods.
async fn make_owners(connection: &mut Connection, namespace: &str, count: usize) -> Result<Vec<String>> {
    let mut uids = Vec::with_capacity(count);
    for number in 0..count {
        let path = format!("/api/v1/namespaces/{namespace}/configmaps");
        let made = connection.create(&path, &json!({ "metadata": { "name": owner(number) } })).await?;
        uids.push(made["metadata"]["uid"].as_str().context("no uid")?.to_owned());
    }
    Ok(uids)
}

fn owner(number: usize) -> String {
    format!("owner-{number:04}")
}

fn pod(number: usize, uid: &str) -> Value {
    let Wish { cpu, memory, zone, ssd, among } = wish(number);
    let owned_by = owner(number / OWNED);
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": format!("pod-{number:06}"),
            "labels": { "app": owned_by },
            "ownerReferences": [
                { "apiVersion": "v1", "kind": "ConfigMap", "name": owned_by, "uid": uid, "controller": true },
            ],
        },
        "spec": {
            "containers": [{
                "name": "main",
                "image": "localhost/hello:v1",
                "resources": { "requests": { "cpu": format!("{cpu}m"), "memory": format!("{memory}Mi") } },
            }],
        },
    });
    let siblings = json!({ "matchLabels": { "app": owned_by } });
    let spread = |key: &str, when: &str| json!([{ "maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": when, "labelSelector": siblings }]);
    let near = |key: &str| json!({ "requiredDuringSchedulingIgnoredDuringExecution": [{ "topologyKey": key, "labelSelector": siblings }] });
    match among {
        Among::Apart => pod["spec"]["topologySpreadConstraints"] = spread(HOST, "ScheduleAnyway"),
        Among::Even => pod["spec"]["topologySpreadConstraints"] = spread(ZONE, "DoNotSchedule"),
        Among::Alone => pod["spec"]["affinity"]["podAntiAffinity"] = near(HOST),
        Among::Together => pod["spec"]["affinity"]["podAffinity"] = near(ZONE),
    }
    if let Some(zone) = zone {
        let term = json!({ "matchExpressions": [
            { "key": ZONE, "operator": "In", "values": [format!("zone-{zone}")] },
        ] });
        pod["spec"]["affinity"]["nodeAffinity"] =
            json!({ "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [term] } });
    }
    if ssd {
        pod["spec"]["nodeSelector"] = json!({ "disk": "ssd" });
    }
    pod
}

/// Every pod is where it may be, and no node holds more than it has. Answers with how many pods of
/// one owner a node has at most.
async fn check(connection: &mut Connection, all: &str, nodes: usize, pods: usize) -> Result<usize> {
    let list: Value = serde_json::from_slice(&connection.get(all).await?)?;
    let items = list["items"].as_array().context("no list of pods")?;
    ensure!(items.len() == pods, "{} pods are listed, {pods} were made", items.len());
    let placed = items.iter().map(|pod| {
        let number = |text: &Value, prefix: &str| text.as_str()?.strip_prefix(prefix)?.parse::<usize>().ok();
        let (pod, node) = (number(&pod["metadata"]["name"], "pod-"), number(&pod["spec"]["nodeName"], "node-"));
        pod.zip(node).context("a pod without a node")
    });
    verify(placed.collect::<Result<Vec<_>>>()?.into_iter(), nodes)
}

fn verify(placed: impl Iterator<Item = (usize, usize)>, nodes: usize) -> Result<usize> {
    let mut used = vec![(0, 0, 0); nodes];
    let mut owners: HashMap<(usize, usize), usize> = HashMap::new();
    let mut zones: HashMap<usize, (Among, [usize; ZONES])> = HashMap::new();
    for (pod, node) in placed {
        let Wish { cpu, memory, zone: wanted, ssd, among } = wish(pod);
        let (cpus, memories, count) = used.get_mut(node).with_context(|| format!("pod {pod} is on no node of ours"))?;
        *cpus += cpu;
        *memories += memory;
        *count += 1;
        ensure!(
            *cpus <= CPU_MILLIS && *memories <= MEMORY_MIB && *count <= PODS_A_NODE,
            "node {node} holds {count} pods with {cpus} m and {memories} Mi: more than it has"
        );
        ensure!(wanted.is_none_or(|wanted| wanted == zone(node)), "pod {pod} is in another zone than it asked for");
        ensure!(!ssd || has_ssd(node), "pod {pod} asked for an SSD and is on node {node}");
        let together = owners.entry((pod / OWNED, node)).or_default();
        *together += 1;
        ensure!(among != Among::Alone || *together == 1, "pod {pod} is on node {node} with another one of its owner");
        let (_, counts) = zones.entry(pod / OWNED).or_insert((among, [0; ZONES]));
        counts.iter_mut().skip(zone(node)).take(1).for_each(|count| *count += 1);
    }
    for (owner, (among, counts)) in zones {
        let (least, most) = (counts.iter().min(), counts.iter().max());
        let skew = most.zip(least).map_or(0, |(most, least)| most - least);
        ensure!(among != Among::Even || skew <= 1, "owner {owner} has {counts:?} pods in the zones, unevenly");
        let used = counts.iter().filter(|count| **count > 0).count();
        ensure!(among != Among::Together || used == 1, "owner {owner} has {counts:?} pods in the zones, apart");
    }
    Ok(owners.into_values().max().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_placements_are_found() {
        let error = |placed: &[(usize, usize)]| {
            verify(placed.iter().copied(), 6).err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert_eq!(error(&[(0, 3), (1, 1), (2, 2)]), "");
        assert!(error(&[(1, 0)]).contains("zone"));
        assert!(error(&[(2, 3)]).contains("SSD"));
        assert!(error(&[(0, 6)]).contains("no node"));
        let heap: Vec<_> = (0..17).map(|_| (3, 0)).collect();
        assert!(error(&heap).contains("more than it has"));
        let crowd: Vec<_> = (0..111).map(|_| (0, 0)).collect();
        assert!(error(&crowd).contains("111 pods"));
        assert_eq!(verify([(0, 0), (3, 0), (6, 0), (0, 1)].into_iter(), 6).ok(), Some(3));
        let (alone, even, together) = (2 * OWNED, 3 * OWNED, 4 * OWNED);
        assert!(error(&[(alone, 0), (alone + 3, 0)]).contains("with another one"));
        assert!(error(&[(even, 0), (even + 1, 3)]).contains("unevenly"));
        assert_eq!(error(&[(even, 0), (even + 1, 1)]), "");
        assert!(error(&[(together, 0), (together + 2, 1)]).contains("apart"));
        assert_eq!(error(&[(together, 0), (together + 2, 3)]), "");
    }

    #[test]
    fn what_a_pod_asks_for_is_in_its_spec() {
        for number in (0..12).chain((0..5).map(|owner| owner * OWNED)) {
            let (wish, pod) = (wish(number), pod(number, "u"));
            let spec = &pod["spec"];
            assert_eq!(spec["containers"][0]["resources"]["requests"]["cpu"], format!("{}m", wish.cpu));
            assert_eq!(spec["nodeSelector"]["disk"] == "ssd", wish.ssd);
            assert_eq!(spec["affinity"]["nodeAffinity"].is_object(), wish.zone.is_some());
            assert_eq!(spec["affinity"]["podAntiAffinity"].is_object(), wish.among == Among::Alone);
            assert_eq!(spec["affinity"]["podAffinity"].is_object(), wish.among == Among::Together);
            let spread = matches!(wish.among, Among::Apart | Among::Even);
            assert_eq!(spec["topologySpreadConstraints"].is_array(), spread);
        }
    }
}
