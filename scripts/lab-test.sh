#!/usr/bin/env bash
# Runs test/lab on the lab's kernel, and what test/adversary and, unless RUN picks some of it,
# test/conformance have for that kernel.
#   RUN=regexp    only these tests     V=1   as they go     LAB_TIMEOUT=seconds
#   LAB_SHARE=1   each with nftables and one variant of iptables
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
for package in ./test/lab ./test/adversary; do
  go test -list "${run%%/*}" "$package" | grep '^Test' >/dev/null || continue
  go test -exec "'$PWD/scripts/lab-exec.sh'" -count=1 -timeout $((LAB_TIMEOUT - 30))s \
    -parallel "${LAB_PARALLEL:-4}" ${RUN:+-run "$RUN"} ${V:+-v} "$package"
done
if [[ -z ${RUN:-} ]]; then
  go -C test/conformance test -exec "'$PWD/scripts/lab-exec.sh'" -count=1 -timeout $((LAB_TIMEOUT - 30))s \
    -run "^TestServiceIP\$${LAB_SHARE:+/nftables}" ${V:+-v} .
fi
