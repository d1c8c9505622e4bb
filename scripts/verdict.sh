#!/usr/bin/env bash
# Compares what the kernel does with 1,000,000 random packets, forged ones, answers, errors,
# what is inside live flows, neighbour discovery and frames of all kinds among them, with what
# desired.State says, on nftables, on both variants of iptables, and on iptables without
# nf_tables. ROUNDS= of 7 is what 'make test' does.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/env.sh

scripts/deps.sh
PODMARK_ROUNDS=${ROUNDS:-120} go test ./test/verdict -count=1 -timeout 5h -run '^TestVerdicts$' -v
