//! What one instance's store holds, and how guests are linked to it.

use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::Context as _;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use wasmtime::component::{Component, Linker, ResourceTable};
use wasmtime::{Engine, Store};
use wasmtime_wasi::cli::StdoutStream;
use wasmtime_wasi::filesystem::WasiFilesystemCtx;
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::p2::bindings::CommandPre;
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use crate::limits::{self, Cpu, Memory, Share};
use crate::logs::{Log, Output, Stream};
use crate::net::PodNet;
use crate::net::http::Hooks;
use crate::net::sockets::{self, SocketsView, View};
use crate::proto::{ContainerSpec, ModuleKind};
use crate::raw::Raw;
use crate::stdio::Input;

/// Resources a guest may hold in the host at once.
const HANDLES: usize = 1 << 16;
/// Bytes a guest may have the host copy in one call.
const HOSTCALL_BYTES: usize = 128 << 20;
const RANDOM_BYTES: u64 = 1 << 20;

/// A component's store.
pub struct State {
    wasi: WasiCtx,
    http: WasiHttpCtx,
    table: ResourceTable,
    hooks: Hooks,
    net: Arc<PodNet>,
    share: Share,
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: &mut self.hooks }
    }
}

impl SocketsView for State {
    fn pod_sockets(&mut self) -> View<'_> {
        View { table: &mut self.table, net: &self.net }
    }
}

/// A core module's store.
pub struct CoreState {
    wasi: WasiP1Ctx,
    share: Share,
}

/// What a file gives once mapped and linked; shared by all containers of the module.
#[derive(Clone)]
pub enum Loaded {
    Core(wasmtime::InstancePre<CoreState>),
    Command(CommandPre<State>),
    Proxy(ProxyPre<State>),
}

impl Loaded {
    /// Maps a compiled module.
    ///
    /// # Safety
    /// The file has to come from our own compiler's process, unchanged: its code is run.
    pub unsafe fn map(engine: &Engine, kind: ModuleKind, path: &Path) -> anyhow::Result<Loaded> {
        match kind {
            ModuleKind::Core => {
                // SAFETY: as the caller promises.
                let module = unsafe { wasmtime::Module::deserialize_file(engine, path)? };
                link_core(engine, &module)
            }
            _ => {
                // SAFETY: as the caller promises.
                let component = unsafe { Component::deserialize_file(engine, path)? };
                link(engine, kind, &component)
            }
        }
    }
}

fn link_core(engine: &Engine, module: &wasmtime::Module) -> anyhow::Result<Loaded> {
    let mut linker = wasmtime::Linker::<CoreState>::new(engine);
    wasmtime_wasi::p1::add_to_linker_async(&mut linker, |state| &mut state.wasi)?;
    Ok(Loaded::Core(linker.instantiate_pre(module)?))
}

fn link(engine: &Engine, kind: ModuleKind, component: &Component) -> anyhow::Result<Loaded> {
    let mut linker = Linker::<State>::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    linker.allow_shadowing(true);
    sockets::add_to_linker(&mut linker)?;
    let pre = linker.instantiate_pre(component)?;
    Ok(match kind {
        ModuleKind::Proxy => Loaded::Proxy(ProxyPre::new(pre)?),
        _ => Loaded::Command(CommandPre::new(pre)?),
    })
}

/// Links compiled code without running it: what the compiler's process does last.
pub fn check(engine: &Engine, kind: ModuleKind, compiled: &[u8]) -> anyhow::Result<()> {
    match kind {
        ModuleKind::Core => {
            // SAFETY: this process made these bytes just now.
            let module = unsafe { wasmtime::Module::deserialize(engine, compiled)? };
            link_core(engine, &module)?;
        }
        _ => {
            // SAFETY: as above.
            let component = unsafe { Component::deserialize(engine, compiled)? };
            link(engine, kind, &component)?;
        }
    }
    Ok(())
}

/// Everything the stores of one container are made from.
pub struct Template {
    pub spec: ContainerSpec,
    pub engine: Engine,
    pub net: Arc<PodNet>,
    pub cpu: Arc<Cpu>,
    pub memory: Arc<Memory>,
    pub log: Arc<Log>,
    /// Takes the output in the log's place.
    pub raw: Option<Raw>,
    /// The input of a container that has one, until its instance takes it.
    pub stdin: Mutex<Option<Input>>,
}

/// What one instance has for itself.
pub struct Stdio {
    pub args: Vec<String>,
    pub stdin: Option<Input>,
    pub stdout: Box<dyn StdoutStream + Sync>,
    pub stderr: Box<dyn StdoutStream + Sync>,
    pub share: Share,
}

impl Template {
    /// Of the container itself: its output goes to its log, or raw.
    pub fn stdio(&self) -> Stdio {
        let output = |stream| -> Box<dyn StdoutStream + Sync> {
            match (&self.raw, stream) {
                (Some(raw), Stream::Stdout) => Box::new(raw.stdout.clone()),
                (Some(raw), Stream::Stderr) => Box::new(raw.stderr.clone()),
                (None, _) => Box::new(Output::new(self.log.clone(), stream, self.spec.tty)),
            }
        };
        Stdio {
            args: self.spec.args.clone(),
            stdin: self.stdin.lock().unwrap_or_else(|e| e.into_inner()).take(),
            stdout: output(Stream::Stdout),
            stderr: output(Stream::Stderr),
            share: Share::new(self.memory.clone()),
        }
    }

    fn wasi(&self, stdio: Stdio) -> WasiCtxBuilder {
        let mut wasi = WasiCtxBuilder::new();
        wasi.max_random_size(RANDOM_BYTES);
        for variable in &self.spec.env {
            wasi.env(&variable.name, &variable.value);
        }
        if !self.spec.working_dir.is_empty() {
            wasi.initial_cwd(&self.spec.working_dir);
        }
        wasi.args(&stdio.args).stdout(stdio.stdout).stderr(stdio.stderr);
        if let Some(stdin) = stdio.stdin {
            wasi.stdin(stdin);
        }
        wasi
    }

    fn mount(&self, wasi: &mut WasiCtxBuilder) -> anyhow::Result<()> {
        for mount in &self.spec.mounts {
            let dir =
                open_mount(&mount.source, &self.spec.pod_uid).with_context(|| format!("mount {}", mount.target))?;
            let perms = match mount.read_only {
                true => FsPerms::ReadOnly,
                false => FsPerms::ReadWrite,
            };
            wasi.preopened_dir(format!("/proc/self/fd/{}", dir.as_raw_fd()), &mount.target, perms)
                .map_err(|error| anyhow::anyhow!("mount {}: {error:#}", mount.target))?;
        }
        Ok(())
    }

    /// The mounts, open; instances may share them.
    pub fn mounts(&self) -> anyhow::Result<WasiFilesystemCtx> {
        let mut wasi = WasiCtxBuilder::new();
        self.mount(&mut wasi)?;
        Ok(std::mem::take(wasi.build().filesystem()))
    }

    /// A line of the host's own about the guest, where a program's own last words would be.
    pub fn say(&self, text: &str) {
        match &self.raw {
            Some(raw) => raw.stderr.say(text),
            None => self.log.say(text),
        }
    }

    pub fn component(&self, mut stdio: Stdio, mounts: WasiFilesystemCtx) -> Store<State> {
        let share = std::mem::replace(&mut stdio.share, Share::new(self.memory.clone()));
        let mut table = ResourceTable::new();
        table.set_max_capacity(HANDLES);
        let mut wasi = self.wasi(stdio).build();
        *wasi.filesystem() = mounts;
        let mut store = Store::new(
            &self.engine,
            State {
                wasi,
                http: WasiHttpCtx::new(),
                table,
                hooks: Hooks { net: self.net.clone() },
                net: self.net.clone(),
                share,
            },
        );
        store.limiter(|state| &mut state.share);
        self.limit(&mut store);
        store
    }

    pub fn core(&self, mut stdio: Stdio) -> anyhow::Result<Store<CoreState>> {
        let share = std::mem::replace(&mut stdio.share, Share::new(self.memory.clone()));
        let mut wasi = self.wasi(stdio);
        self.mount(&mut wasi)?;
        let mut store = Store::new(&self.engine, CoreState { wasi: wasi.build_p1(), share });
        store.limiter(|state| &mut state.share);
        self.limit(&mut store);
        Ok(store)
    }

    fn limit<T>(&self, store: &mut Store<T>) {
        store.set_hostcall_fuel(HOSTCALL_BYTES);
        store.set_max_component_handles(HANDLES);
        let cpu = self.cpu.clone();
        store.epoch_deadline_callback(move |_| Ok(limits::on_tick(&cpu)));
        store.set_epoch_deadline(1);
    }

    /// Opens every mount once, so that what is wrong with one is said at the start.
    pub fn check_mounts(&self) -> anyhow::Result<()> {
        self.mounts().map(drop)
    }
}

/// Opens a mount's directory. Nothing that a guest writes into a volume, a link least of all, leads
/// out of its pod's directory.
fn open_mount(source: &str, pod_uid: &str) -> anyhow::Result<std::os::fd::OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let own = format!("pods/{pod_uid}/");
    let open = |dir: std::os::fd::BorrowedFd<'_>, path: &str, more: ResolveFlags| {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | more;
        rustix::fs::openat2(dir, path, flags, Mode::empty(), resolve)
            .map_err(|error| anyhow::anyhow!("{source}: {}", std::io::Error::from(error)))
    };
    match source.strip_prefix(&own) {
        Some(inner) if !pod_uid.is_empty() && !inner.is_empty() => {
            let pod = open(CWD, &own, ResolveFlags::NO_SYMLINKS)?;
            open(std::os::fd::AsFd::as_fd(&pod), inner, ResolveFlags::empty())
        }
        _ => open(CWD, source, ResolveFlags::NO_SYMLINKS),
    }
}
