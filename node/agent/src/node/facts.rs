//! What the machine is and has.

use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// What does not change while the agent runs.
#[derive(Clone, Debug)]
pub struct Facts {
    pub capacity: BTreeMap<String, Quantity>,
    pub allocatable: BTreeMap<String, Quantity>,
    pub info: core::NodeSystemInfo,
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// Bytes of one line of /proc/meminfo.
fn meminfo(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

/// Memory that a control group leaves us, if less than the machine's.
fn cgroup_memory() -> Option<u64> {
    ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        .iter()
        .find_map(|path| read(path).parse::<u64>().ok())
}

/// Total and available bytes of the filesystem below a path.
pub fn disk(path: &Path) -> Option<(u64, u64)> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some((stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize))
}

/// Total and available memory.
pub fn memory() -> (u64, u64) {
    let text = read("/proc/meminfo");
    let total = meminfo(&text, "MemTotal").unwrap_or(0);
    let available = meminfo(&text, "MemAvailable").unwrap_or(total);
    let limit = cgroup_memory().unwrap_or(u64::MAX);
    (total.min(limit), available.min(limit))
}

/// Processes there are, and how many there may be.
pub fn processes() -> Option<(u64, u64)> {
    let running: u64 = read("/proc/loadavg").split(' ').nth(3)?.split_once('/')?.1.parse().ok()?;
    let most: u64 = read("/proc/sys/kernel/pid_max").parse().ok()?;
    let threads: u64 = read("/proc/sys/kernel/threads-max").parse().unwrap_or(most);
    Some((running, most.min(threads)))
}

/// What pods may use: everything but what the node itself needs.
pub fn capacity(dir: &Path, max_pods: u32) -> (BTreeMap<String, Quantity>, BTreeMap<String, Quantity>) {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let (memory, _) = memory();
    let (disk, _) = disk(dir).unwrap_or((0, 0));
    let quantity = |text: String| Quantity(text);
    let list = |memory: u64, disk: u64| {
        BTreeMap::from([
            ("cpu".to_owned(), quantity(processors.to_string())),
            ("memory".to_owned(), quantity(format!("{}Ki", memory / 1024))),
            ("pods".to_owned(), quantity(max_pods.to_string())),
            ("ephemeral-storage".to_owned(), quantity(format!("{}Ki", disk / 1024))),
        ])
    };
    // The kubelet's own threshold for eviction: 100 MiB of memory, a tenth of the disk.
    let allocatable = list(memory.saturating_sub(100 << 20), disk / 10 * 9);
    (list(memory, disk), allocatable)
}

/// Go's names of architectures.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

impl Facts {
    pub fn read(dir: &Path, max_pods: u32, version: &str, runtime: &str) -> Self {
        let (capacity, allocatable) = capacity(dir, max_pods);
        let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
        let image = release
            .lines()
            .find_map(|line| line.strip_prefix("PRETTY_NAME="))
            .map_or_else(|| "Linux".to_owned(), |name| name.trim_matches('"').to_owned());
        let machine_id = read("/etc/machine-id");
        let system_uuid = Some(read("/sys/class/dmi/id/product_uuid")).filter(|id| !id.is_empty());
        Self {
            capacity,
            allocatable,
            info: core::NodeSystemInfo {
                architecture: architecture().to_owned(),
                boot_id: read("/proc/sys/kernel/random/boot_id"),
                container_runtime_version: runtime.to_owned(),
                kernel_version: rustix::system::uname().release().to_string_lossy().into_owned(),
                kube_proxy_version: String::new(),
                kubelet_version: version.to_owned(),
                system_uuid: system_uuid.unwrap_or_else(|| machine_id.clone()),
                machine_id,
                operating_system: "linux".to_owned(),
                os_image: image,
                swap: None,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine() {
        let facts = Facts::read(Path::new("/"), 110, "v1", "wasm://1");
        assert!(facts.capacity.get("memory").is_some_and(|memory| memory.0 != "0Ki"));
        assert_eq!(facts.capacity.get("pods").map(|pods| pods.0.as_str()), Some("110"));
        assert!(processes().is_some_and(|(running, most)| running < most));
    }

    #[test]
    fn lines_of_meminfo() {
        let text = "MemTotal:       24 kB\nMemAvailable:   7 kB\n";
        assert_eq!(meminfo(text, "MemTotal"), Some(24 * 1024));
        assert_eq!(meminfo(text, "Mem"), None);
    }
}
