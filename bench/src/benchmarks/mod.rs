//! One file a benchmark.

mod api;
mod containers;
mod hello;
mod plain;
mod pods;
mod requests;
mod scheduler;
mod services;
mod start;
mod store;
mod watch;

use std::path::PathBuf;
use std::pin::Pin;

use anyhow::{Result, bail};

use crate::load::{self, Load, Outcome};
use crate::row::Row;

pub use plain::serve as plain_server;

/// Where everything is.
pub struct Context {
    /// `sampan`, as it is measured.
    pub program: PathBuf,
    /// The built sample workloads.
    pub samples: PathBuf,
    /// For results and plots.
    pub out: PathBuf,
}

type Run = for<'a> fn(&'a Context) -> Pin<Box<dyn Future<Output = Result<Vec<Row>>> + 'a>>;

pub struct Benchmark {
    /// Of the rows it answers with.
    pub names: &'static [&'static str],
    pub what: &'static str,
    pub run: Run,
}

/// In the order in which all are run.
const ALL: &[Benchmark] = &[
    Benchmark {
        names: &["store_writes_per_s"],
        what: "the store alone, 2 kB values, fsynced, 64 writers; beside bare redb and etcd",
        run: |context| Box::pin(store::run(context)),
    },
    Benchmark {
        names: &["up_ready_ms"],
        what: "`sampan up` on an empty data dir, until it is ready",
        run: |context| Box::pin(start::up_ready(context)),
    },
    Benchmark {
        names: &["idle_rss_mb"],
        what: "memory of server and node, idle",
        run: |context| Box::pin(start::idle_memory(context)),
    },
    Benchmark {
        names: &["create_pods_per_s", "create_pods_p99_ms"],
        what: "create of a 1 kB pod over HTTPS, 64 connections",
        run: |context| Box::pin(api::create_pods(context)),
    },
    Benchmark {
        names: &["get_pods_per_s"],
        what: "get of one pod over HTTPS, 64 connections",
        run: |context| Box::pin(api::get_pods(context)),
    },
    Benchmark {
        names: &["list_10k_ms"],
        what: "list of 10,000 pods over HTTPS, to the last byte",
        run: |context| Box::pin(api::list_pods(context)),
    },
    Benchmark {
        names: &["rss_10k_pods_mb"],
        what: "memory of the server with 10,000 pods and watchers",
        run: |context| Box::pin(api::memory_of_pods(context)),
    },
    Benchmark {
        names: &["watch_fanout_p99_ms"],
        what: "one write seen by 1,000 watchers",
        run: |context| Box::pin(watch::run(context)),
    },
    Benchmark {
        names: &["scheduler_pods_per_s"],
        what: "50,000 pods onto 5,000 simulated nodes, through the API",
        run: |context| Box::pin(scheduler::run(context)),
    },
    Benchmark {
        names: &["pod_ready_p50_ms", "pod_ready_p99_ms"],
        what: "a Wasm pod from create to Ready at a watcher",
        run: |context| Box::pin(pods::ready(context)),
    },
    Benchmark {
        names: &["scale_1000_s"],
        what: "hello from 1 to 1,000 ready pods on one node",
        run: |context| Box::pin(pods::scale_1000(context)),
    },
    Benchmark {
        names: &["density_kb_per_pod"],
        what: "memory of an idle hello pod among 10,000",
        run: |context| Box::pin(pods::density(context)),
    },
    Benchmark {
        names: &["pod_start_host_ms", "pod_start_shim_ms", "pod_memory_host_kib", "pod_memory_shim_kib"],
        what: "a pod by the node's Wasm host and by the shim; beside runc and crun",
        run: |context| Box::pin(containers::run(context)),
    },
    Benchmark {
        names: &["rps_hello"],
        what: "requests to hello, 16 connections; beside wasmtime serve and a server without Wasm",
        run: |context| Box::pin(requests::hello(context)),
    },
    Benchmark {
        names: &["rps_service"],
        what: "the same through a ClusterIP: nftables, and the userspace proxy",
        run: |context| Box::pin(requests::service(context)),
    },
    Benchmark {
        names: &["services_10k_s", "services_10k_add_ms"],
        what: "10,000 Services with 3 endpoints in the kernel; one more",
        run: |context| Box::pin(services::run(context)),
    },
];

/// Those that were named; all for none.
pub fn choose(names: &[String]) -> Result<Vec<&'static Benchmark>> {
    let known = |name: &String| ALL.iter().any(|benchmark| benchmark.names.contains(&name.as_str()));
    if let Some(unknown) = names.iter().find(|name| !known(name)) {
        let all: Vec<&str> = ALL.iter().flat_map(|benchmark| benchmark.names).copied().collect();
        bail!("no benchmark is called {unknown}; there are {}", all.join(", "));
    }
    let named = |benchmark: &&Benchmark| names.iter().any(|name| benchmark.names.contains(&name.as_str()));
    Ok(ALL.iter().filter(|benchmark| names.is_empty() || named(benchmark)).collect())
}

/// Runs a load a few times.
async fn repeat(times: usize, load: impl Fn(usize) -> Load) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::with_capacity(times);
    for number in 0..times {
        outcomes.push(load::run(&load(number)).await?);
    }
    Ok(outcomes)
}

/// A figure of each run.
fn each(outcomes: &[Outcome], figure: impl Fn(&Outcome) -> f64) -> Vec<f64> {
    outcomes.iter().map(figure).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_pick_benchmarks_once_and_unknown_ones_are_refused() -> Result<()> {
        assert_eq!(choose(&[])?.len(), ALL.len());
        let picked = choose(&["list_10k_ms".to_owned(), "get_pods_per_s".to_owned(), "list_10k_ms".to_owned()])?;
        assert_eq!(picked.len(), 2);
        let error = choose(&["speed".to_owned()]).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("speed") && error.contains("up_ready_ms"), "{error}");
        Ok(())
    }

    #[test]
    fn no_name_is_given_twice() {
        let mut names: Vec<&str> = ALL.iter().flat_map(|benchmark| benchmark.names).copied().collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
