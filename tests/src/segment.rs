//! Machines for tests: network namespaces on segments of their own, with a router between them and no
//! way out. Descriptors of this process alone hold them, so nothing is left of a test that is killed.

use std::ffi::OsString;
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;
use std::sync::Arc;

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use crate::process::{Finished, run, run_with_input};

/// Which network namespace programs run in: this process', or a machine's.
#[derive(Clone, Default)]
pub struct Place(Option<Arc<File>>);

impl Place {
    /// A network namespace with `lo` up and nothing else.
    fn new() -> Self {
        let made = std::thread::spawn(|| {
            // SAFETY: the thread shares no file descriptors that it would unshare, and ends here.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let place = Self(Some(Arc::new(made.join().unwrap())));
        place.ip("link set lo up");
        place
    }

    /// The path of the namespace, for `nsenter` and `ip`.
    fn path(&self) -> String {
        let fd = self.0.as_ref().unwrap().as_raw_fd();
        format!("/proc/{}/fd/{fd}", std::process::id())
    }

    /// A program and its arguments, to be started there.
    pub(crate) fn command(&self, program: &Path, arguments: &[&str]) -> (OsString, Vec<OsString>) {
        let arguments = arguments.iter().map(OsString::from);
        match self.0 {
            None => (program.into(), arguments.collect()),
            // Not `ip netns exec`, which mounts another /sys.
            Some(_) => {
                let enter = [format!("--net={}", self.path()).into(), OsString::from("--"), program.into()];
                ("nsenter".into(), enter.into_iter().chain(arguments).collect())
            }
        }
    }

    pub fn run(&self, program: &Path, arguments: &[&str]) -> Finished {
        self.run_with_input(program, arguments, "")
    }

    pub fn run_with_input(&self, program: &Path, arguments: &[&str], input: &str) -> Finished {
        let (program, arguments) = self.command(program, arguments);
        let arguments: Vec<&str> = arguments.iter().map(|argument| argument.to_str().unwrap()).collect();
        run_with_input(Path::new(&program), &arguments, input)
    }

    /// What `work` answers on a thread in there. Sockets that it opens stay there.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                if let Some(namespace) = &self.0 {
                    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                }
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs lines of `ip`, which have to work.
    pub fn ip(&self, lines: &str) {
        self.must("ip", &["-batch", "-"], lines);
    }

    fn must(&self, program: &str, arguments: &[&str], input: &str) -> String {
        let finished = self.run_with_input(Path::new(program), arguments, input);
        assert!(finished.ok, "{program} {arguments:?}: {}{}\n{input}", finished.out, finished.err);
        finished.out
    }

    /// A setting of this network, where the kernel has it.
    fn set(&self, name: &str, value: &str) {
        let path = Path::new("/proc/sys/net").join(name);
        self.inside(|| {
            if path.exists() {
                std::fs::write(&path, value).unwrap()
            }
        });
    }
}

/// A machine on a segment.
#[derive(Clone)]
pub struct Machine {
    pub place: Place,
    pub address: Ipv4Addr,
    /// Its cable, as the router knows it.
    cable: String,
}

/// Segments with a router between them, which is everybody's way to everywhere else.
pub struct Fabric {
    router: Place,
}

/// What the router is beside its segments.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// Networks for documentation: nobody's own.
fn subnet(segment: u8) -> [u8; 3] {
    [[198, 51, 100], [203, 0, 113]][usize::from(segment)]
}

fn address(segment: u8, host: u8) -> Ipv4Addr {
    let [a, b, c] = subnet(segment);
    Ipv4Addr::new(a, b, c, host)
}

impl Fabric {
    /// With one segment, or two.
    pub fn new(segments: u8) -> Self {
        let router = Place::new();
        router.ip(&format!("address add {OUTSIDE}/32 dev lo"));
        for segment in 0..segments {
            let gateway = address(segment, 1);
            router.ip(&format!(
                "link add segment{segment} type bridge\naddress add {gateway}/24 dev segment{segment}\n\
                 link set segment{segment} up"
            ));
        }
        router.set("ipv4/ip_forward", "1");
        // What stays on a segment is none of the router's business.
        router.set("bridge/bridge-nf-call-iptables", "0");
        Self { router }
    }

    /// A machine with an address and a cable.
    pub fn machine(&self, segment: u8, host: u8) -> Machine {
        let place = Place::new();
        let (address, gateway, cable) = (address(segment, host), address(segment, 1), format!("cable{segment}-{host}"));
        self.router.ip(&format!(
            "link add {cable} type veth peer name eth0 netns {}\nlink set {cable} master segment{segment} up",
            place.path()
        ));
        place.ip(&format!("address add {address}/24 dev eth0\nlink set eth0 up\nroute add default via {gateway}"));
        Machine { place, address, cable }
    }

    /// Pulls a machine's cable.
    pub fn cut(&self, machine: &Machine) {
        self.router.ip(&format!("link set {} down", machine.cable));
    }

    pub fn heal(&self, machine: &Machine) {
        self.router.ip(&format!("link set {} up", machine.cable));
    }

    /// Where somebody else's machine would be.
    pub fn outside(&self) -> &Place {
        &self.router
    }

    /// Counts from now on what the router gets to see of these ranges. Nothing of them should ever come by.
    pub fn watch(&self, ranges: &[&str]) {
        let ranges = ranges.join(", ");
        let rules = format!(
            "table ip leaks {{\n  counter leaked {{ }}\n  counter tunnelled {{ }}\n  set inner {{ type ipv4_addr; flags interval; elements = {{ {ranges} }}; }}\n  \
             chain seen {{\n    type filter hook prerouting priority raw;\n    \
             ip saddr @inner counter name leaked\n    ip daddr @inner counter name leaked\n  }}\n  \
             chain tunnelled {{ type filter hook forward priority 0; udp dport 8472 counter name tunnelled; }}\n}}\n"
        );
        self.router.must("nft", &["-f", "-"], &rules);
    }

    /// How many packets of the watched ranges came by, and how many of tunnels.
    pub fn seen(&self) -> (u64, u64) {
        let count = |name: &str| {
            let listed = self.router.must("nft", &["-j", "list", "counter", "ip", "leaks", name], "");
            let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
            let counters = listed["nftables"].as_array().unwrap();
            counters.iter().find_map(|it| it["counter"]["packets"].as_u64()).unwrap()
        };
        (count("leaked"), count("tunnelled"))
    }
}

/// Whether machines can be made here; if not, says why.
pub fn makes_machines() -> bool {
    let missing = |program: &&&str| !run(Path::new("sh"), &["-c", &format!("command -v {program}")]).ok;
    let why = if !rustix::process::geteuid().is_root() {
        "needs root".to_owned()
    } else if let Some(program) = ["ip", "nft", "nsenter"].iter().find(missing) {
        format!("needs the program {program}")
    } else {
        return true;
    };
    println!("skipped: {why}");
    false
}
