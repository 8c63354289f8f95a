#!/usr/bin/env bash
# Formatting, clippy with warnings denied, and the rules for dependencies in deny.toml.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo fmt --all --check
cargo fmt --all --check --manifest-path sample-workloads/Cargo.toml
cargo clippy --locked --workspace --all-targets --quiet -- --deny warnings
cargo deny --version >/dev/null 2>&1 || cargo install --quiet --locked cargo-deny
# The advisory database is no package: it is checked where it can be fetched.
cargo deny --all-features check licenses bans sources
