#!/usr/bin/env bash
# debian-image.sh ARCHIVE PACKAGE...: a Linux image out of Debian's packages, all they depend on and a shell, as
# `docker save` writes one; for `sampan image import ARCHIVE --as REF`. Runs no script of theirs.
# WITHOUT: an extended regular expression of packages to leave out.
set -euo pipefail
archive=$1
shift
without=${WITHOUT:-^$}
dir=$(mktemp -d "${archive%/*}/image.XXXXXX")
trap 'rm -rf "$dir"' EXIT

apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances \
    dash coreutils "$@" 2>/dev/null | grep -E '^[a-z0-9]' | grep -v ':' | sort -u | grep -Ev "$without" >"$dir/names"
# Names that only others provide have no package of their own.
xargs -a "$dir/names" apt-cache show --no-all-versions 2>/dev/null | sed -n 's/^Package: //p' | sort -u >"$dir/packages"
mkdir "$dir/debs" "$dir/root"
chmod 755 "$dir" "$dir/debs"
(cd "$dir/debs" && xargs -a "$dir/packages" apt-get -qq -o APT::Sandbox::User=root download)
for package in "$dir"/debs/*.deb; do dpkg-deb --extract "$package" "$dir/root"; done
mkdir -p "$dir/root"/{proc,sys,dev,tmp,run}
chmod 1777 "$dir/root/tmp"
printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\napp:x:1000:1000::/:/bin/sh\n' >"$dir/root/etc/passwd"
printf 'root:x:0:\nnogroup:x:65534:\napp:x:1000:\n' >"$dir/root/etc/group"
rm -rf "$dir/root/usr/share"/{doc,man,locale,info}

tar --sort=name --numeric-owner --owner=0 --group=0 -C "$dir/root" -cf "$dir/layer.tar" .
layer=$(sha256sum "$dir/layer.tar" | cut -d' ' -f1)
printf '{"architecture":"%s","os":"linux","config":{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
    "$(dpkg --print-architecture)" "$layer" >"$dir/config.json"
printf '[{"Config":"config.json","RepoTags":[],"Layers":["layer.tar"]}]' >"$dir/manifest.json"
tar -C "$dir" -cf "$archive.new" manifest.json config.json layer.tar
mv "$archive.new" "$archive"
