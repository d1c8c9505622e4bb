#!/usr/bin/env bash
# Starts pods, on each backend, while clients in them and outside try all the time to do
# what their policy forbids: with podmarkd running, and with one that is killed meanwhile.
#   STARTS=340   how many in each way on each backend
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/env.sh

scripts/deps.sh >&2
scripts/build.sh >&2
scripts/tools.sh cni >&2
PODMARK_STARTS=${STARTS:-340} go test -count=1 -timeout 3h -run '^TestStartup' -v ./test/cluster |
  grep -E '^ +startup_test|^ *--- |^(ok|FAIL|panic)'
