//! From a pod's spec to what CRI is asked for. No I/O.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1 as core;
use sampan_oci::{
    Capabilities, ContainerConfig, Device, Dns, IpcMode, Mount, Namespaces, NetworkMode, PidMode, PortMapping, Profile,
    Propagation, Protocol, Resources, SandboxConfig, Security, cgroup,
};

use crate::pod::{resources, spec};
use crate::runtime::ContainerId;

pub const POD_NAME: &str = "io.kubernetes.pod.name";
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub const POD_UID: &str = "io.kubernetes.pod.uid";
pub const CONTAINER: &str = "io.kubernetes.container.name";
/// Whose these are, where nodes share a containerd.
pub const NODE: &str = "sampan.io/node";
/// What a container's end leaves as its message, as the kubelet notes it.
pub const MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";

/// The groups of the tree of control groups, by quality of service.
pub const QOS: [&str; 3] = ["guaranteed", "burstable", "besteffort"];

/// What a sandbox gets from the cluster.
pub struct Cluster<'a> {
    pub nameserver: IpAddr,
    pub domain: &'a str,
    /// What the node itself asks.
    pub node: Dns,
}

/// What a file of that name says.
pub fn resolv_conf(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let first = words.next();
        let words = words.map(str::to_owned);
        match first {
            Some("nameserver") => dns.servers.extend(words.take(1)),
            Some("search" | "domain") => dns.searches = words.collect(),
            Some("options") => dns.options.extend(words),
            _ => {}
        }
    }
    dns
}

fn pod_security(pod: &core::Pod) -> core::PodSecurityContext {
    pod.spec.as_ref().and_then(|spec| spec.security_context.clone()).unwrap_or_default()
}

fn is(flag: Option<bool>) -> bool {
    flag == Some(true)
}

/// Whether a pod is in the node's network.
pub fn in_host_network(pod: &core::Pod) -> bool {
    pod.spec.as_ref().is_some_and(|spec| is(spec.host_network))
}

fn namespaces(pod: &core::Pod) -> Namespaces {
    let Some(spec) = &pod.spec else { return Namespaces::default() };
    let pid = match (is(spec.host_pid), is(spec.share_process_namespace)) {
        (true, _) => PidMode::Node,
        (_, true) => PidMode::Pod,
        _ => PidMode::Container,
    };
    Namespaces {
        network: if is(spec.host_network) { NetworkMode::Node } else { NetworkMode::Pod },
        pid,
        ipc: if is(spec.host_ipc) { IpcMode::Node } else { IpcMode::Pod },
    }
}

/// Resolution of names, as the pod's policy has it; `None`: as the node's.
pub fn dns(pod: &core::Pod, cluster: &Cluster<'_>) -> Option<Dns> {
    let spec = pod.spec.as_ref()?;
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let of_node = policy == "Default" || policy == "ClusterFirst" && is(spec.host_network);
    let own = spec.dns_config.as_ref();
    if of_node && own.is_none() {
        return None;
    }
    let mut dns = if of_node { cluster.node.clone() } else { Dns::default() };
    if !of_node && policy != "None" {
        let (namespace, domain) = (crate::pod::spec::namespace(pod), cluster.domain);
        dns.servers.push(cluster.nameserver.to_string());
        dns.searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()];
        dns.options.push("ndots:5".to_owned());
    }
    for server in own.and_then(|own| own.nameservers.as_deref()).unwrap_or_default() {
        if !dns.servers.contains(server) {
            dns.servers.push(server.clone());
        }
    }
    for search in own.and_then(|own| own.searches.as_deref()).unwrap_or_default() {
        if !dns.searches.contains(search) {
            dns.searches.push(search.clone());
        }
    }
    for option in own.and_then(|own| own.options.as_deref()).unwrap_or_default() {
        let name = option.name.clone().unwrap_or_default();
        dns.options.retain(|known| known.split(':').next() != Some(name.as_str()));
        dns.options.push(option.value.as_ref().map_or(name.clone(), |value| format!("{name}:{value}")));
    }
    Some(dns)
}

fn profile(seccomp: &core::SeccompProfile) -> Option<Profile> {
    match seccomp.type_.as_str() {
        "RuntimeDefault" => Some(Profile::RuntimeDefault),
        "Localhost" => {
            let name = seccomp.localhost_profile.clone().unwrap_or_default();
            Some(Profile::Localhost(format!("/var/lib/kubelet/seccomp/{name}")))
        }
        _ => Some(Profile::Unconfined),
    }
}

fn app_armor(profile: &core::AppArmorProfile) -> Profile {
    match profile.type_.as_str() {
        "RuntimeDefault" => Profile::RuntimeDefault,
        "Localhost" => Profile::Localhost(profile.localhost_profile.clone().unwrap_or_default()),
        _ => Profile::Unconfined,
    }
}

fn groups(pod: &core::PodSecurityContext) -> Vec<i64> {
    let mut groups = pod.supplemental_groups.clone().unwrap_or_default();
    groups.extend(pod.fs_group.filter(|group| !groups.contains(group)));
    groups
}

/// Where its logs lie, and everything that its containers share.
pub fn sandbox(pod: &core::Pod, cluster: &Cluster<'_>, hostname: String, logs: &Path, cgroup: String) -> SandboxConfig {
    let own = pod_security(pod);
    let labels = [(POD_NAME, spec::name(pod)), (POD_NAMESPACE, spec::namespace(pod)), (POD_UID, spec::uid(pod))];
    let mut sysctls: BTreeMap<String, String> =
        own.sysctls.iter().flatten().map(|sysctl| (sysctl.name.clone(), sysctl.value.clone())).collect();
    let in_host_network = in_host_network(pod);
    if !in_host_network {
        // A Wasm guest's host is nobody, and a port is the pod's own to open.
        sysctls.entry("net.ipv4.ip_unprivileged_port_start".to_owned()).or_insert_with(|| "0".to_owned());
    }
    let privileged = spec::containers(pod)
        .any(|(container, _)| container.security_context.as_ref().is_some_and(|context| is(context.privileged)));
    SandboxConfig {
        name: spec::name(pod).to_owned(),
        uid: spec::uid(pod).to_owned(),
        namespace: spec::namespace(pod).to_owned(),
        attempt: 0,
        hostname: if in_host_network { String::new() } else { hostname },
        log_directory: logs.display().to_string(),
        dns: dns(pod, cluster),
        port_mappings: ports(pod),
        labels: labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        annotations: BTreeMap::new(),
        cgroup_parent: cgroup,
        sysctls,
        namespaces: namespaces(pod),
        security: Security {
            privileged,
            run_as_user: own.run_as_user,
            run_as_group: own.run_as_group.filter(|_| own.run_as_user.is_some()),
            supplemental_groups: groups(&own),
            seccomp: Some(Profile::RuntimeDefault),
            ..Security::default()
        },
        resources: None,
        overhead: None,
        runtime_handler: String::new(),
    }
}

/// More processes and threads than a pod of good will has, and few enough for the node to go on.
const PROCESSES: i64 = 4096;

/// What all containers of a pod together may use: where each has a limit, their sum.
pub fn pod_limits(pod: &core::Pod) -> cgroup::Limits {
    let mut all = Some((0_u64, 0_u64));
    for (container, _) in spec::containers(pod) {
        let (memory, cpu) = resources::enforced(container);
        all = all.map(|(bytes, millicores)| (bytes + memory, millicores + u64::from(cpu)));
        all = all.filter(|_| memory > 0 && cpu > 0);
    }
    let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let asked = u64::try_from(resources::requested(pod, "cpu") / 1_000_000).unwrap_or(0);
    cgroup::Limits {
        cpu_shares: Some((asked * 1024 / 1000).max(LEAST_SHARES)),
        cpu_quota: all.map(|(_, millicores)| (signed(millicores) * PERIOD / 1000).max(LEAST_QUOTA)),
        memory: all.map(|(bytes, _)| signed(bytes)),
        pids: Some(PROCESSES),
    }
}

/// The group of the tree of control groups that a pod is in.
pub fn qos(pod: &core::Pod) -> &'static str {
    let [guaranteed, burstable, best_effort] = QOS;
    match resources::qos_class(pod) {
        "Guaranteed" => guaranteed,
        "Burstable" => burstable,
        _ => best_effort,
    }
}

fn ports(pod: &core::Pod) -> Vec<PortMapping> {
    let mut all = Vec::new();
    for (container, _) in spec::containers(pod) {
        for port in container.ports.iter().flatten() {
            let number = |port: i32| u16::try_from(port).ok().filter(|port| *port > 0);
            let Some((container_port, host_port)) =
                number(port.container_port).zip(port.host_port.and_then(number)).filter(|_| !in_host_network(pod))
            else {
                continue;
            };
            let protocol = match port.protocol.as_deref() {
                Some("UDP") => Protocol::Udp,
                Some("SCTP") => Protocol::Sctp,
                _ => Protocol::Tcp,
            };
            let host_ip = port.host_ip.as_ref().and_then(|ip| ip.parse().ok());
            all.push(PortMapping { protocol, container_port, host_port, host_ip });
        }
    }
    all
}

/// What a start knows beside the spec.
pub struct Start<'a> {
    pub id: &'a ContainerId,
    /// containerd's id of the container whose processes it is to see.
    pub target: Option<String>,
    /// containerd's name of the image.
    pub image: String,
    /// As the image names it, where that is a number.
    pub image_user: Option<i64>,
    pub command: Vec<String>,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    pub mounts: Vec<Mount>,
    /// Below the sandbox's log directory.
    pub log: PathBuf,
    /// Bytes of memory that the node gives pods: for the kernel's choice of whom to kill.
    pub node_memory: u64,
}

/// The error says why the container may not run as it is asked for.
pub fn container(pod: &core::Pod, container: &core::Container, start: Start<'_>) -> Result<ContainerConfig, String> {
    let security = security(pod, container, start.image_user)?;
    let of_pod = pod_security(pod);
    let own = container.security_context.clone().unwrap_or_default();
    if is(own.run_as_non_root.or(of_pod.run_as_non_root)) {
        let who = format!("(pod: \"{}\", container: {})", spec::name(pod), container.name);
        match security.run_as_user.or(start.image_user) {
            Some(0) if security.run_as_user.is_some() => {
                return Err(format!("container's runAsUser breaks non-root policy {who}"));
            }
            Some(0) => return Err(format!("container has runAsNonRoot and image will run as root {who}")),
            None => {
                return Err(format!(
                    "container has runAsNonRoot and image has a non-numeric user, cannot verify user is non-root {who}"
                ));
            }
            Some(_) => {}
        }
    }
    let policy = container.termination_message_policy.clone().unwrap_or_default();
    let labels = [
        (POD_NAME, spec::name(pod)),
        (POD_NAMESPACE, spec::namespace(pod)),
        (POD_UID, spec::uid(pod)),
        (CONTAINER, &container.name),
    ];
    Ok(ContainerConfig {
        name: container.name.clone(),
        attempt: start.id.attempt,
        image: start.image,
        command: start.command,
        args: start.args,
        working_dir: container.working_dir.clone().unwrap_or_default(),
        envs: start.env,
        mounts: start.mounts,
        devices: Vec::<Device>::new(),
        labels: labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        annotations: BTreeMap::from([(MESSAGE_POLICY.to_owned(), policy)]),
        log_path: start.log.display().to_string(),
        stdin: is(container.stdin),
        stdin_once: is(container.stdin_once),
        tty: is(container.tty),
        resources: limits(pod, container, start.node_memory),
        namespaces: match start.target {
            Some(target) => Namespaces { pid: PidMode::Target(target), ..namespaces(pod) },
            None => namespaces(pod),
        },
        security,
    })
}

fn security(pod: &core::Pod, container: &core::Container, image_user: Option<i64>) -> Result<Security, String> {
    let of_pod = pod_security(pod);
    let own = container.security_context.clone().unwrap_or_default();
    let privileged = is(own.privileged);
    let group = own.run_as_group.or(of_pod.run_as_group);
    // A group needs a user beside it: the image's, if it has a number.
    let user = own.run_as_user.or(of_pod.run_as_user).or(image_user.filter(|_| group.is_some()));
    if group.is_some() && user.is_none() {
        return Err("securityContext.runAsGroup: the image's user is a name; give runAsUser too".to_owned());
    }
    let capabilities = own.capabilities.unwrap_or_default();
    let seccomp = own.seccomp_profile.as_ref().or(of_pod.seccomp_profile.as_ref());
    let defaults = Security::default();
    let unmasked = own.proc_mount.as_deref() == Some("Unmasked");
    Ok(Security {
        privileged,
        run_as_user: user,
        run_as_group: group,
        run_as_username: String::new(),
        supplemental_groups: groups(&of_pod),
        readonly_rootfs: is(own.read_only_root_filesystem),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        capabilities: Capabilities {
            add: capabilities.add.unwrap_or_default(),
            drop: capabilities.drop.unwrap_or_default(),
        },
        seccomp: match seccomp {
            Some(given) => profile(given),
            // More than the kubelet does unless it is told so: an image should not need more.
            None if !privileged => Some(Profile::RuntimeDefault),
            None => None,
        },
        apparmor: own.app_armor_profile.as_ref().or(of_pod.app_armor_profile.as_ref()).map(app_armor),
        masked_paths: if unmasked { Vec::new() } else { defaults.masked_paths },
        readonly_paths: if unmasked { Vec::new() } else { defaults.readonly_paths },
    })
}

const PERIOD: i64 = 100_000;
/// What the kernel takes as least.
const LEAST_QUOTA: i64 = 1000;
const LEAST_SHARES: u64 = 2;

/// Limits of one container, by the kubelet's rules.
pub fn limits(pod: &core::Pod, container: &core::Container, node_memory: u64) -> Resources {
    let (memory, cpu) = resources::enforced(container);
    let asked = resources::requests(container).and_then(|list| list.get("cpu")).map_or(0, resources::milli);
    let shares = if asked == 0 && cpu > 0 { u64::from(cpu) } else { asked };
    let shares = (shares * 1024 / 1000).max(LEAST_SHARES);
    let quota = if cpu == 0 { 0 } else { (i64::from(cpu) * PERIOD / 1000).max(LEAST_QUOTA) };
    let bytes = i64::try_from(memory).unwrap_or(i64::MAX);
    Resources {
        cpu_period: if quota == 0 { 0 } else { PERIOD },
        cpu_quota: quota,
        cpu_shares: i64::try_from(shares).unwrap_or(i64::MAX),
        memory_limit: bytes,
        // No swap beside it.
        memory_swap_limit: bytes,
        oom_score_adj: oom_score(pod, container, node_memory),
        ..Resources::default()
    }
}

/// Whom the kernel kills first when the node runs out of memory: who asked for little and uses much.
fn oom_score(pod: &core::Pod, container: &core::Container, node_memory: u64) -> i64 {
    match resources::qos_class(pod) {
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            let asked = resources::requests(container).and_then(|list| list.get("memory")).map_or(0, resources::value);
            let part = u128::from(asked) * 1000 / u128::from(node_memory.max(1));
            (1000 - i64::try_from(part).unwrap_or(1000)).clamp(3, 999)
        }
    }
}

/// A mount as containerd takes it.
pub fn mount(source: &Path, target: &str, read_only: bool, propagation: Option<&str>) -> Mount {
    Mount {
        container_path: target.to_owned(),
        host_path: source.display().to_string(),
        readonly: read_only,
        propagation: match propagation {
            Some("HostToContainer") => Propagation::HostToContainer,
            Some("Bidirectional") => Propagation::Bidirectional,
            _ => Propagation::Private,
        },
    }
}

/// The lines of a pod's `/etc/hosts`.
pub fn hosts(pod: &core::Pod, hostname: &str, addresses: &[IpAddr], domain: &str) -> String {
    let mut text =
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
        fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n"
            .to_owned();
    let spec = pod.spec.as_ref();
    let subdomain = spec.and_then(|spec| spec.subdomain.as_deref()).filter(|name| !name.is_empty());
    for address in addresses {
        let full = subdomain.map(|name| format!("{hostname}.{name}.{}.svc.{domain}\t", spec::namespace(pod)));
        text.push_str(&format!("{address}\t{}{hostname}\n", full.unwrap_or_default()));
    }
    text + &aliases(pod)
}

/// The lines that a pod adds to it.
pub fn aliases(pod: &core::Pod) -> String {
    let aliases = pod.spec.as_ref().and_then(|spec| spec.host_aliases.as_deref()).unwrap_or_default();
    let names = |alias: &core::HostAlias| alias.hostnames.as_deref().unwrap_or_default().join("\t");
    aliases.iter().map(|alias| format!("{}\t{}\n", alias.ip, names(alias))).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn pod(spec: serde_json::Value) -> core::Pod {
        serde_json::from_value(json!({
            "metadata": { "name": "web", "namespace": "shop", "uid": "u-1" }, "spec": spec,
        }))
        .unwrap()
    }

    fn run(pod: &core::Pod, image_user: Option<i64>) -> Result<ContainerConfig, String> {
        let id = ContainerId { tenant: "shop.u-1".into(), pod_uid: "u-1".into(), container: "a".into(), attempt: 2 };
        let start = Start {
            id: &id,
            target: None,
            image: "i".into(),
            image_user,
            command: vec![],
            args: vec![],
            env: vec![],
            mounts: vec![],
            log: "a/2.log".into(),
            node_memory: 1 << 30,
        };
        container(pod, pod.spec.as_ref().unwrap().containers.first().unwrap(), start)
    }

    #[test]
    fn the_container_speaks_before_the_pod() {
        let pod = pod(json!({
            "securityContext": { "runAsUser": 7, "fsGroup": 9, "supplementalGroups": [8],
                "seccompProfile": { "type": "Unconfined" } },
            "containers": [{ "name": "a", "securityContext": { "runAsUser": 5, "allowPrivilegeEscalation": false,
                "capabilities": { "drop": ["ALL"] }, "readOnlyRootFilesystem": true } }],
        }));
        let security = run(&pod, None).unwrap().security;
        assert_eq!((security.run_as_user, security.supplemental_groups.as_slice()), (Some(5), &[8, 9][..]));
        assert_eq!(security.seccomp, Some(Profile::Unconfined));
        assert!(security.no_new_privs && security.readonly_rootfs && security.capabilities.drop == ["ALL"]);
    }

    #[test]
    fn root_is_told_from_the_image() {
        let pod = pod(json!({ "securityContext": { "runAsNonRoot": true }, "containers": [{ "name": "a" }] }));
        assert!(run(&pod, Some(1000)).is_ok());
        assert!(run(&pod, Some(0)).unwrap_err().contains("image will run as root"));
        assert!(run(&pod, None).unwrap_err().contains("non-numeric user"));
    }

    #[test]
    fn limits_as_the_kubelet_reckons() {
        let of = |resources: serde_json::Value| {
            let pod = pod(json!({ "containers": [{ "name": "a", "resources": resources }] }));
            limits(&pod, pod.spec.as_ref().unwrap().containers.first().unwrap(), 1 << 30)
        };
        let none = of(json!({}));
        assert_eq!((none.cpu_shares, none.cpu_quota, none.memory_limit, none.oom_score_adj), (2, 0, 0, 1000));
        let all = of(
            json!({ "limits": { "cpu": "250m", "memory": "64Mi" }, "requests": { "cpu": "100m", "memory": "64Mi" } }),
        );
        assert_eq!((all.cpu_shares, all.cpu_quota, all.cpu_period), (102, 25_000, 100_000));
        assert_eq!((all.memory_limit, all.memory_swap_limit, all.oom_score_adj), (64 << 20, 64 << 20, 938));
        let least = json!({ "cpu": "1m", "memory": "1Mi" });
        let sure = of(json!({ "limits": least, "requests": least }));
        assert_eq!((sure.cpu_quota, sure.oom_score_adj), (1000, -997));
    }

    #[test]
    fn a_pod_is_limited_where_all_of_it_is() {
        let of = |containers: serde_json::Value| pod_limits(&pod(json!({ "containers": containers })));
        let one = json!({ "name": "a", "resources": { "limits": { "cpu": "250m", "memory": "64Mi" } } });
        let two = of(json!([one.clone(), one.clone()]));
        assert_eq!((two.cpu_quota, two.memory, two.pids), (Some(50_000), Some(128 << 20), Some(PROCESSES)));
        let half = of(json!([one, { "name": "b" }]));
        assert_eq!((half.cpu_quota, half.memory, half.pids), (None, None, Some(PROCESSES)));
    }

    #[test]
    fn names_are_resolved_by_the_pods_policy() {
        let cluster = Cluster {
            nameserver: [10, 96, 0, 10].into(),
            domain: "cluster.local",
            node: resolv_conf("# x\nsearch example\nnameserver 192.0.2.53\noptions edns0\n"),
        };
        let of = |spec: serde_json::Value| dns(&pod(spec), &cluster);
        let usual = of(json!({ "containers": [] })).unwrap();
        assert_eq!((usual.servers.as_slice(), usual.searches.len()), (&["10.96.0.10".to_owned()][..], 3));
        assert_eq!(usual.options, ["ndots:5"]);
        assert_eq!(of(json!({ "containers": [], "dnsPolicy": "Default" })), None);
        assert_eq!(of(json!({ "containers": [], "hostNetwork": true })), None);
        let own =
            of(json!({ "containers": [], "dnsConfig": { "options": [{ "name": "ndots", "value": "1" }] } })).unwrap();
        assert_eq!(own.options, ["ndots:1"]);
        let nodes = of(json!({ "containers": [], "dnsPolicy": "Default", "dnsConfig": { "options": [{ "name": "ndots", "value": "1" }] } })).unwrap();
        assert_eq!((nodes.servers.as_slice(), nodes.searches.len()), (&["192.0.2.53".to_owned()][..], 1));
        assert_eq!(nodes.options, ["edns0", "ndots:1"]);
        let only = of(json!({ "containers": [], "dnsPolicy": "None", "dnsConfig": { "nameservers": ["192.0.2.1"] } }))
            .unwrap();
        assert_eq!((only.servers.as_slice(), only.searches.len()), (&["192.0.2.1".to_owned()][..], 0));
    }

    #[test]
    fn a_file_of_hosts() {
        let pod = pod(json!({ "subdomain": "db", "containers": [],
            "hostAliases": [{ "ip": "192.0.2.7", "hostnames": ["a", "b"] }] }));
        let text = hosts(&pod, "web", &[[10, 1, 2, 3].into()], "cluster.local");
        assert!(text.contains("\n10.1.2.3\tweb.db.shop.svc.cluster.local\tweb\n"), "{text}");
        assert!(text.ends_with("192.0.2.7\ta\tb\n"), "{text}");
    }

    #[test]
    fn ports_of_the_node_and_namespaces() {
        let spec = json!({ "hostPID": true, "shareProcessNamespace": true, "containers": [
            { "name": "a", "ports": [{ "containerPort": 80, "hostPort": 8080 }, { "containerPort": 81 }] }] });
        let cluster = Cluster {
            nameserver: [10, 96, 0, 10].into(),
            domain: "cluster.local",
            node: resolv_conf("# x\nsearch example\nnameserver 192.0.2.53\noptions edns0\n"),
        };
        let made = sandbox(&pod(spec), &cluster, "web".into(), Path::new("/l"), "/g".into());
        assert_eq!(made.port_mappings.len(), 1);
        assert_eq!(made.namespaces.pid, PidMode::Node);
        assert_eq!(made.hostname, "web");
    }
}
