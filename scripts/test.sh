#!/usr/bin/env bash
# Runs the tests: first those that the machine's own kernel can run, podmark's own code with the
# race detector, then the lab's. Of what comes in backends it runs a share, which is another one for
# each commit: PODMARK_SHARE is its number, and where it is empty all is run. CI=true makes a
# missing kernel feature fatal.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/env.sh
export PODMARK_SHARE=${PODMARK_SHARE-$((16#$(git rev-parse --short=7 HEAD 2>/dev/null || echo 0)))}

echo "share ${PODMARK_SHARE:-of everything}"
scripts/deps.sh
scripts/build.sh
scripts/tools.sh cni

# The limit is for what hangs: a busy machine may need more than go's ten minutes.
# Programs with the race detector wait a second when they end: tests start thousands of them.
GORACE=atexit_sleep_ms=0 CGO_ENABLED=1 go test -race -timeout 30m ./pkg/... ./plugins/...
# What these test are programs and kernels, which the race detector does not see; test/lab has
# tests that only the lab's kernel can run.
mapfile -t packages < <(go list ./test/... | grep -v '/test/lab$')
go test -timeout 30m "${packages[@]}"
# Modules of their own, for tests whose dependencies podmark must not have; two have
# no code, but pin the programs that tests run.
find . -mindepth 2 -name go.mod -not -path './bin/*' -not -path './test/tools/*' -not -path './test/kubeproxy/*' | sort | while read -r mod; do
  go -C "$(dirname "$mod")" test -timeout 30m ./...
done

scripts/lab-test.sh
