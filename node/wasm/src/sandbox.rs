//! What stands between guests and the machine beside WebAssembly itself. All of it is done while
//! the process has one thread: most of it is a property of the thread, inherited by later ones.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use anyhow::Context as _;
use landlock::{
    ABI, Access as _, AccessFs, BitFlags, CompatLevel, Compatible as _, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreated, RulesetCreatedAttr as _, RulesetStatus, Scope,
};
use nix::libc;
use rustix::process::{Resource, Rlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// Enters the tenant's network namespace and brings its loopback up.
pub fn enter_network(netns: BorrowedFd<'_>) -> anyhow::Result<()> {
    nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET).context("entering the network namespace")?;
    loopback_up().context("bringing the loopback up")
}

fn loopback_up() -> std::io::Result<()> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    // SAFETY: an all-zero ifreq is valid, and both calls read and write only it.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &mut request) < 0 {
            return Err(std::io::Error::last_os_error());
        }
        let up = libc::IFF_UP as libc::c_short;
        if request.ifr_ifru.ifru_flags & up == 0 {
            request.ifr_ifru.ifru_flags |= up;
            if libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request) < 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
    }
    Ok(())
}

/// Gives up the user, every capability and the way back.
pub fn drop_privileges(user: Option<(u32, u32)>) -> anyhow::Result<()> {
    use caps::CapSet;
    if rustix::process::geteuid().is_root() {
        // The bounding set needs a capability to shrink: first.
        for capability in caps::all() {
            let _ = caps::drop(None, CapSet::Bounding, capability);
        }
    }
    if let Some((uid, gid)) = user {
        nix::unistd::setgroups(&[]).context("dropping groups")?;
        let gid = nix::unistd::Gid::from_raw(gid);
        nix::unistd::setresgid(gid, gid, gid).context("dropping the group")?;
        let uid = nix::unistd::Uid::from_raw(uid);
        nix::unistd::setresuid(uid, uid, uid).context("dropping the user")?;
    }
    for set in [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        let _ = caps::clear(None, set);
    }
    if caps::read(None, CapSet::Permitted).is_ok_and(|left| !left.is_empty()) {
        anyhow::bail!("capabilities could not be dropped");
    }
    rustix::thread::set_no_new_privs(true).context("no_new_privs")?;
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable).context("non-dumpable")?;
    Ok(())
}

/// A directory and whether it may be written.
pub struct Path<'a> {
    pub dir: BorrowedFd<'a>,
    pub write: bool,
}

/// Confines file access to these directories; false where the kernel cannot.
pub fn landlock(paths: &[Path<'_>]) -> anyhow::Result<bool> {
    let all = AccessFs::from_all(ABI::V5);
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        .scope(Scope::AbstractUnixSocket | Scope::Signal)?
        .create()?;
    let devices = AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::Execute | AccessFs::IoctlDev;
    for path in paths {
        let access = match path.write {
            true => all & !devices,
            false => AccessFs::ReadFile | AccessFs::ReadDir,
        };
        ruleset = ruleset.add_rule(PathBeneath::new(path.dir, access))?;
    }
    // Certificates for guests' HTTPS, and the null device.
    ruleset = readable(ruleset, "/etc/ssl/certs", AccessFs::ReadFile | AccessFs::ReadDir)?;
    ruleset = readable(ruleset, "/dev/null", AccessFs::ReadFile | AccessFs::WriteFile)?;
    Ok(ruleset.restrict_self()?.ruleset != RulesetStatus::NotEnforced)
}

fn readable(ruleset: RulesetCreated, path: &str, access: BitFlags<AccessFs>) -> anyhow::Result<RulesetCreated> {
    Ok(match PathFd::new(path) {
        Ok(fd) => ruleset.add_rule(PathBeneath::new(fd, access))?,
        Err(_) => ruleset,
    })
}

/// System calls that neither runtime nor guest needs and that kernels have been broken with.
const DENIED: &[libc::c_long] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_adjtimex,
    libc::SYS_bpf,
    libc::SYS_chroot,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_get_mempolicy,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kcmp,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_kill,
    libc::SYS_lookup_dcookie,
    libc::SYS_mbind,
    libc::SYS_migrate_pages,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_move_pages,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_personality,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_pivot_root,
    libc::SYS_process_madvise,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_set_mempolicy,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_tkill,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_uselib,
];

/// Installs the system call filter for this and all later threads.
pub fn seccomp(sockets: bool) -> anyhow::Result<()> {
    let condition = |index, length, operator, value| SeccompCondition::new(index, length, operator, value);
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = DENIED.iter().map(|call| (*call, Vec::new())).collect();
    // Only Unix, IPv4 and IPv6 sockets: packet, netlink and crypto sockets reach much of the kernel.
    let families = match sockets {
        true => [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6]
            .into_iter()
            .map(|f| condition(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, f as u64))
            .collect::<Result<Vec<_>, _>>()?,
        false => Vec::new(),
    };
    rules.insert(
        libc::SYS_socket,
        match families.is_empty() {
            true => Vec::new(),
            false => vec![SeccompRule::new(families)?],
        },
    );
    // Threads yes, namespaces and processes no.
    let namespaces = [
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWNET,
        libc::CLONE_NEWNS,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWCGROUP,
    ];
    let mut clone = Vec::new();
    for flag in namespaces {
        let set = SeccompCmpOp::MaskedEq(flag as u64);
        clone.push(SeccompRule::new(vec![condition(0, SeccompCmpArgLen::Qword, set, flag as u64)?])?);
    }
    rules.insert(libc::SYS_clone, clone);
    // A thread may signal its own process (abort does); nobody else.
    let own = u64::from(std::process::id());
    rules.insert(
        libc::SYS_tgkill,
        vec![SeccompRule::new(vec![condition(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, own)?])?],
    );
    install(rules, libc::EPERM as u32)?;
    // Its flags lie in memory, out of a filter's sight: callers fall back to clone.
    install(BTreeMap::from([(libc::SYS_clone3, Vec::new())]), libc::ENOSYS as u32)
}

fn install(rules: BTreeMap<i64, Vec<SeccompRule>>, errno: u32) -> anyhow::Result<()> {
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(errno),
        std::env::consts::ARCH.try_into()?,
    )?;
    let program: BpfProgram = filter.try_into()?;
    seccompiler::apply_filter(&program).context("seccomp")?;
    Ok(())
}

pub fn limit(resource: Resource, value: u64) {
    let value = Some(value);
    let _ = rustix::process::setrlimit(resource, Rlimit { current: value, maximum: value });
}

/// As many descriptors as the machine lets us: each idle proxy holds one.
pub fn raise_descriptors() {
    let now = rustix::process::getrlimit(Resource::Nofile);
    let _ = rustix::process::setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum });
}

/// The compiler's confinement: standard streams and nothing else.
pub fn enter_compiler(memory: u64, seconds: u64, user: Option<(u32, u32)>) -> anyhow::Result<()> {
    limit(Resource::As, memory);
    limit(Resource::Cpu, seconds);
    limit(Resource::Core, 0);
    limit(Resource::Nofile, 64);
    drop_privileges(user)?;
    landlock(&[])?;
    seccomp(false)
}

/// Opens a directory to be held while its path may become unreachable.
pub fn open_dir(path: &std::path::Path) -> anyhow::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).with_context(|| path.display().to_string())
}
