#!/usr/bin/env bash
# Has pods come and go while plugins and podmarkd are killed and rules are flushed, for an hour
# in all: on each backend, with policies from the API and from files, with one family and two.
#   LENGTH=10m   of each, two at a time
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/env.sh

scripts/deps.sh >&2
scripts/build.sh >&2
scripts/tools.sh cni >&2
PODMARK_CHAOS=${LENGTH:-10m} go test ./test/chaos -count=1 -timeout 5h -parallel 2 -v |
  grep -E "^ +chaos_test|^ *--- |^(ok|FAIL|panic)"
