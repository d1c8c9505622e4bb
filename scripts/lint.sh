#!/usr/bin/env bash
# Every check that reads the code instead of running it. Goes through all of them
# before it fails. Known vulnerabilities are looked up by vuln.sh, because that
# needs a network and its answer changes while the code does not.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/env.sh

scripts/deps.sh
scripts/tools.sh lint

failed=()
check() { # NAME COMMAND...
  local name=$1
  shift
  echo "lint: $name"
  "$@" || failed+=("$name")
}
formatted() {
  local unformatted
  unformatted=$(git ls-files -co --exclude-standard '*.go' | xargs -r bin/tools/gofumpt -l) || return
  [[ -z $unformatted ]] && return
  echo "run bin/tools/gofumpt -w on:"
  echo "$unformatted"
  return 1
}
everywhere() { # COMMAND...: in each module that has Go code
  local mod status=0
  while read -r mod; do
    (cd "$(dirname "$mod")" && "$@") || status=1
  done < <(find . -name go.mod -not -path './bin/*' -not -path './test/kubeproxy/*')
  return "$status"
}

elsewhere() { # nodes of another architecture, and podmarkctl on macOS
  GOOS=linux GOARCH=arm64 go build ./plugins/... && GOOS=darwin GOARCH=arm64 go build -o /dev/null ./plugins/podmarkctl
}

check gofumpt formatted
check vet everywhere go vet ./...
check staticcheck everywhere "$PWD/bin/tools/staticcheck" ./...
check .golangci.yml everywhere "$PWD/bin/tools/rules" ./...
check shellcheck shellcheck scripts/*.sh scripts/lab/* .ci/run
check arrows scripts/check-arrows.sh
check platforms elsewhere

if ((${#failed[@]})); then
  echo "lint: failed: ${failed[*]}" >&2
  exit 1
fi
