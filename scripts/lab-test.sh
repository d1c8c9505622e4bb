#!/usr/bin/env bash
# Runs test/lab on the lab's kernel, and what test/adversary and, unless RUN picks some of it,
# test/conformance have for that kernel.
#   RUN=regexp    only these tests     V=1   as they go     LAB_TIMEOUT=seconds
#   PODMARK_SHARE=number   of each test one backend: another with the next test, and with the next number
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/env.sh
export LAB_TIMEOUT=${LAB_TIMEOUT:-3600}

scripts/build.sh
scripts/tools.sh cni
# Building kube-proxy takes minutes the first time, so only for the test that runs it.
run=${RUN:-.}
if go test -list "${run%%/*}" ./test/lab | grep '^TestRealKubeProxy$' >/dev/null; then
  scripts/tools.sh kube-proxy
fi
# The suite's own limit is the shorter one: it says which test hangs, and where.
# Most tests wait for a packet that must not come, so more run at once than there
# are processors.
in_lab() { # MODULE PACKAGE ARGUMENTS...
  local module=$1 package=$2
  shift 2
  go -C "$module" test -exec "'$PWD/scripts/lab-exec.sh'" -count=1 -timeout $((LAB_TIMEOUT - 30))s "$@" ${V:+-v} "$package"
}
LAB_LOSSES=$(mktemp)
export LAB_LOSSES
trap 'rm -f "$LAB_LOSSES"' EXIT
failed=0
if [[ -z ${RUN:-} ]]; then # it takes one lab, and leaves a processor idle where it is alone
  said=$(mktemp)
  set -m # so that it can be ended with all that it has started
  trap 'kill -- -"${conformance:-none}" 2>/dev/null || true; rm -f "$said" "$LAB_LOSSES"' EXIT
  in_lab test/conformance . -run "^TestServiceIP\$" >"$said" 2>&1 &
  conformance=$!
fi
for package in ./test/lab ./test/adversary; do
  go test -list "${run%%/*}" "$package" | grep '^Test' >/dev/null || continue
  in_lab . "$package" -parallel "${LAB_PARALLEL:-4}" ${RUN:+-run "$RUN"} || failed=1
done
if [[ -n ${conformance:-} ]]; then
  wait "$conformance" || failed=1
  cat "$said"
fi
cat "$LAB_LOSSES"
exit $failed
