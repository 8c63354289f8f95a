#!/usr/bin/env bash
# demo.sh SAMPAN SAMPLES: a cluster in a temporary directory, a Wasm microservice on it, and its
# answers. Prints each command as you would type it; leaves nothing running.
set -euo pipefail
sampan=$1 samples=$2
cd "$(dirname "$0")/.."
[ -f "$samples/hello.wasm" ] || { echo "$samples/hello.wasm is not there: make samples" >&2; exit 1; }

dir=$(mktemp -d "${TMPDIR:-/tmp}/sampan-demo.XXXXXX")
export KUBECONFIG=$dir/data/kubeconfig
up=

finish() {
    status=$?
    trap - EXIT INT TERM
    if [ -n "$up" ] && kill -0 "$up" 2>/dev/null; then
        printf '\n# the end: pods, then the cluster\n'
        kill -TERM "$up"
        wait "$up" || status=$?
    fi
    if [ "$status" -ne 0 ]; then
        printf '\nthe demo failed (%s); the cluster said last:\n' "$status" >&2
        tail -n 30 "$dir/log" >&2 || true
        "$sampan" down --data-dir "$dir/data" >&2 || true
    fi
    rm -rf "$dir"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

# run COMMAND...: shows it, then does it. `sampan` is the program just built.
run() {
    printf '\n$ %s\n' "$*"
    if [ "$1" = sampan ]; then shift && "$sampan" "$@"; else "$@"; fi
}

printf '$ sampan up --data-dir %s --listen 127.0.0.1:0 &\n' "$dir/data"
"$sampan" up --data-dir "$dir/data" --listen 127.0.0.1:0 >"$dir/out" 2>"$dir/log" &
up=$!
for _ in $(seq 600); do
    grep -q '^ready' "$dir/out" 2>/dev/null && break
    kill -0 "$up" 2>/dev/null || { wait "$up"; exit 1; }
    sleep 0.1
done
grep '^ready' "$dir/out" || { echo "not ready after a minute" >&2; exit 1; }
echo "\$ export KUBECONFIG=$KUBECONFIG"

run sampan image import "$samples/hello.wasm" --as localhost/hello:v1
run sampan apply -f sample-workloads/hello/deploy.yaml

printf '\n# until the three pods are ready\n'
for _ in $(seq 300); do
    ready=$("$sampan" get deployment hello -o json | grep -o '"readyReplicas": *[0-9]*' | grep -o '[0-9]*$' || true)
    [ "${ready:-0}" = 3 ] && break
    sleep 0.1
done
run sampan get pods -o wide
run sampan get service hello
[ "${ready:-0}" = 3 ] || { echo "the pods did not become ready" >&2; run sampan status; exit 1; }

address=$("$sampan" get service hello -o json | grep -o '"clusterIP": *"[^"]*"' | cut -d'"' -f4)
printf '\n# called through its Service, the pods take turns\n'
for _ in 1 2 3 4 5 6; do
    if command -v curl >/dev/null; then
        run curl --silent --show-error --fail --max-time 10 --noproxy '*' "http://$address:8080/demo"
    else
        printf '\n$ GET http://%s:8080/demo\n' "$address"
        exec 3<>"/dev/tcp/$address/8080"
        printf 'GET /demo HTTP/1.1\r\nHost: hello\r\nConnection: close\r\n\r\n' >&3
        tail -n 1 <&3
        exec 3>&-
    fi
done

run sampan status
cat <<'NEXT'

# go on yourself:
#   sampan up                                                 a cluster that stays
#   kubectl apply -f sample-workloads/guestbook/deploy.yaml   two services, after importing guestbook.wasm
#   sampan run ./your.wasm --port 8080                        your own module, and its address
NEXT
