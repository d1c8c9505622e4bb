#!/usr/bin/env bash
# Measures podmarkd in a simulated cluster, behind an API server of the tests: until it
# is in sync, what it needs, and what it is sent beside a node that watches everything.
# The report goes to the terminal and to report/scale.md. Arguments are those of
# "scale run", as -pods 150000 -nodes 5000 -local 30 -mix few-cluster-wide.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/env.sh

scripts/deps.sh >&2
scripts/build.sh >&2
go build -ldflags '-s -w' -o bin/scale ./test/scale
mkdir -p report
{
  printf '# podmarkd in a large cluster\n\nMachine: %s, %s processors, Linux %s; %s.\n' \
    "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)" "$(nproc)" "$(uname -r)" "$(go version)"
  # /run to itself: state is on a tmpfs, as on a node.
  # shellcheck disable=SC2016 # the inner shell expands it
  unshare --net --mount bash -c '
    mount -t tmpfs tmpfs /run && mkdir /run/scale && exec bin/scale run -dir /run/scale "$@"
  ' scale "$@"
} | tee report/scale.md
