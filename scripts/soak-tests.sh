#!/usr/bin/env bash
# Runs all tests three times in a row beside four busy loops, on two processors: they must hold on
# a machine that does much else. Nothing is taken from the cache of test results.
#   TIMES=3 LOOPS=4     PKG=./pkg/agent/...   only the tests of these packages
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/env.sh

started=()
end() {
  ((${#started[@]})) || return 0
  kill -- "${started[@]/#/-}" 2>/dev/null || true
}
trap end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
set -m # each is a process group, and is ended with all that it has started
(($(nproc) <= 2)) || taskset -cp 0,1 $$ >/dev/null
for ((i = 0; i < ${LOOPS:-4}; i++)); do
  (while :; do :; done) &
  started+=($!)
done

tests=(scripts/test.sh)
[[ -z ${PKG:-} ]] || tests=(env CGO_ENABLED=1 GORACE=atexit_sleep_ms=0 go test -race -timeout 60m "$PKG")
for ((i = 1; i <= ${TIMES:-3}; i++)); do
  begin=$SECONDS
  go clean -testcache
  "${tests[@]}" &
  started+=($!)
  wait $! || { echo "soak-tests: run $i of ${TIMES:-3} failed after $((SECONDS - begin)) s" >&2; exit 1; }
  unset 'started[-1]'
  echo "soak-tests: run $i of ${TIMES:-3} passed in $((SECONDS - begin)) s, beside ${LOOPS:-4} busy loops"
done
