#!/usr/bin/env bash
# Takes each static rule out, one after the other, and has the random packets of
# test/verdict or the attacks of test/adversary find out: for nftables, and for iptables.
#   RUN=regexp   of subtests, such as TestMutants/nftables
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/env.sh

scripts/deps.sh
scripts/build.sh
scripts/tools.sh cni
adversary=$(mktemp)
trap 'rm -f "$adversary"' EXIT
go test -c -o "$adversary" ./test/adversary
PODMARK_ADVERSARY=$adversary go test -tags mutants ./test/verdict -count=1 -timeout 5h -run "${RUN:-^TestMutants$}" -v
