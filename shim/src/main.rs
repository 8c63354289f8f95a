//! `containerd-shim-sampan-v1`: runs WebAssembly modules and components as containers of a
//! containerd. One shim and one Wasm host process serve all containers of a pod.

mod boot;
mod container;
mod events;
mod flags;
mod module;
mod mount;
mod names;
mod netns;
mod oci;
mod pod;
mod proto;
mod settings;
mod stdio;
mod task;
mod ttrpc;

use std::io::Write as _;
use std::process::ExitCode;

use flags::Flags;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> anyhow::Result<()> {
    let rest = || arguments.iter().skip(1).cloned().collect();
    // Before any thread is started: these two are processes that confine themselves.
    match arguments.first().map(String::as_str) {
        Some("wasm-host") => return sampan_wasm::host::main(rest()),
        Some("wasm-compile") => return sampan_wasm::compile::main(rest()),
        _ => {}
    }
    let flags = Flags::parse(arguments)?;
    let mut out = std::io::stdout();
    match flags.action.as_str() {
        _ if flags.version => writeln!(out, "containerd-shim-sampan-v1 {}", env!("CARGO_PKG_VERSION"))?,
        "start" => out.write_all(boot::start(&flags)?.as_bytes())?,
        "delete" => out.write_all(&boot::delete(&flags)?)?,
        "serve" => boot::serve(&flags)?,
        other => anyhow::bail!("{other:?}: containerd calls this program with start or delete"),
    }
    out.flush()?;
    Ok(())
}
