#!/usr/bin/env bash
# For "go test -exec": runs a test binary in the lab. go test builds the binary
# below /tmp, which the lab does not show, so it is copied into the work tree.
set -euo pipefail
binary=$1
shift
bin=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/bin/lab
mkdir -p "$bin"
copy=$(mktemp "$bin/$(basename "$binary").XXXXXX")
trap 'rm -f "$copy"' EXIT
cp "$binary" "$copy"
chmod +x "$copy"
# What it says of lost questions goes to the file LAB_LOSSES too: go test keeps it to itself.
"$bin/../../scripts/lab.sh" "exec $(printf '%q ' "$copy" "$@")" |
  tee >(grep '^asked once more' >>"${LAB_LOSSES:-/dev/null}")
