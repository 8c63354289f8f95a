//! Runs what was chosen, and tells it: a table for people, `results.json` for programs.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::benchmarks::{Benchmark, Context};
use crate::machine;
use crate::row::{Reach, Row, quantile, round};

pub async fn all(chosen: &[&Benchmark], context: &Context, repository: &Path) -> Result<()> {
    let machine = machine::facts()?;
    let commit = machine::commit(repository);
    println!("commit {commit}, {machine}\n");
    let mut results: Vec<Value> = Vec::new();
    let mut failed = Vec::new();
    for benchmark in chosen {
        let start = Instant::now();
        // Not before the table below: somebody waits in front of it.
        eprintln!("… {}", benchmark.names.join(", "));
        match (benchmark.run)(context).await {
            Ok(rows) => {
                for row in rows {
                    print(&row);
                    results.push(row.json(&commit, &machine));
                }
            }
            Err(error) => {
                eprintln!("{} failed: {error:#}", benchmark.names.join(", "));
                failed.push(benchmark.names.join(", "));
            }
        }
        eprintln!("  took {:.0} s", start.elapsed().as_secs_f64());
        // After each: who interrupts a long run keeps what is done.
        write(&context.out.join("results.json"), &results)?;
    }
    println!("\n{}", context.out.join("results.json").display());
    if !failed.is_empty() {
        bail!("not measured: {}", failed.join(", "));
    }
    Ok(())
}

fn write(path: &Path, results: &[Value]) -> Result<()> {
    std::fs::write(path, serde_json::to_string_pretty(results)?).with_context(|| path.display().to_string())
}

fn print(row: &Row) {
    let verdict = match row.met() {
        Some(true) => "met",
        Some(false) => "MISSED",
        None => "",
    };
    let reach = match (row.reach, row.reach_value()) {
        (Reach::AtLeast(value), _) => format!("≥ {}", round(value)),
        (Reach::AtMost(value), _) => format!("≤ {}", round(value)),
        (Reach::TimesPeer(times), Some(_)) => format!("≥ {times} × peer"),
        _ => String::new(),
    };
    let value = format!("{} {}", round(row.value()), row.unit);
    println!("{:22} {value:>18}  {:20} {reach:>16} {verdict}", row.name, spread(&row.runs));
    if let (Some(peer), Some(value)) = (&row.peer, row.peer_value()) {
        let ratio = row.ratio().map_or_else(String::new, |ratio| format!("{:.2} times", ratio));
        let label = format!("  {}", peer.name);
        println!("{label:22} {:>18}  {:20} {ratio:>16}", format!("{} {}", round(value), row.unit), spread(&peer.runs));
    }
    for note in &row.notes {
        println!("    {note}");
    }
}

/// Lowest and highest of the runs.
fn spread(runs: &[f64]) -> String {
    match runs.len() {
        0 | 1 => String::new(),
        count => format!("({}–{}, {count} runs)", round(quantile(runs, 0.0)), round(quantile(runs, 1.0))),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn spread_is_from_lowest_to_highest() {
        assert_eq!(super::spread(&[3.0]), "");
        assert_eq!(super::spread(&[3.0, 1.0, 2.0]), "(1–3, 3 runs)");
    }
}
