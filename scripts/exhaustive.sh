#!/usr/bin/env bash
# Runs the whole of what 'make test' does a share of on the machine's own kernel: each step of a call
# killed and followed by everything on each backend, and installs beside an agent that writes too.
# What the lab has of it runs in 'make lab'.
#   RUN=regexp    only these tests     PKG=./plugins/podmark    of one package
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/env.sh
export PODMARK_WHOLE=1

scripts/deps.sh
scripts/build.sh
scripts/tools.sh cni
packages=("${PKG:-./plugins/podmark}")
[[ -n ${PKG:-} ]] || packages+=(./plugins/podmarkd)
go test -count=1 -timeout 2h -run "${RUN:-^Test(Kill|InstallRace)\$}" "${packages[@]}"
