#!/usr/bin/env bash
# Writes the manual pages into bin/man, those of podmarkctl and podmarkd from their commands:
#   man -l bin/man/podmarkctl-explain.8
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/env.sh
export PODMARK_UNIT=1

rm -rf bin/man
mkdir -p bin/man
go test ./plugins/podmarkctl ./plugins/podmarkd -count=1 -run '^TestManual$' -args -man "$PWD/bin/man"
cp plugins/podmark/podmark.8 bin/man/
echo "built bin/man:" "$(cd bin/man && echo *)"
