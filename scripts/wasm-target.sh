#!/usr/bin/env bash
# Finds or makes a Rust standard library for wasm32-wasip1 and wasm32-wasip2 and prints, as shell
# assignments, what a `cargo build --target wasm32-wasip?` needs. What it took goes to standard error.
#
#   1. the targets of the toolchain in use, where they are installed (rustup target add …)
#   2. a sysroot built from Debian's rust-src of the very same version and Debian's wasi-libc;
#      kept in the cache, nothing is installed and root is not needed
#   3. Debian's rustc-web, which always comes with a matching standard library (root: apt-get install)
set -euo pipefail

TARGETS="wasm32-wasip1 wasm32-wasip2"
say() { printf 'wasm targets: %s\n' "$*" >&2; }

installed() {
    local target
    for target in $TARGETS; do
        compgen -G "$(rustc --print target-libdir --target "$target" 2>/dev/null)/libstd-*.rlib" >/dev/null || return 1
    done
}

version=$(rustc --version | cut -d' ' -f2)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/sampan
sysroot=$cache/wasm-sysroot-$version

print_sysroot() {
    printf 'export CARGO_TARGET_WASM32_WASIP1_RUSTFLAGS=--sysroot=%q\n' "$sysroot"
    printf 'export CARGO_TARGET_WASM32_WASIP2_RUSTFLAGS=--sysroot=%q\n' "$sysroot"
}

# Debian's archive as this machine reaches it.
mirror() {
    cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null |
        grep -E '^(URIs:|deb )' | grep -oE 'https?://[^ ]+/debian/?( |$)' | head -n 1 | tr -d ' '
}

# Builds std for both targets into the sysroot. A private apt configuration adds the suites that carry
# the sources; the machine's own is not touched.
build_sysroot() {
    local work target archive host
    archive=$(mirror)
    [ -n "$archive" ] || { say "no Debian archive in apt's configuration"; return 1; }
    [ -r /usr/share/keyrings/debian-archive-keyring.gpg ] || { say "no keyring of Debian's archive"; return 1; }
    command -v dpkg >/dev/null && command -v apt-get >/dev/null || { say "no apt-get"; return 1; }
    mkdir -p "$cache"
    work=$(mktemp -d "$cache/wasm-sysroot.XXXXXX")
    # shellcheck disable=SC2064
    trap "rm -rf '$work'" EXIT
    mkdir -p "$work"/apt/{etc/apt.conf.d,state/lists/partial,cache/archives/partial} "$work"/unpacked "$work"/crate/src
    local suite
    for suite in trixie trixie-backports; do
        printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n' "$archive" "$suite"
    done >"$work/apt/etc/sources.list"
    cat >"$work/apt/apt.conf" <<CONF
Dir::Etc "$work/apt/etc";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::State "$work/apt/state";
Dir::State::Status "/dev/null";
Dir::Cache "$work/apt/cache";
APT::Sandbox::User "$(id -un)";
Acquire::Languages "none";
CONF
    (
        cd "$work"
        export APT_CONFIG=$work/apt/apt.conf
        apt-get -qq update
        source=$(apt-cache madison rust-src | awk -F'|' '{gsub(/ /, "", $2); print $2}' | grep -m 1 "^$version+") ||
            { say "Debian has no rust-src $version"; exit 1; }
        libc=$(apt-cache madison wasi-libc | awk -F'|' '{gsub(/ /, "", $2); print $2}' | sort -rV | head -n 1)
        apt-get -qq download "rust-src=$source" "wasi-libc=$libc"
        for package in ./*.deb; do dpkg -x "$package" unpacked; done
    ) || return 1
    say "building std $version for $TARGETS (once; about three minutes)"
    : >"$work/crate/src/lib.rs"
    cat >"$work/crate/Cargo.toml" <<TOML
[package]
name = "std-builder"
version = "0.0.0"
edition = "2024"
[profile.release]
codegen-units = 1
debug = false
[workspace]
TOML
    for target in $TARGETS; do
        # Bitcode and no LTO here, or guests do not link.
        (cd "$work/crate" && env -u CARGO_TARGET_DIR -u RUSTFLAGS -u CARGO_ENCODED_RUSTFLAGS \
            RUSTC_BOOTSTRAP=1 __CARGO_TESTS_ONLY_SRC_ROOT="$work/unpacked/usr/src/rustc-$version/library" \
            RUSTFLAGS=-Cembed-bitcode=yes \
            cargo build --quiet --release --target-dir "$work/target" --target "$target" \
            -Zbuild-std=std,panic_abort,test,proc_macro >&2) || return 1
        local lib=$work/sysroot/lib/rustlib/$target/lib
        mkdir -p "$lib/self-contained"
        cp "$work/target/$target"/release/deps/lib*.rlib "$lib/"
        rm -f "$lib"/libstd_builder-*.rlib
        cp "$work/unpacked/usr/lib/$target"/{crt1-command.o,crt1-reactor.o,libc.a} "$lib/self-contained/"
    done
    # Macros of guests run on the host: its own libraries stay where they are.
    host=$(rustc -vV | awk '/^host/ {print $2}')
    ln -s "$(rustc --print sysroot)/lib/rustlib/$host" "$work/sysroot/lib/rustlib/$host"
    rm -rf "$sysroot"
    mv "$work/sysroot" "$sysroot"
    rm -rf "$work"
    trap - EXIT
}

debian_rustc() {
    command -v apt-get >/dev/null || return 1
    if ! dpkg -s rustc-web cargo-web rust-web-src lld >/dev/null 2>&1; then
        [ "$(id -u)" = 0 ] || { say "rustc-web is not installed, and only root can install it"; return 1; }
        apt-get install -qq --yes --no-install-recommends rustc-web cargo-web rust-web-src lld >&2 || return 1
    fi
    local version host
    sysroot=$cache/wasm-sysroot-debian
    version=$(/usr/bin/rustc --version | cut -d' ' -f2)
    host=$(/usr/bin/rustc -vV | awk '/^host/ {print $2}')
    say "Debian's rustc $version"
    printf 'export RUSTC=/usr/bin/rustc CARGO=/usr/bin/cargo\n'
    : "$host"
}

if installed; then
    say "those of the toolchain"
elif [ -d "$sysroot" ]; then
    say "a sysroot made earlier"
    print_sysroot
elif build_sysroot; then
    say "a sysroot made from Debian's sources"
    print_sysroot
elif debian_rustc; then
    :
else
    say "none found; 'rustup target add $TARGETS' installs them where rustup can reach its server"
    exit 1
fi
