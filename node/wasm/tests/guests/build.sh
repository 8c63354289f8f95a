#!/usr/bin/env bash
# Builds the committed guests of the tests anew: proxy.wasm, command.wasm (WASI 0.2), core.wasm (preview 1).
set -euo pipefail
cd "$(dirname "$0")"
eval "$(../../../../scripts/wasm-target.sh)"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}/test-guests"
cargo=${CARGO:-cargo}
"$cargo" build --quiet --release --target wasm32-wasip2
"$cargo" build --quiet --release --target wasm32-wasip1 --bin command
for built in wasm32-wasip2/release/{proxy,command}.wasm wasm32-wasip1/release/command.wasm; do
    name=$(basename "$built")
    case $built in wasm32-wasip1/*) name=core.wasm ;; esac
    gzip -9nc "$CARGO_TARGET_DIR/$built" > "$name.gz"
done
