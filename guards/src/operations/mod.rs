//! What is counted, each in a process that does nothing else.

mod api;
mod fsyncs;
mod held;
mod schedule;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, anyhow};
use futures::future::LocalBoxFuture;

/// A process of the count.
pub struct Operation {
    pub name: &'static str,
    run: fn() -> LocalBoxFuture<'static, Result<Taken>>,
}

/// What an operation took: `times` and what [`Meter`](crate::meter::Meter) counts, or counts of its own.
pub type Taken = BTreeMap<String, u64>;

const ALL: &[Operation] = &[
    Operation { name: "encode", run: || Box::pin(api::encode()) },
    Operation { name: "create", run: || Box::pin(api::create()) },
    Operation { name: "patch", run: || Box::pin(api::patch()) },
    Operation { name: "apply", run: || Box::pin(api::apply()) },
    Operation { name: "watch-by-few", run: || Box::pin(api::watch(FEW)) },
    Operation { name: "watch-by-many", run: || Box::pin(api::watch(MANY)) },
    Operation { name: "schedule", run: || Box::pin(schedule::schedule()) },
    Operation { name: "held", run: || Box::pin(held::held()) },
    Operation { name: "fsyncs", run: || Box::pin(fsyncs::fsyncs()) },
];

const FEW: usize = 8;
/// So many that the noise of the writes, which both have, is little beside what their readers cost.
const MANY: usize = 400;

/// What one time of an operation costs: the counts of a process, or what it has more than another.
pub struct Cost {
    pub name: &'static str,
    pub of: &'static str,
    /// What this one takes is no part of it.
    pub without: Option<&'static str>,
    pub once: &'static str,
}

pub const COSTS: &[Cost] = &[
    Cost { name: "encode", of: "encode", without: None, once: "a pod decoded, defaulted and encoded" },
    Cost { name: "create", of: "create", without: None, once: "a pod created" },
    Cost { name: "patch", of: "patch", without: None, once: "a pod's status patched" },
    Cost { name: "apply", of: "apply", without: None, once: "a Deployment applied" },
    // The write that makes the event is in both.
    Cost { name: "watch", of: "watch-by-many", without: Some("watch-by-few"), once: "an event to one more watcher" },
    Cost { name: "schedule", of: "schedule", without: None, once: "a pod placed on one of 200 nodes" },
];

/// Processes with counts of their own, and what each is counted in.
pub const OTHERS: &[(&str, &[(&str, &str)])] = &[
    (
        "held",
        &[
            ("server", "bytes a pod in the server, with its event in the history"),
            ("informer", "bytes a pod in a shared cache of a client"),
        ],
    ),
    (
        "fsyncs",
        &[
            ("alone", "fsyncs of 64 writes, one after the other"),
            ("together", "fsyncs of a write and of 64 that come during its fsync"),
        ],
    ),
];

/// Does one of them in this process, on one thread beside the store's.
pub fn run(name: &str) -> Result<Taken> {
    let operation = ALL.iter().find(|operation| operation.name == name);
    let operation = operation.with_context(|| format!("there is no operation {name}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on((operation.run)()).map_err(|error| anyhow!("{name}: {error:#}"))
}
