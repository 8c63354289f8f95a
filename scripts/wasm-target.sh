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

cache=${XDG_CACHE_HOME:-$HOME/.cache}/sampan
work=
trap '[ -z "$work" ] || rm -rf "$work"' EXIT

print_sysroot() {
    printf 'export CARGO_TARGET_WASM32_WASIP1_RUSTFLAGS=--sysroot=%q\n' "$1"
    printf 'export CARGO_TARGET_WASM32_WASIP2_RUSTFLAGS=--sysroot=%q\n' "$1"
}

# Debian's archive as this machine reaches it.
mirror() {
    cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null |
        grep -E '^(URIs:|deb )' | grep -oE 'https?://[^ ]+/debian/?( |$)' | head -n 1 | tr -d ' '
}

# Unpacks wasi-libc, and rust-src of version $1 where one is asked for, into $work/unpacked. A private
# apt configuration adds the suites that carry them; the machine's own is not touched.
unpack() {
    local archive suite
    command -v dpkg >/dev/null && command -v apt-get >/dev/null || { say "no apt-get"; return 1; }
    archive=$(mirror)
    [ -n "$archive" ] || { say "no Debian archive in apt's configuration"; return 1; }
    [ -r /usr/share/keyrings/debian-archive-keyring.gpg ] || { say "no keyring of Debian's archive"; return 1; }
    mkdir -p "$work"/apt/{etc/apt.conf.d,state/lists/partial,cache/archives/partial} "$work/unpacked"
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
        newest() { apt-cache madison "$1" | awk -F'|' '{gsub(/ /, "", $2); print $2}' | sort -rV | grep -m 1 "^$2"; }
        apt-get -qq update || exit 1
        packages=(wasi-libc="$(newest wasi-libc '')")
        if [ -n "${1:-}" ]; then
            source=$(newest rust-src "$1+") || { say "Debian has no rust-src $1"; exit 1; }
            packages+=(rust-src="$source")
        fi
        apt-get -qq download "${packages[@]}" || exit 1
        for package in ./*.deb; do dpkg -x "$package" unpacked || exit 1; done
    )
}

# build_std RUSTC CARGO LIBRARY SYSROOT: the standard library of both targets out of its sources.
build_std() {
    local rustc=$1 cargo=$2 library=$3 sysroot=$4 target lib host
    say "building std $("$rustc" --version | cut -d' ' -f2) for $TARGETS (once; about three minutes)"
    mkdir -p "$work/crate/src"
    : >"$work/crate/src/lib.rs"
    cat >"$work/crate/Cargo.toml" <<TOML
[package]
name = "std-builder"
version = "0.0.0"
edition = "2021"
[profile.release]
codegen-units = 1
debug = false
[workspace]
TOML
    for target in $TARGETS; do
        # Bitcode and no LTO here, or guests do not link.
        (cd "$work/crate" && env -u CARGO_TARGET_DIR -u CARGO_ENCODED_RUSTFLAGS RUSTC="$rustc" \
            RUSTC_BOOTSTRAP=1 __CARGO_TESTS_ONLY_SRC_ROOT="$library" RUSTFLAGS=-Cembed-bitcode=yes \
            "$cargo" build --quiet --release --target-dir "$work/target" --target "$target" \
            -Zbuild-std=std,panic_abort,test,proc_macro >&2) || return 1
        lib=$work/sysroot/lib/rustlib/$target/lib
        mkdir -p "$lib/self-contained"
        cp "$work/target/$target"/release/deps/lib*.rlib "$lib/" || return 1
        rm -f "$lib"/libstd_builder-*.rlib
        cp "$work/unpacked/usr/lib/$target"/{crt1-command.o,crt1-reactor.o,libc.a} "$lib/self-contained/" || return 1
    done
    # Macros of guests run on the host: its own libraries stay where they are.
    host=$("$rustc" -vV | awk '/^host/ {print $2}')
    ln -s "$("$rustc" --print sysroot)/lib/rustlib/$host" "$work/sysroot/lib/rustlib/$host"
    rm -rf "$sysroot"
    mv "$work/sysroot" "$sysroot"
}

workspace() {
    mkdir -p "$cache"
    [ -z "$work" ] || rm -rf "$work"
    work=$(mktemp -d "$cache/wasm-sysroot.XXXXXX")
}

# Debian's own compiler, and std out of the sources that come with it.
debian_rustc() {
    local version lld
    command -v apt-get >/dev/null || return 1
    # The newest: the release's default one is older than the libc it would link.
    lld=$(apt-cache search --names-only '^lld-[0-9]+$' | cut -d' ' -f1 | sort -V | tail -n 1)
    if ! dpkg -s rustc-web cargo-web rust-web-src "$lld" >/dev/null 2>&1; then
        [ "$(id -u)" = 0 ] || { say "rustc-web is not installed, and only root can install it"; return 1; }
        apt-get install -qq --yes --no-install-recommends rustc-web cargo-web rust-web-src "$lld" >&2 || return 1
    fi
    mkdir -p "$cache/debian/bin"
    ln -sf "/usr/bin/wasm-ld-${lld#lld-}" "$cache/debian/bin/wasm-ld"
    version=$(/usr/bin/rustc --version | cut -d' ' -f2)
    debian_sysroot=$cache/wasm-sysroot-debian-$version
    # The linker of components, which other toolchains carry within.
    if [ ! -x "$cache/debian/bin/wasm-component-ld" ]; then
        say "building wasm-component-ld (once)"
        env -u CARGO_TARGET_DIR RUSTC=/usr/bin/rustc /usr/bin/cargo install --quiet --locked \
            --root "$cache/debian" wasm-component-ld >&2 || return 1
    fi
    [ -d "$debian_sysroot" ] && return
    workspace
    unpack "" && build_std /usr/bin/rustc /usr/bin/cargo "/usr/src/rustc-$version/library" "$debian_sysroot"
}

version=$(rustc --version | cut -d' ' -f2)
sysroot=$cache/wasm-sysroot-$version

build_sysroot() {
    workspace
    unpack "$version" && build_std rustc cargo "$work/unpacked/usr/src/rustc-$version/library" "$sysroot"
}

if installed; then
    say "those of the toolchain"
elif [ -d "$sysroot" ]; then
    say "a sysroot made earlier"
    print_sysroot "$sysroot"
elif build_sysroot; then
    say "a sysroot made from Debian's sources"
    print_sysroot "$sysroot"
elif debian_rustc; then
    say "Debian's rustc, and a sysroot made from its sources"
    printf 'export RUSTC=/usr/bin/rustc CARGO=/usr/bin/cargo PATH=%q:$PATH\n' "$cache/debian/bin"
    print_sysroot "$debian_sysroot"
else
    say "none found; 'rustup target add $TARGETS' installs them where rustup can reach its server"
    exit 1
fi
