//! Pods that take more of the node's disk than they may: of an emptyDir's `sizeLimit`, of their
//! containers' limits of `ephemeral-storage`, or, when the disk is nearly full, of what others need.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::machine::Evicted;
use super::shared::Shared;
use super::spec::PodRef;
use super::{disk_usage, empty_dir, paths, resources, spec};
use crate::node::disk::Disk;
use crate::runtime::ContainerId;

/// How often use is looked at, as often as the kubelet does; and whether the disk is full, which it may be
/// in a moment, and which costs one system call.
const LOOK: Duration = Duration::from_secs(10);
pub const GLANCE: Duration = Duration::from_secs(1);
/// How long images may take to go before pods do.
const COLLECT: Duration = Duration::from_secs(30);
/// What a pod that was evicted has to give back before another one is.
const RELIEF: Duration = Duration::from_secs(30);
const STORAGE: &str = "ephemeral-storage";
/// From here on a priority is one of the system's.
const SYSTEM_CRITICAL: i32 = 2_000_000_000;

/// Bytes, and the quantity that said so.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Limit {
    bytes: u64,
    text: String,
}

impl Limit {
    fn of(quantity: &Quantity) -> Option<Self> {
        let bytes = resources::value(quantity);
        (bytes > 0).then(|| Self { bytes, text: resources::bytes_like(bytes, quantity) })
    }
}

/// What a pod may take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Limits {
    volumes: Vec<(String, Limit)>,
    containers: Vec<(String, Limit)>,
    pod: Option<Limit>,
}

/// What it takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Used {
    volumes: BTreeMap<String, u64>,
    /// What each wrote beside its image and volumes, and its logs.
    containers: BTreeMap<String, u64>,
}

impl Used {
    fn total(&self) -> u64 {
        self.volumes.values().chain(self.containers.values()).fold(0, |sum, used| sum.saturating_add(*used))
    }
}

fn volumes(pod: &core::Pod) -> &[core::Volume] {
    pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default()
}

fn limits(pod: &core::Pod) -> Limits {
    let of = |container: &core::Container| {
        let limit = resources::limits(container)?.get(STORAGE)?;
        Some((container.name.clone(), Limit::of(limit)?, limit.clone()))
    };
    let volume = |volume: &core::Volume| {
        Some((volume.name.clone(), Limit::of(volume.empty_dir.as_ref()?.size_limit.as_ref()?)?))
    };
    let first = spec::containers(pod).find_map(|(container, _)| of(container));
    let mains = pod.spec.iter().flat_map(|spec| &spec.containers);
    Limits {
        volumes: volumes(pod).iter().filter_map(volume).collect(),
        containers: mains.filter_map(of).map(|(name, limit, _)| (name, limit)).collect(),
        pod: first.map(|(_, _, like)| {
            let bytes = u64::try_from(resources::limited(pod, STORAGE) / 1_000_000_000).unwrap_or(u64::MAX);
            Limit { bytes, text: resources::bytes_like(bytes, &like) }
        }),
    }
}

/// In the kubelet's order and words.
fn exceeded(limits: &Limits, used: &Used) -> Option<String> {
    let over = |limit: &Limit, used: Option<&u64>| used.is_some_and(|used| *used > limit.bytes);
    for (name, limit) in &limits.volumes {
        if over(limit, used.volumes.get(name)) {
            return Some(format!("Usage of EmptyDir volume \"{name}\" exceeds the limit \"{}\". ", limit.text));
        }
    }
    if let Some(limit) = limits.pod.as_ref().filter(|limit| used.total() > limit.bytes) {
        return Some(format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {}. ",
            limit.text
        ));
    }
    limits.containers.iter().find(|(name, limit)| over(limit, used.containers.get(name))).map(|(name, limit)| {
        format!("Container {name} exceeded its local ephemeral storage limit \"{}\". ", limit.text)
    })
}

/// What a pod takes of the disk; `written` says what containers wrote in containerd. Blocks. `all`: also
/// where nothing is limited.
fn measure(pod: &core::Pod, dir: &Path, limits: &Limits, written: &HashMap<String, u64>, all: bool) -> Used {
    let uid = spec::uid(pod);
    let whole = all || limits.pod.is_some();
    let size = |path: &Path, enough: u64| {
        disk_usage::of(path, enough)
            .inspect_err(|error| tracing::debug!(pod = uid, path = %path.display(), %error, "not measured"))
            .unwrap_or(0)
    };
    let mut used = Used::default();
    for volume in volumes(pod) {
        let limit = limits.volumes.iter().find(|(name, _)| *name == volume.name).map(|(_, limit)| limit.bytes);
        let local = volume.empty_dir.as_ref().is_some_and(|source| !empty_dir::in_memory(source))
            || volume.config_map.is_some();
        // One in memory is as large as it may be; where it lies on the disk after all it counts as there.
        let on_disk = local || volume.empty_dir.is_some() && !is_mounted(dir, uid, &volume.name);
        if on_disk && (whole || limit.is_some()) {
            let enough = if whole { u64::MAX } else { limit.unwrap_or(u64::MAX) };
            used.volumes.insert(volume.name.clone(), size(&dir.join(paths::volume(uid, &volume.name)), enough));
        }
    }
    if whole {
        for (container, _) in spec::all_containers(pod) {
            let logs = size(&dir.join(paths::container(uid, &container.name)), u64::MAX);
            let layer = written.get(&container.name).copied().unwrap_or(0);
            used.containers.insert(container.name.clone(), logs.saturating_add(layer));
        }
    }
    used
}

fn is_mounted(dir: &Path, uid: &str, volume: &str) -> bool {
    empty_dir::is_mount(&dir.join(paths::volume(uid, volume))).unwrap_or(true)
}

/// Whether a pod is the system's own, without which the node may be worth nothing.
pub fn is_critical(pod: &core::Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.priority).is_some_and(|priority| priority >= SYSTEM_CRITICAL)
}

/// A pod with the tenant that it is in.
pub struct Candidate {
    pub pod: PodRef,
    pub tenant: String,
}

/// When pods' use is looked at: one look at a time.
#[derive(Default)]
pub struct Looks {
    last: Option<(JoinHandle<()>, Instant)>,
    /// Who was evicted for a full disk, and when.
    relief: Arc<Mutex<Option<(String, Instant)>>>,
}

impl Looks {
    /// To be called every [`GLANCE`]. Looks at the pods that are `standing` if that is due, and tells
    /// which of them have to go.
    pub fn glance(
        &mut self,
        shared: &Arc<Shared>,
        standing: impl FnOnce() -> Vec<Candidate>,
        is_there: impl Fn(&str) -> bool,
        tell: impl Fn(String, Evicted) + Send + 'static,
    ) {
        let awaited = {
            let mut relief = self.relief.lock().unwrap_or_else(PoisonError::into_inner);
            relief.take_if(|(uid, since)| since.elapsed() >= RELIEF || !is_there(uid));
            relief.is_some()
        };
        let disk = shared.disk.look().filter(|_| !awaited);
        let due = |(task, begun): &(JoinHandle<()>, Instant)| {
            task.is_finished() && (disk.is_some() || begun.elapsed() >= LOOK)
        };
        if !self.last.as_ref().is_none_or(due) {
            return;
        }
        let (pods, shared, relief) = (standing(), shared.clone(), self.relief.clone());
        let task = tokio::spawn(async move {
            let disk = match disk {
                Some(full) => {
                    let made = relieve(full, || shared.disk.look(), |bytes| shared.collecting.free(bytes));
                    tokio::time::timeout(COLLECT, made).await.unwrap_or_else(|_| shared.disk.look())
                }
                None => None,
            };
            for (uid, evicted) in look(&shared, pods, disk).await {
                if disk.is_some() {
                    // Also one that took more than it may gives room back.
                    *relief.lock().unwrap_or_else(PoisonError::into_inner) = Some((uid.clone(), Instant::now()));
                }
                tell(uid, evicted);
            }
        });
        self.last = Some((task, Instant::now()));
    }
}

/// Has images removed that no pod uses, as long as there are any and the disk is full. Then the disk, if
/// it still is.
async fn relieve<F: Future<Output = u64>>(
    mut full: Disk,
    look: impl Fn() -> Option<Disk>,
    free: impl Fn(u64) -> F,
) -> Option<Disk> {
    // What an image takes is not always what its going gives back: it is looked again.
    while free(full.threshold().saturating_sub(full.free)).await > 0 {
        full = look()?;
    }
    look()
}

/// The pods that have to go, by uid, and why. `disk`: one that is full.
async fn look(shared: &Shared, pods: Vec<Candidate>, disk: Option<Disk>) -> Vec<(String, Evicted)> {
    let pods: Vec<(Candidate, Limits)> = pods
        .into_iter()
        .filter(|candidate| !is_critical(&candidate.pod))
        .map(|candidate| {
            let limits = limits(&candidate.pod);
            (candidate, limits)
        })
        .filter(|(_, limits)| disk.is_some() || *limits != Limits::default())
        .collect();
    if pods.is_empty() {
        return Vec::new();
    }
    let linux = disk.is_some() || pods.iter().any(|(_, limits)| limits.pod.is_some());
    let mut written: HashMap<String, HashMap<String, u64>> = HashMap::new();
    if linux {
        for (ContainerId { pod_uid, container, .. }, bytes) in shared.oci().written().await {
            written.entry(pod_uid).or_default().insert(container, bytes);
        }
    }
    let paths = shared.paths.clone();
    let measured = tokio::task::spawn_blocking(move || {
        let none = HashMap::new();
        let used = pods.iter().map(|(candidate, limits)| {
            let layers = written.get(spec::uid(&candidate.pod)).unwrap_or(&none);
            measure(&candidate.pod, &paths.tenant(&candidate.tenant), limits, layers, disk.is_some())
        });
        let used: Vec<Used> = used.collect();
        choose(&pods, &used, disk)
    });
    measured.await.unwrap_or_default()
}

fn choose(pods: &[(Candidate, Limits)], used: &[Used], disk: Option<Disk>) -> Vec<(String, Evicted)> {
    let uid = |candidate: &Candidate| spec::uid(&candidate.pod).to_owned();
    let over: Vec<_> = pods
        .iter()
        .zip(used)
        .filter_map(|((candidate, limits), used)| {
            let message = exceeded(limits, used)?;
            Some((uid(candidate), Evicted { message, by_node: false }))
        })
        .collect();
    // What those give back may be enough.
    let (true, Some(disk)) = (over.is_empty(), disk) else { return over };
    let asked = |pod: &core::Pod| u64::try_from(resources::requested(pod, STORAGE) / 1_000_000_000).unwrap_or(0);
    let worst = pods.iter().zip(used).max_by_key(|((candidate, _), used)| {
        let (asked, used) = (asked(&candidate.pod), used.total());
        let priority = candidate.pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
        (used > asked, Reverse(priority), i128::from(used) - i128::from(asked))
    });
    let worst = worst.filter(|(_, used)| used.total() > 0);
    worst.map(|((candidate, _), used)| (uid(candidate), pressed(&candidate.pod, used, disk))).into_iter().collect()
}

fn pressed(pod: &core::Pod, used: &Used, disk: Disk) -> Evicted {
    let told = |bytes: u64| resources::bytes_like(bytes, &Quantity("1Ki".to_owned()));
    let mut message = format!(
        "The node was low on resource: {STORAGE}. Threshold quantity: {}, available: {}. ",
        told(disk.threshold()),
        told(disk.free)
    );
    for (container, _) in spec::containers(pod) {
        let asked = resources::requests(container).and_then(|list| list.get(STORAGE));
        let used = used.containers.get(&container.name).copied().unwrap_or(0);
        if used > asked.map_or(0, resources::value) {
            message.push_str(&format!(
                "Container {} was using {}, request is {}, has larger consumption of {STORAGE}. ",
                container.name,
                told(used),
                asked.map_or("0", |asked| asked.0.as_str())
            ));
        }
    }
    Evicted { message, by_node: true }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn pod(uid: &str, spec: serde_json::Value) -> core::Pod {
        serde_json::from_value(json!({ "metadata": { "name": uid, "uid": uid }, "spec": spec })).unwrap()
    }

    fn limited(name: &str, limit: &str) -> serde_json::Value {
        json!({ "name": name, "resources": { "limits": { "ephemeral-storage": limit } } })
    }

    #[test]
    fn told_in_the_kubelets_words_and_order() {
        let pod = pod(
            "a",
            json!({
                "volumes": [{ "name": "work", "emptyDir": { "sizeLimit": "1Mi" } }, { "name": "free", "emptyDir": {} }],
                "containers": [limited("one", "1Mi"), limited("two", "2Mi"), { "name": "three" }],
            }),
        );
        let limits = limits(&pod);
        let told = |work: u64, free: u64, one: u64, three: u64| {
            let map = |all: &[(&str, u64)]| all.iter().map(|(name, used)| ((*name).to_owned(), *used)).collect();
            let used = Used {
                volumes: map(&[("work", work), ("free", free)]),
                containers: map(&[("one", one), ("three", three)]),
            };
            exceeded(&limits, &used)
        };
        const MI: u64 = 1 << 20;
        assert_eq!(told(MI, MI, MI, 0), None);
        assert_eq!(
            told(MI + 1, 9 * MI, 9 * MI, 0).unwrap(),
            "Usage of EmptyDir volume \"work\" exceeds the limit \"1Mi\". "
        );
        assert_eq!(
            told(0, 3 * MI, 0, 1).unwrap(),
            "Pod ephemeral local storage usage exceeds the total limit of containers 3Mi. "
        );
        assert_eq!(
            told(0, 0, MI + 1, 0).unwrap(),
            "Container one exceeded its local ephemeral storage limit \"1Mi\". "
        );
        // Where nobody said anything there is no limit.
        assert_eq!(
            super::limits(&self::pod(
                "b",
                json!({ "volumes": [{ "name": "v", "emptyDir": {} }], "containers": [{ "name": "a" }] })
            )),
            Limits::default()
        );
    }

    #[test]
    fn only_what_is_limited_is_measured() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str| {
            let path = dir.path().join("pods/a").join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, vec![1; 2 << 20]).unwrap();
        };
        for path in ["volumes/work/file", "volumes/free/file", "volumes/config/file", "containers/one/0.log"] {
            write(path);
        }
        let volumes = json!([
            { "name": "work", "emptyDir": { "sizeLimit": "1Mi" } }, { "name": "free", "emptyDir": {} },
            { "name": "config", "configMap": { "name": "c" } }, { "name": "secret", "secret": { "secretName": "s" } },
        ]);
        let measured = |container: serde_json::Value| {
            let pod = pod("a", json!({ "volumes": volumes, "containers": [container] }));
            let written = HashMap::from([("one".to_owned(), 1 << 20)]);
            measure(&pod, dir.path(), &limits(&pod), &written, false)
        };
        let used = measured(json!({ "name": "one" }));
        assert_eq!(used.volumes.keys().collect::<Vec<_>>(), ["work"]);
        assert!(used.volumes["work"] > 1 << 20 && used.containers.is_empty());
        let used = measured(limited("one", "1Gi"));
        assert_eq!(used.volumes.keys().collect::<Vec<_>>(), ["config", "free", "work"]);
        assert!(used.containers["one"] >= 3 << 20, "its log and its layer");
        assert!(used.total() >= 9 << 20);
    }

    #[tokio::test]
    async fn images_go_before_pods() {
        use std::cell::{Cell, RefCell};
        let relieved = async |images: &[u64], given_back: u64| {
            let (free, left, asked) = (Cell::new(4_u64), RefCell::new(images.to_vec()), RefCell::new(Vec::new()));
            let disk = || Disk { total: 100, free: free.get() };
            let look = || Some(disk()).filter(Disk::is_full);
            let remove = |bytes: u64| {
                asked.borrow_mut().push(bytes);
                let image = left.borrow_mut().pop();
                free.set(free.get() + image.map_or(0, |_| given_back));
                std::future::ready(image.unwrap_or(0))
            };
            (relieve(disk(), look, remove).await.map(|disk| disk.free), asked.take())
        };
        assert_eq!(relieved(&[9, 9, 9], 6).await, (None, vec![6]), "no pod has to go");
        assert_eq!(relieved(&[9, 9, 9], 3).await, (None, vec![6, 3]));
        assert_eq!(relieved(&[9], 2).await, (Some(6), vec![6, 4]), "that was not enough");
        assert_eq!(relieved(&[], 0).await, (Some(4), vec![6]));
    }

    #[test]
    fn a_full_disk_is_relieved_by_who_takes_more_than_asked() {
        let candidate = |uid: &str, priority: i32, asked: &str| {
            let resources = json!({ "requests": { "ephemeral-storage": asked } });
            let spec = json!({ "priority": priority, "containers": [{ "name": "c", "resources": resources }] });
            let pod = pod(uid, spec);
            let limits = limits(&pod);
            (Candidate { pod: Arc::new(pod), tenant: "t".to_owned() }, limits)
        };
        let used = |bytes: u64| Used { containers: BTreeMap::from([("c".to_owned(), bytes)]), ..Used::default() };
        let pods = [
            candidate("modest", 0, "8Mi"),
            candidate("dear", 7, "0"),
            candidate("greedy", 0, "1Mi"),
            candidate("small", 0, "0"),
        ];
        let takes = [used(7 << 20), used(9 << 20), used(3 << 20), used(1 << 20)];
        let full = Disk { total: 100 << 20, free: 1 << 20 };
        let chosen = choose(&pods, &takes, Some(full));
        let [(uid, evicted)] = chosen.as_slice() else { panic!("{chosen:?}") };
        assert_eq!(uid, "greedy");
        assert_eq!(
            evicted.message,
            "The node was low on resource: ephemeral-storage. Threshold quantity: 10Mi, available: 1Mi. \
             Container c was using 3Mi, request is 1Mi, has larger consumption of ephemeral-storage. "
        );
        assert!(evicted.by_node);
        assert_eq!(choose(&pods, &takes, None), []);
        assert_eq!(choose(&pods, &[used(0), used(0), used(0), used(0)], Some(full)), [], "nobody to blame");
    }
}
