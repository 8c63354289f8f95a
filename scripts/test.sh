#!/usr/bin/env bash
# Installs what the tests need, then runs every check: formatting, clippy, unit, property and
# end-to-end tests.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${CARGO_TARGET_DIR:?run this through make}"

scripts/test-setup.sh
step() { printf '\n== %s\n' "$*"; }

step formatting
cargo fmt --all --check
step sample workloads
scripts/samples.sh
step clippy
cargo clippy --locked --workspace --all-targets --quiet -- --deny warnings
step tests
cargo build --locked --workspace --quiet
export SAMPAN_SAMPLES=$CARGO_TARGET_DIR/samples SAMPAN_BIN=$CARGO_TARGET_DIR/debug/sampan
tools=$(scripts/test-setup.sh --tools)
export SAMPAN_IMAGES=${tools%/*}/images
PATH=$tools:$PATH cargo nextest run --locked --workspace --no-fail-fast "$@"
