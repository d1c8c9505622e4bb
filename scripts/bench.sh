#!/usr/bin/env bash
# Measures ADD and DEL beside a plugin that does nothing and portmap, in network
# and mount namespaces of its own. The report goes to the terminal and report/bench.md.
#   SIZES=10,4000   endpoints that are there already     ROUNDS=40
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH=$PATH:/usr/local/go/bin:/usr/sbin:/sbin

scripts/deps.sh
scripts/build.sh >&2
scripts/tools.sh cni >&2
for program in noop bench; do
  dir=./test/bench
  [[ $program == noop ]] && dir=./test/bench/noop
  CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "bin/$program" "$dir"
done
mkdir -p report
{
  printf '# ADD and DEL, whole processes, medians\n\n'
  printf 'Machine: %s, %s cores, Linux %s; %s; %s\n\n' \
    "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)" "$(nproc)" "$(uname -r)" \
    "$(iptables --version)" "$(go version)"
  for variant in nft legacy; do
    # State is on a tmpfs, as /run is on a node.
    # shellcheck disable=SC2016 # the inner shell expands them
    unshare --net --mount bash -c '
      dir=$(mktemp -d) && mount -t tmpfs tmpfs "$dir" && exec bin/bench -dir "$dir" -variant "$0" -sizes "$1" -rounds "$2"
    ' "$variant" "${SIZES:-10,4000}" "${ROUNDS:-40}"
    echo
  done
} | tee report/bench.md
