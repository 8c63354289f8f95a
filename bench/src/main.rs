//! `bench NAME…`: measures what Sampan claims, with its peers in the same run on the same machine.
//!
//! Prints a table, and writes `target/bench/results.json` and the plots beside it. A file below
//! `benchmarks/` says how a figure comes about.

mod benchmarks;
mod built;
mod client;
mod cluster;
mod load;
mod machine;
mod peers;
mod plot;
mod process;
mod report;
mod row;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use benchmarks::Context;

/// Measures Sampan and its peers on this machine.
#[derive(Debug, Parser)]
struct Cli {
    /// What to measure [default: everything]
    names: Vec<String>,
    /// Show what can be measured
    #[arg(long)]
    list: bool,
    /// Take the programs as they are: for work on the benchmarks, figures of such a run say nothing
    #[arg(long)]
    no_build: bool,
}

fn main() -> ExitCode {
    // Both TLS stacks below us ask for the process' own choice.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let result = match std::env::args().nth(1).as_deref() {
        Some("load") => load::main(),
        Some("serve") => benchmarks::plain_server(),
        _ => run(&Cli::parse()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let chosen = benchmarks::choose(&cli.names)?;
    if cli.list {
        for benchmark in chosen {
            println!("{:44} {}", benchmark.names.join(" "), benchmark.what);
        }
        return Ok(());
    }
    let repository = repository();
    if !cli.no_build {
        built::release_and_samples(&repository)?;
    }
    let own = std::env::current_exe()?;
    let profile = own.parent().context("the program lies in no folder")?;
    let context = Context {
        program: profile.join("sampan").canonicalize().context("sampan is not built: run without --no-build")?,
        samples: profile.parent().context("no target directory")?.join("samples"),
        out: repository.join("target/bench"),
    };
    ensure!(context.samples.join("hello.wasm").is_file(), "the samples are not built: make samples");
    std::fs::create_dir_all(&context.out)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        // What is dropped here ends the clusters and programs it started.
        tokio::select! {
            result = report::all(&chosen, &context, &repository) => result,
            _ = terminate.recv() => anyhow::bail!("ended by SIGTERM"),
            _ = interrupt.recv() => anyhow::bail!("ended by ctrl-c"),
        }
    })
}

/// The checkout this was built in.
fn repository() -> PathBuf {
    // Asked when it runs: a target directory that checkouts share may hold what another one built.
    let own = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&own).parent().map_or_else(PathBuf::new, Path::to_owned)
}
