#!/usr/bin/env bash
# Builds the programs that tests and checks run, at the versions test/tools/go.mod
# pins: the reference CNI plugins and cnitool into bin/cni, linters into bin/tools, one of them
# from test/tools/rules.
# And kube-proxy, which takes minutes the first time, into bin/kube, at the version
# of test/kubeproxy/go.mod.
#   tools.sh [cni] [lint] [kube-proxy]     cni and lint when none is named
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/env.sh

# Anything the build depends on that is newer than the stamp makes it stale.
fresh() { # MODULE STAMP
  [[ -e $2 && ! $1/go.mod -nt $2 && ! $1/go.sum -nt $2 && ! scripts/tools.sh -nt $2 && -z $(find "$1" -name '*.go' -newer "$2") ]]
}

build() { # MODULE DIR PATTERN...: build the module's tools whose import path begins with a pattern
  local module=$1 dir=$2 tools
  shift 2
  fresh "$module" "$dir/.stamp" && return 0
  tools=$(go -C "$module" list -f '{{.ImportPath}}' tool | grep -E "^($(IFS='|'; echo "$*"))")
  mkdir -p "$dir"
  # shellcheck disable=SC2086 # one import path a word
  go -C "$module" build -ldflags '-s -w' -o "$PWD/$dir/" $tools
  touch "$dir/.stamp"
  echo "built $dir:" "$(cd "$dir" && echo ./*)"
}

(($#)) || set -- cni lint
for what; do
  case $what in
    cni) build test/tools bin/cni github.com/containernetworking/ ;;
    lint) build test/tools bin/tools honnef.co/ mvdan.cc/ golang.org/ github.com/podmark/ ;;
    kube-proxy) build test/kubeproxy bin/kube k8s.io/kubernetes/ ;;
    *) echo "usage: tools.sh [cni] [lint] [kube-proxy]" >&2; exit 2 ;;
  esac
done
