//! Starts the processes of the count, as many at once as there are CPUs, and puts together what they say.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, bail, ensure};

use crate::compare::{Count, Counts};
use crate::operations::{COSTS, OTHERS, Taken};

/// The part of a name behind the dot, for what only callgrind counts.
pub const INSTRUCTIONS: &str = "instructions";

pub struct Counted {
    pub counts: Counts,
    /// Why instructions were not counted.
    pub skipped: Option<String>,
}

/// Counts everything. `program` is this crate's.
pub fn count(program: &Path) -> Result<Counted> {
    ensure!(cfg!(debug_assertions), "counts are of the dev profile, and this is a release build");
    let skipped = missing();
    let mut operations: Vec<&str> = COSTS.iter().flat_map(|cost| [Some(cost.of), cost.without]).flatten().collect();
    operations.sort_unstable();
    operations.dedup();
    let plain = operations.iter().copied().chain(OTHERS.iter().map(|(name, _)| *name)).map(|name| (name, false));
    let under_callgrind = operations.iter().filter(|_| skipped.is_none()).map(|name| (*name, true));
    // The long ones first, so that no CPU is left with one at the end.
    let taken = all(program, under_callgrind.chain(plain).collect())?;

    let mut counts = Counts::new();
    let mut put = |name: String, count: u64, unit: String| counts.insert(name, Count { count, unit });
    let of = |name: &str, what: &str| -> Result<u64> {
        let found = taken.iter().filter(|((of, _), _)| *of == name).find_map(|(_, taken)| taken.get(what));
        found.copied().with_context(|| format!("{name} does not say its {what}"))
    };
    for cost in COSTS {
        for (what, unit) in
            [(INSTRUCTIONS, INSTRUCTIONS), ("allocations", "allocations"), ("allocated", "bytes allocated")]
        {
            if what == INSTRUCTIONS && skipped.is_some() {
                continue;
            }
            let (mut total, mut times) = (of(cost.of, what)?, of(cost.of, "times")?);
            if let Some(without) = cost.without {
                total = total.saturating_sub(of(without, what)?);
                times = times.saturating_sub(of(without, "times")?);
            }
            let once = total.checked_div(times).with_context(|| format!("{} did nothing", cost.of))?;
            put(format!("{}.{what}", cost.name), once, format!("{unit}: {}", cost.once));
        }
    }
    for (name, own) in OTHERS {
        for (what, unit) in *own {
            put(format!("{name}.{what}"), of(name, what)?, (*unit).to_owned());
        }
    }
    Ok(Counted { counts, skipped })
}

/// Why callgrind cannot count here what was counted elsewhere.
fn missing() -> Option<String> {
    if !cfg!(target_arch = "x86_64") {
        return Some("instructions are counted on x86-64 only".to_owned());
    }
    match Command::new("valgrind").arg("--version").stdout(Stdio::null()).status() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Some("not installed: valgrind, so no instructions are counted".to_owned())
        }
        _ => None,
    }
}

/// A process: which operation, and whether under callgrind.
type Job = (&'static str, bool);

fn all(program: &Path, jobs: Vec<Job>) -> Result<BTreeMap<Job, Taken>> {
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(jobs.len());
    let (jobs, done) = (Mutex::new(jobs.into_iter()), Mutex::new(BTreeMap::new()));
    let work = || -> Result<()> {
        loop {
            let Some(job) = jobs.lock().unwrap_or_else(PoisonError::into_inner).next() else { return Ok(()) };
            let taken = one(program, job)?;
            done.lock().unwrap_or_else(PoisonError::into_inner).insert(job, taken);
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(result) => result,
            Err(_) => bail!("a thread of the count panicked"),
        })
    })?;
    Ok(done.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn one(program: &Path, (operation, under_callgrind): Job) -> Result<Taken> {
    let dir = tempfile::tempdir()?;
    let out = dir.path().join("out");
    let mut command = if under_callgrind {
        let mut command = Command::new("valgrind");
        // Off until the operation asks for it.
        command.args(["--tool=callgrind", "--instr-atstart=no", "--dump-instr=no", "--quiet"]);
        command.arg(format!("--callgrind-out-file={}", out.display())).arg(program);
        command
    } else {
        Command::new(program)
    };
    // A backtrace that is gathered would count.
    command.args(["run", operation]).env_remove("RUST_BACKTRACE").env_remove("RUST_LOG");
    let output = command.output().with_context(|| format!("starting {operation}"))?;
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{operation}: {}: {errors}", output.status);
    let taken: Taken = serde_json::from_str(&said).with_context(|| format!("{operation} said {said:?}"))?;
    if !under_callgrind {
        return Ok(taken);
    }
    let text = std::fs::read_to_string(&out).with_context(|| format!("what callgrind wrote of {operation}"))?;
    let total = total(&text).with_context(|| format!("callgrind wrote no total of {operation}"))?;
    // All else is told by the run without it.
    Ok([(INSTRUCTIONS.to_owned(), total)].into())
}

/// The instructions in a file of callgrind's.
fn total(file: &str) -> Option<u64> {
    file.lines().find_map(|line| line.strip_prefix("totals: "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_total_is_found() {
        assert_eq!(super::total("version: 1\nevents: Ir\nfn=(1) a\n1 7\n\ntotals: 4711\n"), Some(4711));
        assert_eq!(super::total("version: 1\n"), None);
    }
}
