//! The command line: what can be asked for, and nothing of how it is done.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::Shell;
use ipnet::IpNet;

/// A workload orchestrator that speaks the Kubernetes API and runs WebAssembly beside containers.
#[derive(Debug, Parser)]
#[command(name = "sampan", version = crate::VERSION, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a control plane and one node, in the foreground, until ctrl-c
    Up(UpArgs),
    /// Run the control plane only
    Server(ServerArgs),
    /// Run a node only
    Node(NodeArgs),
    /// Remove what a killed cluster left on this machine: processes, containers, control groups, interfaces, routes, tables
    Down(DownArgs),
    /// Import, list and remove images on the cluster's nodes
    #[command(subcommand)]
    Image(ImageCommand),
    /// Run a module: import it, make a Deployment and a Service, wait, print the address
    Run(RunArgs),
    /// Show the cluster at a glance
    Status(StatusArgs),
    /// Apply manifests (server-side)
    Apply(ApplyArgs),
    /// Show objects
    Get(GetArgs),
    /// Show what a pod wrote
    Logs(LogsArgs),
    /// Delete objects
    Delete(DeleteArgs),
    /// Make tokens with which nodes join
    #[command(subcommand)]
    Token(TokenCommand),
    /// Show the version of this program and of the server
    Version(VersionArgs),
    /// Write completions for a shell to standard output
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// The process that holds the guests of one tenant
    #[command(hide = true)]
    WasmHost {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// The process that compiles one module
    #[command(hide = true)]
    WasmCompile {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// What every long-running part takes.
#[derive(Args, Clone, Debug, Default)]
pub struct DaemonArgs {
    /// Where everything is kept [default: /var/lib/sampan as root, else ~/.local/share/sampan]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub data_dir: Option<PathBuf>,
    /// How log lines on standard error look [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// A YAML file with any of these flags as keys (dataDir, listen, …); flags win
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
}

#[derive(Args, Clone, Debug, Default)]
pub struct ControlPlaneArgs {
    /// Address and port of the API; port 0 takes a free one
    /// [default: 0.0.0.0:6443 as root, else 127.0.0.1:6443]
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,
    /// Where the administrator's kubeconfig is written [default: DATA_DIR/kubeconfig]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub kubeconfig: Option<PathBuf>,
    /// Range of pod addresses, a private one; each node gets a part, two addresses a pod
    /// [default: a free one]
    #[arg(long, value_name = "RANGE")]
    pub cluster_cidr: Option<IpNet>,
    /// Range of Service addresses, a private one [default: a free one]
    #[arg(long, value_name = "RANGE")]
    pub service_cidr: Option<IpNet>,
}

#[derive(Args, Clone, Debug, Default)]
pub struct NodeFlags {
    /// Name of this node [default: the host's name]
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// Address of this machine that other nodes and the server reach it at
    /// [default: the one that the default route leaves from]
    #[arg(long, value_name = "ADDR")]
    pub node_ip: Option<Ipv4Addr>,
    /// How many pods this node takes [default: 1000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=30_000))]
    pub max_pods: Option<u32>,
    /// Run Linux containers in this containerd [default: one of its own, when the first is there to run]
    #[arg(long, value_name = "SOCKET", value_hint = ValueHint::FilePath)]
    pub containerd: Option<PathBuf>,
    /// How full the disk is, in percent, when images that no pod uses are removed; 100: only for pods that need the room
    /// [default: 85]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub image_gc_high_threshold: Option<u8>,
    /// How full it is after that [default: 80]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub image_gc_low_threshold: Option<u8>,
}

#[derive(Args, Debug)]
pub struct UpArgs {
    #[command(flatten)]
    pub daemon: DaemonArgs,
    #[command(flatten)]
    pub control_plane: ControlPlaneArgs,
    #[command(flatten)]
    pub node: NodeFlags,
}

#[derive(Args, Debug)]
pub struct ServerArgs {
    #[command(flatten)]
    pub daemon: DaemonArgs,
    #[command(flatten)]
    pub control_plane: ControlPlaneArgs,
}

#[derive(Args, Debug)]
pub struct NodeArgs {
    #[command(flatten)]
    pub daemon: DaemonArgs,
    #[command(flatten)]
    pub node: NodeFlags,
    /// The control plane: https://ADDR:PORT
    #[arg(long, value_name = "URL", env = "SAMPAN_SERVER", value_hint = ValueHint::Url)]
    pub server: Option<String>,
    /// What `sampan token create` printed; needed until the node has its certificate
    #[arg(long, value_name = "TOKEN", env = "SAMPAN_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
}

#[derive(Args, Debug)]
pub struct DownArgs {
    /// The data dir of the cluster or node that was killed
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub data_dir: PathBuf,
}

/// Which cluster a client command talks to.
#[derive(Args, Clone, Debug, Default)]
pub struct ClusterArgs {
    /// The kubeconfig [default: $KUBECONFIG, else the one of a cluster `up` runs in the default data dir]
    #[arg(long, value_name = "FILE", global = true, value_hint = ValueHint::FilePath)]
    pub kubeconfig: Option<PathBuf>,
}

/// How `get` shows objects instead of in columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Json,
    Yaml,
    Wide,
    Name,
}

/// What a program reads instead of a person, where there is one form only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum JsonOutput {
    Json,
}

#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Bring a .wasm file onto every node of the cluster
    Import {
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
        /// The name that manifests use: localhost/hello:v1
        #[arg(long = "as", value_name = "REF")]
        reference: String,
        /// Only onto this node
        #[arg(long, value_name = "NAME")]
        node: Option<String>,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// List the images of the nodes
    Ls {
        /// Only of this node
        #[arg(long, value_name = "NAME")]
        node: Option<String>,
        #[arg(short, long, value_name = "FORMAT")]
        output: Option<JsonOutput>,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Remove an image from the nodes
    Rm {
        #[arg(value_name = "REF")]
        reference: String,
        /// Only from this node
        #[arg(long, value_name = "NAME")]
        node: Option<String>,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
}

#[derive(Args, Debug)]
pub struct RunArgs {
    /// A .wasm file, or the name of an image that the nodes have or can pull
    #[arg(value_name = "FILE|REF", value_hint = ValueHint::FilePath)]
    pub source: String,
    /// Name of Deployment and Service; those that something else made are left alone
    /// [default: from FILE or REF]
    #[arg(long)]
    pub name: Option<String>,
    /// The port the module listens on; PORT tells it, POD_NAME and POD_IP tell who it is
    #[arg(long, default_value_t = 8080, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// How many pods
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    pub replicas: u32,
    /// An environment variable; can be given several times
    #[arg(long, value_name = "K=V")]
    pub env: Vec<String>,
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// Seconds to wait until the pods are ready
    #[arg(long, default_value_t = 60)]
    pub timeout: u64,
    #[arg(short, long, value_name = "FORMAT")]
    pub output: Option<JsonOutput>,
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

#[derive(Args, Debug)]
pub struct StatusArgs {
    #[arg(short, long, value_name = "FORMAT")]
    pub output: Option<JsonOutput>,
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

#[derive(Args, Debug)]
pub struct ApplyArgs {
    /// Files or folders with manifests; - reads standard input
    #[arg(short = 'f', long = "filename", required = true, value_name = "FILE", value_hint = ValueHint::AnyPath)]
    pub files: Vec<PathBuf>,
    /// For objects that name none
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// Take over fields that others manage
    #[arg(long)]
    pub force_conflicts: bool,
    #[arg(short, long, value_name = "FORMAT")]
    pub output: Option<JsonOutput>,
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

#[derive(Args, Debug)]
pub struct GetArgs {
    /// Kinds, separated by commas: pods, deploy,svc
    #[arg(value_name = "KIND")]
    pub kinds: String,
    pub names: Vec<String>,
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// In all namespaces
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// Only objects with these labels
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    pub selector: Option<String>,
    #[arg(short, long, value_name = "FORMAT")]
    pub output: Option<Output>,
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

#[derive(Args, Debug)]
pub struct LogsArgs {
    /// NAME, or pod/NAME
    pub pod: String,
    /// Which container, where the pod has several
    #[arg(short, long)]
    pub container: Option<String>,
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// Go on as more is written
    #[arg(short, long)]
    pub follow: bool,
    /// Of the container before the last restart
    #[arg(short, long)]
    pub previous: bool,
    /// Only the last lines
    #[arg(long, value_name = "N")]
    pub tail: Option<u32>,
    /// With the time of each line
    #[arg(long)]
    pub timestamps: bool,
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

#[derive(Args, Debug)]
pub struct DeleteArgs {
    /// KIND NAME…, or KIND/NAME…
    pub objects: Vec<String>,
    /// What these manifests name
    #[arg(short = 'f', long = "filename", value_name = "FILE", value_hint = ValueHint::AnyPath)]
    pub files: Vec<PathBuf>,
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Print a token with which nodes can join
    Create {
        /// Hours until it ends; 0: never
        #[arg(long, default_value_t = 24, value_name = "HOURS")]
        ttl: u32,
        #[arg(short, long, value_name = "FORMAT")]
        output: Option<JsonOutput>,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
}

#[derive(Args, Debug)]
pub struct VersionArgs {
    /// Only of this program
    #[arg(long)]
    pub client: bool,
    #[arg(short, long, value_name = "FORMAT")]
    pub output: Option<JsonOutput>,
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn formats_that_a_command_lacks_are_refused() {
        Cli::command().debug_assert();
        let commands =
            ["image ls", "status", "version", "run x", "apply -f x", "token create"].map(|line| (line, &["json"][..]));
        for (line, known) in commands.into_iter().chain([("get pods", &["json", "yaml", "wide", "name"][..])]) {
            for format in ["json", "yaml", "wide", "name", "table"] {
                let words = ["sampan"].into_iter().chain(line.split(' ')).chain(["-o", format]);
                match Cli::try_parse_from(words) {
                    Ok(_) => assert!(known.contains(&format), "{line} -o {format}"),
                    Err(error) => {
                        assert!(!known.contains(&format), "{line} -o {format}: {error}");
                        assert!(error.to_string().contains("possible values: json"), "{error}");
                    }
                }
            }
        }
    }

    #[test]
    fn completions_know_every_command() {
        let mut script = Vec::new();
        clap_complete::generate(Shell::Bash, &mut Cli::command(), "sampan", &mut script);
        let script = String::from_utf8(script).unwrap();
        for command in Cli::command().get_subcommands().filter(|it| !it.is_hide_set()) {
            assert!(script.contains(&format!("sampan__subcmd__{}", command.get_name())), "{}", command.get_name());
        }
    }
}
