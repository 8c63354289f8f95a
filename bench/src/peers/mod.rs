//! Programs of others that run beside ours.

mod etcd;
mod nginx;

use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;

use anyhow::{Context as _, Result};

pub use etcd::Etcd;
pub use nginx::Nginx;

/// A program in `SAMPAN_BENCH_PEERS`, else in PATH. Without it the peer's column stays empty.
pub fn find(program: &str) -> Option<PathBuf> {
    let peers = std::env::var_os("SAMPAN_BENCH_PEERS").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut files = peers.into_iter().chain(std::env::split_paths(&path)).map(|dir| dir.join(program));
    files.find(|file| file.is_file())
}

/// A port that nobody has, for who cannot be told to choose one.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
    Ok(listener.local_addr()?.port())
}
