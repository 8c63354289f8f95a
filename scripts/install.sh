#!/usr/bin/env bash
# install.sh PROGRAM PREFIX: the program, the shim beside it, shell completions and an example systemd unit.
# install.sh --remove PREFIX: takes them away again.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
program=$1 prefix=$2

files() {
    cat <<FILES
$prefix/bin/sampan
$prefix/bin/containerd-shim-sampan-v1
$prefix/share/bash-completion/completions/sampan
$prefix/share/zsh/site-functions/_sampan
$prefix/share/fish/vendor_completions.d/sampan.fish
$prefix/lib/systemd/system/sampan.service
FILES
}

if [ "$program" = --remove ]; then
    files | while read -r file; do rm -f "$file" && echo "removed $file"; done
    exit 0
fi

files | while read -r file; do mkdir -p "$(dirname "$file")"; done
install -m 755 "$program" "$prefix/bin/sampan"
install -m 755 "$(dirname "$program")/containerd-shim-sampan-v1" "$prefix/bin/containerd-shim-sampan-v1"
"$program" completions bash >"$prefix/share/bash-completion/completions/sampan"
"$program" completions zsh >"$prefix/share/zsh/site-functions/_sampan"
"$program" completions fish >"$prefix/share/fish/vendor_completions.d/sampan.fish"
sed "s|@PREFIX@|$prefix|" "$here/sampan.service" >"$prefix/lib/systemd/system/sampan.service"
files | sed 's/^/installed /'
