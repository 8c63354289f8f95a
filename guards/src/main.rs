//! `guards`: counts, and prints. `guards --write FILE` writes the counts there too; `make guards` does
//! that for `guards/counts.json`. `guards run OPERATION` is one process of the count.

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use guards::{RUSTC, Record};

#[global_allocator]
static ALLOCATOR: guards::meter::Counting = guards::meter::Counting;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments.as_slice() {
        [] => count(None),
        ["--write", file] => count(Some(file)),
        ["run", operation] => run(operation),
        _ => Err(anyhow::anyhow!("usage: guards [--write FILE]")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(operation: &str) -> Result<()> {
    println!("{}", serde_json::to_string(&guards::operations::run(operation)?)?);
    Ok(())
}

fn count(write: Option<&str>) -> Result<()> {
    let counted = guards::count(&std::env::current_exe()?)?;
    for (name, count) in &counted.counts {
        println!("{name:24} {:>12} {}", count.count, count.unit);
    }
    if let Some(why) = counted.skipped {
        println!("skipped: {why}");
        if write.is_some() {
            bail!("nothing written: {why}");
        }
    }
    if let Some(file) = write {
        let record = Record { rustc: RUSTC.to_owned(), counts: counted.counts };
        std::fs::write(file, serde_json::to_string_pretty(&record)? + "\n").with_context(|| file.to_owned())?;
    }
    Ok(())
}
