//! Compiles the protocols without protoc, and the pause program without a library.

use std::error::Error;
use std::path::PathBuf;
use std::process::Command;

const PROTOS: &[&str] = &[
    "proto/content.proto",
    "proto/cri.proto",
    "proto/diff.proto",
    "proto/events.proto",
    "proto/images.proto",
    "proto/leases.proto",
    "proto/snapshots.proto",
    "proto/task_events.proto",
    "proto/types.proto",
    "proto/version.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed=pause");
    let files = protox::compile(PROTOS, ["proto"])?;
    tonic_prost_build::configure().build_server(false).btree_map(".").include_file("proto.rs").compile_fds(files)?;
    pause()
}

/// The linker gets nothing but the one object: no libc, no start files, no dynamic loader.
fn pause() -> Result<(), Box<dyn Error>> {
    let variable = |name: &str| std::env::var_os(name).ok_or_else(|| format!("cargo sets no {name}"));
    let program = PathBuf::from(variable("OUT_DIR")?).join("pause");
    let target = std::env::var("TARGET")?;
    let mut rustc = Command::new(variable("RUSTC")?);
    rustc
        .args(["--edition=2024", "--crate-type=bin", "--crate-name=pause", "--target", &target])
        .args(["-Cpanic=abort", "-Copt-level=z", "-Cstrip=symbols", "-Crelocation-model=static"])
        .args(["-Clink-arg=-nostartfiles", "-Clink-arg=-nostdlib", "-Clink-arg=-static"])
        .arg("pause/pause.rs")
        .arg("-o")
        .arg(&program);
    if let Some(linker) = std::env::var_os("RUSTC_LINKER") {
        let mut option = std::ffi::OsString::from("-Clinker=");
        option.push(linker);
        rustc.arg(option);
    }
    let status = rustc.status()?;
    if status.success() { Ok(()) } else { Err(format!("compiling the pause program: {status}").into()) }
}
