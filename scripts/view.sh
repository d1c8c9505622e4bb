#!/usr/bin/env bash
# Has podmarkd's view follow a random API server for STEPS steps (1,000,000): pods that change,
# take each other's names and addresses, namespaces that are made again, watches that are late,
# refused, listed again. What is enforced at rest is compared with the model. SEED repeats a run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/env.sh

PODMARK_STEPS=${STEPS:-1000000} PODMARK_SEED=${SEED:-} go test ./pkg/agent/kube/view -count=1 -timeout 5h -run '^TestRandomWatches$' -v
