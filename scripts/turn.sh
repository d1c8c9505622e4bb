#!/usr/bin/env bash
# Prints a regexp of the tests of packages whose turn it is not, for "go test -skip": of N tests one
# has its turn, and another one in another share; see PODMARK_SHARE in scripts/test.sh. Where all are
# to run it matches none.
#   turn.sh N PACKAGES...
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/env.sh
of=${1:?usage: turn.sh N PACKAGES...}
shift

names=
if [[ -n ${PODMARK_SHARE:-} ]]; then
  # A share that has the test in turn must not be one that always takes the same of two or three backends.
  turn=$((PODMARK_SHARE / 6 % of))
  names=$(go test -list . "$@" | grep '^Test' | sort -u | awk -v of="$of" -v turn="$turn" 'NR % of != turn' | paste -sd '|')
fi
echo "^($names)\$"
