#!/usr/bin/env bash
# Runs every fuzz test for FUZZTIME (10s each); RUN=regexp picks some by name.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH=$PATH:/usr/local/go/bin

go list ./... | while read -r package; do
  # go test fuzzes one test of one package at a time.
  go test -list '^Fuzz' "$package" </dev/null | grep '^Fuzz' | grep -E "${RUN:-.}" | while read -r fuzz; do
    echo "fuzz: $package $fuzz"
    go test -run '^$' -fuzz "^$fuzz\$" -fuzztime "${FUZZTIME:-10s}" "$package" </dev/null
  done || exit
done
