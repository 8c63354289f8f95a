//! What a file is, told from its bytes, and the node's store of compiled modules.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use wasmparser::{ComponentExternalKind, Encoding, ExternalKind, Parser, Payload, TypeRef};

use crate::compile;
use crate::proto::ModuleKind;

/// Why a file cannot run. The texts reach users through pod events.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("not a WebAssembly module or component: {0}")]
    NotWasm(String),
    #[error("truncated: the file ends at byte {offset} inside a section")]
    Truncated { offset: u64 },
    #[error("malformed at byte {offset}: {message}")]
    Malformed { offset: u64, message: String },
    #[error("imports what this host does not provide: {}", .0.join(", "))]
    Imports(Vec<String>),
    #[error("has no entry: {0}")]
    NoEntry(String),
    #[error("does not compile: {0}")]
    Compile(String),
    #[error("compiling took more than {0} s")]
    Timeout(u64),
    #[error("{0}")]
    Io(String),
}

/// Begins the names of files that are not whole yet; the writer's process id follows.
const TEMPORARY: &str = ".tmp-";

const PREVIEW1: &str = "wasi_snapshot_preview1";

/// Every function of WASI preview 1.
const PREVIEW1_FUNCTIONS: [&str; 46] = [
    "args_get",
    "args_sizes_get",
    "clock_res_get",
    "clock_time_get",
    "environ_get",
    "environ_sizes_get",
    "fd_advise",
    "fd_allocate",
    "fd_close",
    "fd_datasync",
    "fd_fdstat_get",
    "fd_fdstat_set_flags",
    "fd_fdstat_set_rights",
    "fd_filestat_get",
    "fd_filestat_set_size",
    "fd_filestat_set_times",
    "fd_pread",
    "fd_prestat_dir_name",
    "fd_prestat_get",
    "fd_pwrite",
    "fd_read",
    "fd_readdir",
    "fd_renumber",
    "fd_seek",
    "fd_sync",
    "fd_tell",
    "fd_write",
    "path_create_directory",
    "path_filestat_get",
    "path_filestat_set_times",
    "path_link",
    "path_open",
    "path_readlink",
    "path_remove_directory",
    "path_rename",
    "path_symlink",
    "path_unlink_file",
    "poll_oneoff",
    "proc_exit",
    "proc_raise",
    "random_get",
    "sched_yield",
    "sock_accept",
    "sock_recv",
    "sock_send",
    "sock_shutdown",
];

/// Every interface of WASI 0.2 that the host links, by package.
const INTERFACES: [(&str, &[&str]); 7] = [
    (
        "cli",
        &[
            "environment",
            "exit",
            "stdin",
            "stdout",
            "stderr",
            "terminal-input",
            "terminal-output",
            "terminal-stdin",
            "terminal-stdout",
            "terminal-stderr",
        ],
    ),
    ("clocks", &["monotonic-clock", "wall-clock"]),
    ("filesystem", &["preopens", "types"]),
    ("http", &["types", "outgoing-handler"]),
    ("io", &["error", "poll", "streams"]),
    ("random", &["random", "insecure", "insecure-seed"]),
    (
        "sockets",
        &["network", "instance-network", "ip-name-lookup", "tcp", "tcp-create-socket", "udp", "udp-create-socket"],
    ),
];

/// The newest patch of WASI 0.2 that is linked.
const NEWEST_PATCH: u32 = 12;

/// Splits `wasi:http/types@0.2.3`.
fn interface(name: &str) -> Option<(&str, &str, u32)> {
    let (package, rest) = name.strip_prefix("wasi:")?.split_once('/')?;
    let (interface, version) = rest.split_once('@')?;
    let patch = version.strip_prefix("0.2.")?.parse().ok()?;
    Some((package, interface, patch))
}

fn provided(name: &str) -> bool {
    interface(name).is_some_and(|(package, interface, patch)| {
        patch <= NEWEST_PATCH
            && INTERFACES.iter().any(|(p, interfaces)| *p == package && interfaces.contains(&interface))
    })
}

/// Tells what the bytes are. Reads structure only: whether the code is valid is the compiler's
/// business, in a process of its own.
pub fn inspect(bytes: &[u8]) -> Result<ModuleKind, Error> {
    if !bytes.starts_with(b"\0asm") {
        return Err(Error::NotWasm(describe(bytes)));
    }
    let mut scan = Scan::default();
    let mut depth = 0usize;
    let mut component = false;
    for payload in Parser::new(0).parse_all(bytes) {
        let payload = payload.map_err(|error| malformed(&error, bytes.len()))?;
        match payload {
            Payload::Version { encoding, .. } => {
                if depth == 0 {
                    component = encoding == Encoding::Component;
                }
                depth += 1;
            }
            Payload::End(_) => depth = depth.saturating_sub(1),
            other if depth == 1 => {
                scan.section(other).map_err(|error| malformed(&error, bytes.len()))?;
            }
            _ => {}
        }
    }
    if !scan.foreign.is_empty() {
        return Err(Error::Imports(scan.foreign.into_iter().collect()));
    }
    if !component {
        return if scan.start {
            Ok(ModuleKind::Core)
        } else {
            Err(Error::NoEntry("a core module needs an exported function `_start` (WASI preview 1)".into()))
        };
    }
    match (scan.proxy, scan.command) {
        (true, _) => Ok(ModuleKind::Proxy),
        (false, true) => Ok(ModuleKind::Command),
        (false, false) => Err(Error::NoEntry(format!(
            "a component needs to export wasi:cli/run or wasi:http/incoming-handler of WASI 0.2{}",
            match scan.exports.is_empty() {
                true => "; this one exports nothing".to_owned(),
                false => {
                    let names: Vec<_> = scan.exports.into_iter().take(8).collect();
                    format!("; this one exports {}", names.join(", "))
                }
            }
        ))),
    }
}

#[derive(Default)]
struct Scan {
    start: bool,
    command: bool,
    proxy: bool,
    exports: Vec<String>,
    foreign: BTreeSet<String>,
}

impl Scan {
    fn section(&mut self, payload: Payload<'_>) -> wasmparser::Result<()> {
        match payload {
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    let import = import?;
                    let known = import.module == PREVIEW1
                        && PREVIEW1_FUNCTIONS.contains(&import.name)
                        && matches!(import.ty, TypeRef::Func(_) | TypeRef::FuncExact(_));
                    if !known {
                        self.foreign.insert(format!("{}.{}", import.module, import.name));
                    }
                }
            }
            Payload::ExportSection(section) => {
                for export in section {
                    let export = export?;
                    self.start |= export.name == "_start" && export.kind == ExternalKind::Func;
                }
            }
            Payload::ComponentImportSection(section) => {
                for import in section {
                    let import = import?;
                    // Types may be imported beside instances; they ask nothing of the host.
                    let name = import.name.0;
                    let is_type = matches!(import.ty, wasmparser::ComponentTypeRef::Type(_));
                    if !is_type && !provided(name) {
                        self.foreign.insert(name.to_owned());
                    }
                }
            }
            Payload::ComponentExportSection(section) => {
                for export in section {
                    let export = export?;
                    let name = export.name.0;
                    if export.kind == ComponentExternalKind::Instance {
                        match interface(name) {
                            Some(("cli", "run", _)) => self.command = true,
                            Some(("http", "incoming-handler", _)) => self.proxy = true,
                            _ => {}
                        }
                    }
                    self.exports.push(name.to_owned());
                }
            }
            _ => {}
        }
        Ok(())
    }
}

fn malformed(error: &wasmparser::BinaryReaderError, length: usize) -> Error {
    let message = error.message();
    let offset = error.offset() as u64;
    if message.contains("unexpected end") || offset >= length as u64 {
        Error::Truncated { offset: length as u64 }
    } else {
        Error::Malformed { offset, message: message.to_owned() }
    }
}

/// Names the commonest wrong files.
fn describe(bytes: &[u8]) -> String {
    match bytes {
        [] => "the file is empty".into(),
        [0x7f, b'E', b'L', b'F', ..] => "this is an ELF program for a processor".into(),
        [b'#', b'!', ..] => "this is a script".into(),
        [0x1f, 0x8b, ..] => "this is a gzip archive".into(),
        [b'P', b'K', ..] => "this is a zip archive".into(),
        [0, ..] if b"\0asm".starts_with(bytes) => "the file ends inside its header".into(),
        _ => {
            let first: Vec<_> = bytes.iter().take(4).map(|b| format!("{b:02x}")).collect();
            format!("it begins with {} where 00 61 73 6d is expected", first.join(" "))
        }
    }
}

/// A compiled module in the node's store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// File name in the modules directory: what [`crate::proto::ContainerSpec::module`] takes.
    pub file: String,
    pub kind: ModuleKind,
}

#[derive(Serialize, Deserialize)]
struct Record {
    kind: String,
    engine: String,
    bytes: u64,
}

/// Compiled modules by the digest of their source. Nobody but its owner may write the directory:
/// mapping a file from it is trusting it.
#[derive(Clone)]
pub struct Cache {
    dir: PathBuf,
    engine: String,
    options: compile::Options,
    busy: Arc<std::sync::Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>>,
}

impl Cache {
    pub fn open(dir: impl Into<PathBuf>, options: compile::Options) -> Result<Cache, Error> {
        let dir = dir.into();
        std::fs::create_dir_all(&dir).map_err(|e| io(&dir, &e))?;
        // Hosts are other users: they map what is here, whatever our umask.
        open_to_all(&dir, 0o755)?;
        let engine = crate::engine::compiler().map_err(|e| Error::Io(format!("{e:#}")))?;
        let engine = crate::engine::hash(&engine);
        // What a killed compiler left. Several processes may share the directory.
        for entry in std::fs::read_dir(&dir).map_err(|e| io(&dir, &e))?.flatten() {
            let name = entry.file_name();
            let pid = name.to_str().and_then(|name| name.strip_prefix(TEMPORARY)?.split('-').next()?.parse().ok());
            if pid.is_some_and(|pid: u32| pid != std::process::id() && !Path::new(&format!("/proc/{pid}")).exists()) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        Ok(Cache { dir, engine, options, busy: Arc::default() })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn name(&self, digest: &str) -> String {
        // A digest comes from the image's index; keep it from being a path.
        let digest: String = digest.trim_start_matches("sha256:").chars().filter(char::is_ascii_alphanumeric).collect();
        format!("{digest}.{}", self.engine)
    }

    /// The compiled module of a source's digest, if it is here and of this engine.
    pub fn get(&self, digest: &str) -> Option<Module> {
        let name = self.name(digest);
        let record = std::fs::read(self.dir.join(format!("{name}.json"))).ok()?;
        let record: Record = serde_json::from_slice(&record).ok()?;
        let file = format!("{name}.cwasm");
        let length = std::fs::metadata(self.dir.join(&file)).ok()?.len();
        let kind = ModuleKind::from_str_name(&record.kind)?;
        (record.engine == self.engine && record.bytes == length).then_some(Module { file, kind })
    }

    /// Gives the compiled module, compiling it in a process of its own if need be. Several callers
    /// for one digest compile once.
    pub async fn ensure(&self, digest: &str, wasm: &Path) -> Result<Module, Error> {
        if let Some(module) = self.get(digest) {
            return Ok(module);
        }
        let name = self.name(digest);
        let lock = {
            let mut busy = self.busy.lock().unwrap_or_else(|e| e.into_inner());
            busy.entry(name.clone()).or_default().clone()
        };
        let held = lock.lock().await;
        let result = match self.get(digest) {
            Some(module) => Ok(module),
            None => self.make(&name, wasm).await,
        };
        drop(held);
        let mut busy = self.busy.lock().unwrap_or_else(|e| e.into_inner());
        if Arc::strong_count(&lock) <= 2 {
            busy.remove(&name);
        }
        result
    }

    async fn make(&self, name: &str, wasm: &Path) -> Result<Module, Error> {
        let bytes = tokio::fs::read(wasm).await.map_err(|e| io(wasm, &e))?;
        let kind = inspect(&bytes)?;
        drop(bytes);
        let prefix = format!("{TEMPORARY}{}-{name}", std::process::id());
        let temporary = self.dir.join(format!("{prefix}.cwasm"));
        let made = compile::compile(wasm, &temporary, kind, &self.options).await;
        let finish = || -> Result<Module, Error> {
            let length = made?;
            let record = Record { kind: kind.as_str_name().into(), engine: self.engine.clone(), bytes: length };
            let record = serde_json::to_vec(&record).map_err(|e| Error::Io(e.to_string()))?;
            let json = self.dir.join(format!("{prefix}.json"));
            std::fs::write(&json, record).map_err(|e| io(&json, &e))?;
            let file = format!("{name}.cwasm");
            open_to_all(&temporary, 0o644)?;
            std::fs::rename(&temporary, self.dir.join(&file)).map_err(|e| io(&temporary, &e))?;
            std::fs::rename(&json, self.dir.join(format!("{name}.json"))).map_err(|e| io(&json, &e))?;
            Ok(Module { file, kind })
        };
        let result = finish();
        if result.is_err() {
            let _ = std::fs::remove_file(&temporary);
        }
        result
    }

    /// Forgets the compiled module of a digest. Running containers keep their mapping.
    pub fn remove(&self, digest: &str) {
        let name = self.name(digest);
        let _ = std::fs::remove_file(self.dir.join(format!("{name}.json")));
        let _ = std::fs::remove_file(self.dir.join(format!("{name}.cwasm")));
    }
}

fn open_to_all(path: &Path, mode: u32) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::Permissions::from_mode(mode);
    std::fs::set_permissions(path, mode).map_err(|e| io(path, &e))
}

fn io(path: &Path, error: &std::io::Error) -> Error {
    Error::Io(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn told(text: &str) -> Result<ModuleKind, Error> {
        inspect(&wat::parse_str(text).unwrap())
    }

    #[test]
    fn kinds_are_told_from_the_bytes() {
        let core = "(module (import \"wasi_snapshot_preview1\" \"fd_write\"
            (func (param i32 i32 i32 i32) (result i32))) (func (export \"_start\")))";
        assert_eq!(told(core), Ok(ModuleKind::Core));
        let command = "(component (import \"wasi:cli/stdout@0.2.3\" (instance))
            (instance $run) (export \"wasi:cli/run@0.2.0\" (instance $run)))";
        assert_eq!(told(command), Ok(ModuleKind::Command));
        let proxy = "(component (import \"wasi:http/types@0.2.12\" (instance))
            (instance $h) (export \"wasi:http/incoming-handler@0.2.8\" (instance $h))
            (instance $run) (export \"wasi:cli/run@0.2.0\" (instance $run)))";
        assert_eq!(told(proxy), Ok(ModuleKind::Proxy));
    }

    #[test]
    fn foreign_imports_are_named_all_of_them() {
        let core = "(module (import \"env\" \"b\" (func)) (import \"env\" \"a\" (memory 1))
            (import \"wasi_snapshot_preview1\" \"sock_open\" (func)) (func (export \"_start\")))";
        let names = ["env.a", "env.b", "wasi_snapshot_preview1.sock_open"].map(String::from).to_vec();
        assert_eq!(told(core), Err(Error::Imports(names)));
        for name in
            ["wasi:http/types@0.3.0", "wasi:http/types@0.2.99", "wasi:keyvalue/store@0.2.0", "fermyon:spin/redis"]
        {
            let component = format!("(component (import \"{name}\" (instance)))");
            assert_eq!(told(&component), Err(Error::Imports(vec![name.into()])));
        }
    }

    #[test]
    fn without_an_entry() {
        let message = told("(module (func (export \"main\")))").unwrap_err().to_string();
        assert!(message.contains("`_start`"), "{message}");
        let message = told("(component)").unwrap_err().to_string();
        assert!(message.contains("exports nothing"), "{message}");
        // A global of that name is no function.
        assert!(told("(module (global (export \"_start\") i32 (i32.const 0)))").is_err());
    }

    #[test]
    fn other_files_are_called_by_name() {
        for (bytes, words) in [
            (&b""[..], "empty"),
            (b"\0a", "header"),
            (b"\x7fELF\x02", "ELF"),
            (b"#!/bin/sh", "script"),
            (b"\x1f\x8b\x08", "gzip"),
            (b"(module)", "28 6d 6f 64"),
        ] {
            let message = inspect(bytes).unwrap_err().to_string();
            assert!(message.contains(words), "{message}");
        }
    }

    proptest! {
        /// Every prefix of a module is refused, and says that it is cut off where that shows.
        #[test]
        fn prefixes_are_truncated(cut in 9usize..200) {
            let whole = wat::parse_str("(module (memory 1) (func (export \"_start\") (nop) (nop))
                (data (i32.const 0) \"some data\") (func (export \"other\")))").unwrap();
            let cut = cut.min(whole.len() - 1);
            match inspect(&whole[..cut]) {
                Err(Error::Truncated { offset }) => prop_assert_eq!(offset, cut as u64),
                // Cut between sections, or before the export.
                Ok(ModuleKind::Core) | Err(Error::NoEntry(_)) => {}
                other => prop_assert!(false, "{:?}", other),
            }
        }

        #[test]
        fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = inspect(&bytes);
            let _ = inspect(&[&b"\0asm\x01\0\0\0"[..], &bytes].concat());
            let _ = inspect(&[&b"\0asm\x0d\0\x01\0"[..], &bytes].concat());
        }
    }
}
