#!/usr/bin/env bash
# Builds the programs that tests and checks run, at the versions test/tools/go.mod
# pins: the reference CNI plugins and cnitool into bin/cni, linters into bin/tools.
#   tools.sh [cni] [lint]     both when none is named
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH=$PATH:/usr/local/go/bin CGO_ENABLED=0

# Anything the build depends on that is newer than the stamp makes it stale.
fresh() {
  local stamp=$1
  [[ -e $stamp && ! test/tools/go.mod -nt $stamp && ! test/tools/go.sum -nt $stamp &&
    ! scripts/tools.sh -nt $stamp ]]
}

build() { # DIR PATTERN...: build the tools whose import path begins with a pattern
  local dir=$1 tools
  shift
  fresh "$dir/.stamp" && return 0
  tools=$(go -C test/tools list -f '{{.ImportPath}}' tool | grep -E "^($(IFS='|'; echo "$*"))")
  mkdir -p "$dir"
  # shellcheck disable=SC2086 # one import path a word
  go -C test/tools build -trimpath -ldflags '-s -w' -o "$PWD/$dir/" $tools
  touch "$dir/.stamp"
  echo "built $dir:" "$(cd "$dir" && echo ./*)"
}

(($#)) || set -- cni lint
for what; do
  case $what in
    cni) build bin/cni github.com/containernetworking/ ;;
    lint) build bin/tools honnef.co/ mvdan.cc/ golang.org/ ;;
    *) echo "usage: tools.sh [cni] [lint]" >&2; exit 2 ;;
  esac
done
