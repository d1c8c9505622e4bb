#!/usr/bin/env bash
# Takes each static rule out, one after the other, and has the random packets of
# test/verdict find out: for nftables, and for iptables.
#   RUN=regexp   of subtests, such as TestMutants/nftables
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH=$PATH:/usr/local/go/bin:/usr/local/sbin:/usr/sbin:/sbin

scripts/deps.sh
go test -tags mutants ./test/verdict -count=1 -timeout 5h -run "${RUN:-^TestMutants$}" -v
