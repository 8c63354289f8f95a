//! Figures are of release builds: this builds what is measured and fetches the peers, then goes on as
//! its own release build.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

/// Does not come back: the release build goes on with the same arguments.
pub fn release_and_samples(repository: &Path) -> Result<()> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository.join("target"), Into::into);
    // The whole workspace: one package alone resolves other features of what is shared.
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = ["build", "--locked", "--release", "--workspace"];
    let status = Command::new(cargo).args(arguments).current_dir(repository).status().context("cargo")?;
    ensure!(status.success(), "cargo {} failed", arguments.join(" "));
    let status = Command::new(repository.join("scripts/samples.sh")).env("CARGO_TARGET_DIR", &target).status()?;
    ensure!(status.success(), "scripts/samples.sh failed");
    let setup = Command::new(repository.join("scripts/bench-setup.sh")).stderr(Stdio::inherit()).output()?;
    let peers = String::from_utf8_lossy(&setup.stdout).trim().to_owned();
    let release = target.join("release/bench");
    let mut command = Command::new(&release);
    command.arg("--no-build").args(std::env::args_os().skip(1)).env("SAMPAN_BENCH_PEERS", peers);
    // Only comes back where it fails.
    Err(command.exec()).with_context(|| release.display().to_string())
}
