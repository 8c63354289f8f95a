//! What sandboxes and containers may do, and which namespaces they have.

use crate::proto::cri;
use cri::NamespaceMode as Mode;
use cri::security_profile::ProfileType;

/// Which network a pod is in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum NetworkMode {
    #[default]
    Pod,
    /// The machine's own: `hostNetwork`.
    Node,
}

/// Which processes a container sees.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum PidMode {
    /// Its own alone.
    #[default]
    Container,
    /// The pod's: `shareProcessNamespace`.
    Pod,
    /// The machine's: `hostPID`.
    Node,
    /// Those of another container, by its id: an ephemeral container's target.
    Target(String),
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum IpcMode {
    #[default]
    Pod,
    /// The machine's: `hostIPC`.
    Node,
}

/// The same in a sandbox and in its containers, but for a container's `Target`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Namespaces {
    pub network: NetworkMode,
    pub pid: PidMode,
    pub ipc: IpcMode,
}

impl Namespaces {
    pub(crate) fn to_proto(&self) -> cri::NamespaceOption {
        let network = match self.network {
            NetworkMode::Pod => Mode::Pod,
            NetworkMode::Node => Mode::Node,
        };
        let (pid, target_id) = match &self.pid {
            PidMode::Container => (Mode::Container, String::new()),
            PidMode::Pod => (Mode::Pod, String::new()),
            PidMode::Node => (Mode::Node, String::new()),
            PidMode::Target(id) => (Mode::Target, id.clone()),
        };
        let ipc = match self.ipc {
            IpcMode::Pod => Mode::Pod,
            IpcMode::Node => Mode::Node,
        };
        cri::NamespaceOption { network: network.into(), pid: pid.into(), ipc: ipc.into(), target_id }
    }
}

/// A seccomp or AppArmor profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Profile {
    RuntimeDefault,
    Unconfined,
    /// seccomp: path of a file; AppArmor: name of a loaded profile.
    Localhost(String),
}

impl Profile {
    fn to_proto(&self) -> cri::SecurityProfile {
        let (profile_type, localhost_ref) = match self {
            Profile::RuntimeDefault => (ProfileType::RuntimeDefault, String::new()),
            Profile::Unconfined => (ProfileType::Unconfined, String::new()),
            Profile::Localhost(name) => (ProfileType::Localhost, name.clone()),
        };
        cri::SecurityProfile { profile_type: profile_type.into(), localhost_ref }
    }
}

/// Names without `CAP_`; `ALL` is all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Capabilities {
    pub add: Vec<String>,
    pub drop: Vec<String>,
}

/// Of a container; a sandbox takes what has a meaning for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Security {
    pub privileged: bool,
    pub run_as_user: Option<i64>,
    /// Only together with a user.
    pub run_as_group: Option<i64>,
    /// Looked up in the image's `/etc/passwd`, where no `run_as_user` is given.
    pub run_as_username: String,
    pub supplemental_groups: Vec<i64>,
    pub readonly_rootfs: bool,
    pub no_new_privs: bool,
    pub capabilities: Capabilities,
    /// `None`: unconfined.
    pub seccomp: Option<Profile>,
    /// `None`: the runtime's default where the machine has AppArmor.
    pub apparmor: Option<Profile>,
    pub masked_paths: Vec<String>,
    pub readonly_paths: Vec<String>,
}

const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const READONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What Kubernetes gives a container that asks for nothing (`procMount: Default`).
impl Default for Security {
    fn default() -> Security {
        let owned = |paths: &[&str]| paths.iter().map(|&p| p.to_owned()).collect();
        Security {
            privileged: false,
            run_as_user: None,
            run_as_group: None,
            run_as_username: String::new(),
            supplemental_groups: Vec::new(),
            readonly_rootfs: false,
            no_new_privs: false,
            capabilities: Capabilities::default(),
            seccomp: None,
            apparmor: None,
            masked_paths: owned(MASKED),
            readonly_paths: owned(READONLY),
        }
    }
}

fn number(value: Option<i64>) -> Option<cri::Int64Value> {
    value.map(|value| cri::Int64Value { value })
}

impl Security {
    pub(crate) fn of_sandbox(&self, namespaces: &Namespaces) -> cri::LinuxSandboxSecurityContext {
        cri::LinuxSandboxSecurityContext {
            namespace_options: Some(namespaces.to_proto()),
            run_as_user: number(self.run_as_user),
            run_as_group: number(self.run_as_group),
            readonly_rootfs: self.readonly_rootfs,
            supplemental_groups: self.supplemental_groups.clone(),
            privileged: self.privileged,
            seccomp: self.seccomp.as_ref().map(Profile::to_proto),
            apparmor: self.apparmor.as_ref().map(Profile::to_proto),
        }
    }

    pub(crate) fn of_container(&self, namespaces: &Namespaces) -> cri::LinuxContainerSecurityContext {
        // A privileged container sees all of /proc and /sys.
        let paths = |paths: &[String]| if self.privileged { Vec::new() } else { paths.to_vec() };
        cri::LinuxContainerSecurityContext {
            capabilities: Some(cri::Capability {
                add_capabilities: self.capabilities.add.clone(),
                drop_capabilities: self.capabilities.drop.clone(),
            }),
            privileged: self.privileged,
            namespace_options: Some(namespaces.to_proto()),
            run_as_user: number(self.run_as_user),
            run_as_group: number(self.run_as_group),
            run_as_username: self.run_as_username.clone(),
            readonly_rootfs: self.readonly_rootfs,
            supplemental_groups: self.supplemental_groups.clone(),
            no_new_privs: self.no_new_privs,
            masked_paths: paths(&self.masked_paths),
            readonly_paths: paths(&self.readonly_paths),
            seccomp: self.seccomp.as_ref().map(Profile::to_proto),
            apparmor: self.apparmor.as_ref().map(Profile::to_proto),
        }
    }
}
