#!/usr/bin/env bash
# Runs the tests: first those that the machine's own kernel can run, what has goroutines with the
# race detector, then the lab's. It runs a share, which is another one for each commit: of what comes in
# backends one, and of the tests that take most time those whose turn it is. PODMARK_SHARE is its number,
# and where it is empty all is run. CI=true makes a missing kernel feature fatal.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/env.sh
export PODMARK_SHARE=${PODMARK_SHARE-$((16#$(git rev-parse --short=7 HEAD 2>/dev/null || echo 0)))}

echo "share ${PODMARK_SHARE:-of everything}"
scripts/deps.sh
scripts/build.sh
scripts/tools.sh cni

# The limit is for what hangs: a busy machine may need more than go's ten minutes.
limit=30m
# These take a node for each test, and most of the time: of their tests every other one has its turn.
halved=(./plugins/podmark ./plugins/podmarkctl ./plugins/podmarkd ./test/chaos ./test/cluster)
# The race detector finds something only where the code has more than one goroutine, and is a lot for
# what is computed. Programs with it wait a second when they end: tests start thousands of them.
racing=() others=()
while read -r package dir; do
  if find "$dir" -maxdepth 1 -name '*.go' ! -name '*_test.go' -exec grep -qE '^\s*go [a-zA-Z]|\.Go\(' {} +; then racing+=("$package"); else others+=("$package"); fi
done < <(go list -f '{{.ImportPath}} {{.Dir}}' ./pkg/...)
GORACE=atexit_sleep_ms=0 CGO_ENABLED=1 go test -race -timeout "$limit" "${racing[@]}"
# Modules of their own, for tests whose dependencies podmark must not have; one has
# no code, but pins a program that tests run. Most of their time is spent waiting for packets
# that must not come, so they run beside the others.
modules() {
  local failed=0 mod
  while read -r mod; do
    go -C "$(dirname "$mod")" test -timeout "$limit" ./... || failed=1
  done < <(find . -mindepth 2 -name go.mod -not -path './bin/*' -not -path './test/kubeproxy/*' | sort)
  return $failed
}
said=$(mktemp)
set -m # so that it can be ended with all that it has started
trap 'kill -- -"${beside:-none}" 2>/dev/null || true; rm -f "$said"' EXIT
modules >"$said" 2>&1 &
beside=$!
# What is below plugins/ and test/ tests programs and kernels, which the race detector does not see;
# test/lab has tests that only the lab's kernel can run.
mapfile -t -O "${#others[@]}" others < <(go list ./test/... | grep -v '/test/lab$' | grep -vxF "$(go list "${halved[@]}")")
go test -timeout "$limit" "${others[@]}"
go test -timeout "$limit" -skip "$(scripts/turn.sh 2 "${halved[@]}")" "${halved[@]}"
failed=0
wait "$beside" || failed=1
cat "$said"
((failed == 0))

scripts/lab-test.sh
