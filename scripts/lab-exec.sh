#!/usr/bin/env bash
# For "go test -exec": runs a test binary in the lab. go test builds the binary
# below /tmp, which the lab does not show, so it is copied into the work tree.
#
# The whole suite is run in two labs at once, one for each variant of iptables: an
# emulated machine keeps one processor busy. Each has half of what is for nftables. A
# test that does not come in backends runs in both. With -run, there is one lab.
# TestRealKubeProxy takes minutes for each backend: without -run it leaves out one. Of a
# share, see PODMARK_SHARE in scripts/lab-test.sh, each lab has half of the tests.
set -euo pipefail
binary=$1
shift
bin=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/bin/lab
mkdir -p "$bin"
copy=$(mktemp "$bin/$(basename "$binary").XXXXXX")
set -m # each background job is a process group, and can be ended as one
trap 'rm -f "$copy" "$copy.out"; kill -- -"${other:-none}" 2>/dev/null || true' EXIT
cp "$binary" "$copy"
chmod +x "$copy"

lab() { # what it says of lost questions goes to the file LAB_LOSSES too: go test keeps it to itself
  "$bin/../../scripts/lab.sh" "exec $(printf '%q ' "$copy" "$@")" |
    tee >(grep '^asked once more' >>"${LAB_LOSSES:-/dev/null}")
}

if [[ " $* " == *" -test.run="* ]] || (($(nproc) == 1)); then
  lab "$@"
  exit
fi
legacy='.*/^iptables-nft$|^TestRealKubeProxy$/^iptables-legacy$|^Test[A-L]/^nftables$'
nft='.*/^iptables-legacy$|^Test[M-Z]/^nftables$'
if [[ -n ${PODMARK_SHARE:-} ]]; then
  legacy='^Test[A-L]' nft='^Test[M-Z]'
fi
status=0
lab "$@" "-test.skip=$legacy" >"$copy.out" 2>&1 &
other=$!
lab "$@" "-test.skip=$nft" || status=$?
wait "$other" || status=$?
cat "$copy.out"
exit "$status"
