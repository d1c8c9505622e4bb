#!/usr/bin/env bash
# Runs every test that needs neither root nor a feature of the kernel, within a minute: what a
# change of pure code needs while it is written. Others say what they need with test/needs, and
# are left out, also where all is there.
#   RUN=regexp    only these tests     PKG=./pkg/desired    of one package
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/env.sh
export PODMARK_UNIT=1

packages=("${PKG:-./...}")
# test/lab and its kin have nothing without a node.
[[ -n ${PKG:-} ]] || mapfile -t packages < <(go list ./... | grep -vE '/test/(lab|adversary|chaos|cluster|upgrade)$')
# "make lint" vets.
go test -vet=off ${RUN:+-run "$RUN"} "${packages[@]}"
