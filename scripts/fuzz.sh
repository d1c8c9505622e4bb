#!/usr/bin/env bash
# Runs every fuzz test for FUZZTIME (10s each); RUN=regexp picks some by name.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH=$PATH:/usr/local/go/bin

# go test fuzzes one test of one package at a time.
grep -rE --include='*_test.go' '^func Fuzz' pkg plugins | sed -E 's|/[^/]*:func (\w+).*| \1|' | sort |
  while read -r folder fuzz; do
    [[ $fuzz =~ ${RUN:-.} ]] || continue
    echo "fuzz: $folder $fuzz"
    go test -run '^$' -fuzz "^$fuzz\$" -fuzztime "${FUZZTIME:-10s}" "./$folder" </dev/null
  done
