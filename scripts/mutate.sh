#!/usr/bin/env bash
# Makes small changes that matter to podmark's code, one at a time, and has the unit tests of
# their package find each of them, without root. The list is test/mutate/list.go.
#   RUN=regexp   of packages, files and reasons, such as 'pkg/state|whois'
#   JOBS=1       how many at a time; 2 else
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/env.sh

go run ./test/mutate -j "${JOBS:-2}" -run "${RUN:-.}"
