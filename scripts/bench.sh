#!/usr/bin/env bash
# Measures what podmark costs, beside other plugins and other rules: an ADD and a
# DEL, packets of new and of steady flows, a TCP stream, a change of policy, live flows after one.
# Each section runs in network and mount namespaces of its own. The report goes to the terminal
# and to report/bench.md.
#   ONLY=packet,stream   some of add packet stream change live daemon; into report/bench-packet-stream.md
#   SIZES=100,4000       endpoints, rising; stream, change, live and daemon take the last
#   ROUNDS=10            how often each candidate is measured
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/env.sh

scripts/deps.sh >&2
scripts/build.sh >&2
scripts/tools.sh cni >&2
go build -ldflags '-s -w' -o bin/bench ./test/bench
go build -ldflags '-s -w' -o bin/noop ./test/bench/noop

only=${ONLY:-}
only=${only//,/ }
report=report/bench.md
[[ -z $only ]] || report=report/bench-${only// /-}.md
mkdir -p report

section() { # NAME: a section, with /run and the bpffs to itself: state is on a tmpfs, as on a node
  # shellcheck disable=SC2016 # the inner shell expands them
  unshare --net --mount bash -c '
    mount -t tmpfs tmpfs /run && mkdir /run/bench && { mount -t bpf bpf /sys/fs/bpf || true; } && exec bin/bench "$0" -dir /run/bench -sizes "$1" -rounds "$2"
  ' "$1" "${SIZES:-}" "${ROUNDS:-0}"
}

{
  printf '# What podmark costs\n\nMachine: %s, %s processors, Linux %s; %s; %s; CNI plugins %s; %s.\n' \
    "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)" "$(nproc)" "$(uname -r)" \
    "$(iptables --version)" "$(nft --version)" \
    "$(go -C test/tools list -m -f '{{.Version}}' github.com/containernetworking/plugins)" "$(go version)"
  for name in ${only:-add packet stream change live daemon}; do
    section "$name"
  done
  printf '\nMeasured in %d minutes.\n' "$(((SECONDS + 59) / 60))"
} | tee "$report"
