//! Notes the compiler: another one makes other code, and so other counts.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = Command::new(rustc).arg("--version").output().map(|output| output.stdout).unwrap_or_default();
    println!("cargo:rustc-env=GUARDS_RUSTC={}", String::from_utf8_lossy(&version).trim());
}
