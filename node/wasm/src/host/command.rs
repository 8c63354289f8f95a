//! Guests that run once: preview 1 modules and command components.

use std::sync::Arc;

use anyhow::Context as _;
use wasmtime_wasi::I32Exit;

use super::container::{Container, Exit};
use super::state::{Loaded, Stdio, Template};
use crate::limits::Metered;

/// What a shell shows for a program that was aborted: no signal tells of a trap.
pub const SIGABRT: i32 = 6;
pub const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

pub async fn run(container: &Container, loaded: Loaded) -> Exit {
    let template = container.template.clone();
    let guest = call(template.clone(), loaded, template.stdio());
    let guest = Metered::new(guest, template.cpu.clone(), container.ticker());
    tokio::select! {
        // A guest has no signals to wait for: it ends where it is.
        biased;
        () = container.kill.cancelled() => Exit::signal(SIGKILL, "killed"),
        () = container.drain.cancelled() => Exit::signal(SIGTERM, "stopped"),
        result = guest => match result {
            Ok(code) => ended(container, Exit::code(code)),
            Err(error) => failed(container, &error),
        },
    }
}

/// Runs one instance to its end.
pub async fn call(template: Arc<Template>, loaded: Loaded, stdio: Stdio) -> anyhow::Result<i32> {
    match loaded {
        Loaded::Core(pre) => {
            let mut store = template.core(stdio)?;
            let instance = pre.instantiate_async(&mut store).await?;
            let start = instance.get_typed_func::<(), ()>(&mut store, "_start")?;
            start.call_async(&mut store, ()).await?;
            Ok(0)
        }
        Loaded::Command(pre) => {
            let mut store = template.component(stdio, template.mounts()?);
            let command = pre.instantiate_async(&mut store).await?;
            let result = command.wasi_cli_run().call_run(&mut store).await?;
            Ok(if result.is_ok() { 0 } else { 1 })
        }
        Loaded::Proxy(_) => Err(anyhow::anyhow!("a proxy is served, not run")),
    }
    .context("guest")
}

/// A guest that was refused memory and then failed has failed for want of it.
fn ended(container: &Container, exit: Exit) -> Exit {
    let memory = &container.template.memory;
    match exit.code != 0 && memory.refused() {
        true => Exit::out_of_memory(memory.limit()),
        false => exit,
    }
}

fn failed(container: &Container, error: &anyhow::Error) -> Exit {
    if let Some(code) = exit_code(error) {
        return ended(container, Exit::code(code));
    }
    container.template.say(&explain(error));
    if container.template.memory.refused() {
        return Exit::out_of_memory(container.template.memory.limit());
    }
    Exit::signal(SIGABRT, cause(error))
}

/// What a guest gave that ended by exiting.
pub fn exit_code(error: &anyhow::Error) -> Option<i32> {
    error.chain().find_map(|cause| cause.downcast_ref()).map(|I32Exit(code)| *code)
}

/// The innermost cause: for a trap, what the guest did.
pub fn cause(error: &anyhow::Error) -> String {
    let trap = error.chain().find_map(|cause| cause.downcast_ref::<wasmtime::Trap>());
    match trap {
        Some(trap) => trap.to_string(),
        None => error.root_cause().to_string(),
    }
}

/// The cause and where in the guest it was, as a program's own last words.
pub fn explain(error: &anyhow::Error) -> String {
    let place = error.chain().map(ToString::to_string).find(|text| text.contains("wasm backtrace"));
    match place {
        Some(place) => format!("{}\n{}", cause(error), place.trim_end()),
        None => format!("{error:#}"),
    }
}
