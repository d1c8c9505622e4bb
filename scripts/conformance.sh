#!/usr/bin/env bash
# Has cyclonus judge podmark by packets, with all of its cases, for each backend and both
# IP versions: from pod to pod on this machine's kernel, and through the services of IPVS
# in the lab. The report goes to the terminal and to report/conformance.md; what the tests
# say besides is in report/conformance-*.log.
#   EVERY=10             only one in so many cases
#   ONLY=pod-ip          or service-ip
#   LAB_TIMEOUT=36000    seconds for the lab of one backend
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/env.sh
export LAB_TIMEOUT=${LAB_TIMEOUT:-36000}

scripts/deps.sh >&2
scripts/build.sh >&2
scripts/tools.sh cni >&2
mkdir -p report
rm -f report/conformance-*.log
status=0

judge() { # LOG RUN [OPTION...]
  local log=report/conformance-$1.log run=$2
  shift 2
  echo "conformance: $run" >&2
  go -C test/conformance test -count=1 -v -timeout "$((LAB_TIMEOUT - 30))s" -run "$run" "$@" . -every "${EVERY:-1}" >"$log" 2>&1
}

if [[ ${ONLY:-pod-ip} == pod-ip ]]; then
  judge pod-ip '^TestPodIP$' || status=1
fi
if [[ ${ONLY:-service-ip} == service-ip ]]; then
  # A lab keeps one processor busy.
  running=()
  for backend in nftables iptables-nft iptables-legacy; do
    if ((${#running[@]} >= $(nproc))); then
      wait "${running[0]}" || status=1
      running=("${running[@]:1}")
    fi
    judge "service-ip-$backend" "^TestServiceIP\$/^$backend\$" -exec "'$PWD/scripts/lab-exec.sh'" &
    running+=($!)
  done
  for pid in "${running[@]}"; do
    wait "$pid" || status=1
  done
fi

{
  printf '# What cyclonus finds\n\n%s of cyclonus %s; %s, %s processors, Linux %s, in the lab %s; podmark %s; %s.\n\n' \
    "$([[ ${EVERY:-1} == 1 ]] && echo 'All cases' || echo "One in $EVERY cases")" \
    "$(go -C test/conformance list -m -f '{{.Version}}' github.com/mattfenwick/cyclonus)" \
    "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)" "$(nproc)" "$(uname -r)" \
    "$(cd "${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/podmark/lab" 2>/dev/null && echo [0-9]* || echo none)" \
    "$(git describe --always --dirty)" "$(go version)"
  echo '| probes go to | backend | family | cases | failed | steps | probes | of them to be blocked | probed again | took |'
  echo '|---|---|---|---|---|---|---|---|---|---|'
  sed -n 's/^ *interpreter_test.go:[0-9]*: \(| .* |\)$/\1/p' report/conformance-*.log | sort
  printf '\nMeasured in %d minutes by "make conformance".\n' "$(((SECONDS + 59) / 60))"
  if ((status)); then
    printf '\n**Not all of it passed:** see report/conformance-*.log.\n'
  fi
} | tee report/conformance.md
exit "$status"
