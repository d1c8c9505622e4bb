#!/usr/bin/env bash
# Runs every fuzz test for FUZZTIME (10s each), and asks the judges of test/oracle about
# random clusters for JUDGETIME (3m); RUN=regexp picks some by name. PODMARK_SEED repeats
# what the judges were asked.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/env.sh

# go test fuzzes one test of one package at a time.
grep -rE --include='*_test.go' '^func Fuzz' pkg plugins | sed -E 's|/[^/]*:func (\w+).*| \1|' | sort |
  while read -r directory fuzz; do
    [[ $fuzz =~ ${RUN:-.} ]] || continue
    echo "fuzz: $directory $fuzz"
    go test -run '^$' -fuzz "^$fuzz\$" -fuzztime "${FUZZTIME:-10s}" "./$directory" </dev/null
  done

# No fuzz test of Go: coverage has nothing to teach it, and a seed repeats a run.
for judged in TestAgreement TestClusterAgreement; do
  [[ $judged =~ ${RUN:-.} ]] || continue
  echo "fuzz: test/oracle $judged"
  PODMARK_FUZZTIME=${JUDGETIME:-3m} go -C test/oracle test -count=1 -timeout 0 -v -run "^$judged\$" .
done
