#!/usr/bin/env bash
# Builds the sample workloads to ${CARGO_TARGET_DIR:-target}/samples/NAME.wasm.
set -euo pipefail
cd "$(dirname "$0")/.."
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")

settings=$(scripts/wasm-target.sh)
eval "$settings"
# The guests' own files lie apart, so that the host's build and theirs do not wait for each other.
export CARGO_TARGET_DIR=$target/guests
cargo=${CARGO:-cargo}
"$cargo" build --quiet --locked --release --manifest-path sample-workloads/Cargo.toml \
    --target wasm32-wasip2 --package hello --package guestbook --package tcp-echo
"$cargo" build --quiet --locked --release --manifest-path sample-workloads/Cargo.toml \
    --target wasm32-wasip1 --package batch --package greedy --package toolbox

mkdir -p "$target/samples"
for name in hello guestbook tcp-echo batch greedy toolbox; do
    for built in "$target"/guests/wasm32-wasip?/release/"$name".wasm; do
        # Renamed into place: nobody reads a half-written module.
        cp "$built" "$target/samples/.$name.new"
        mv "$target/samples/.$name.new" "$target/samples/$name.wasm"
        printf '%s %s bytes\n' "$target/samples/$name.wasm" "$(stat -c %s "$built")"
    done
done
