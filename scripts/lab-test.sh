#!/usr/bin/env bash
# Runs test/lab on the lab's kernel, and what test/adversary and test/conformance have for that
# kernel.
#   RUN=regexp    only these tests, without test/conformance     V=1   as they go     LAB_TIMEOUT=seconds
#   PODMARK_SHARE=number   a share, see scripts/test.sh; without, everything
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/env.sh
export LAB_TIMEOUT=${LAB_TIMEOUT:-3600}

scripts/build.sh
scripts/tools.sh cni
LAB_LOSSES=$(mktemp)
said=$(mktemp -d)
export LAB_LOSSES
declare -A running=() # what labs say, by process
trap '((${#running[@]} == 0)) || kill -- $(printf -- "-%s " "${!running[@]}") 2>/dev/null || true; rm -rf "$LAB_LOSSES" "$said"' EXIT

# The suite's own limit is the shorter one: it says which test hangs, and where.
# Most tests wait for a packet that must not come, so more run at once than there
# are processors.
in_lab() { # MODULE PACKAGE ARGUMENTS...
  local module=$1 package=$2
  shift 2
  go -C "$module" test -exec "'$PWD/scripts/lab-exec.sh'" -count=1 -timeout $((LAB_TIMEOUT - 30))s "$@" ${V:+-v} "$package"
}

proxy='^TestRealKubeProxy$'
if [[ -n ${RUN:-} ]]; then
  status=0
  for package in ./test/lab ./test/adversary; do
    tests=$(go test -list "${RUN%%/*}" "$package" | grep '^Test') || continue
    # Building kube-proxy takes minutes the first time, so only for the test that runs it.
    if grep -q "$proxy" <<<"$tests"; then scripts/tools.sh kube-proxy; fi
    in_lab . "$package" -parallel "${LAB_PARALLEL:-4}" -run "$RUN" || status=1
  done
  cat "$LAB_LOSSES"
  exit $status
fi

# A lab keeps one processor busy, so there are as many at once as there are processors. What takes
# longest comes first: the proxy's test is in a lab of its own, the others are in three. Of four tests
# a share has one.
jobs=() # arguments of in_lab, without blanks
out=$(scripts/turn.sh 4 ./test/lab)
tests=$(go test -list . ./test/lab | grep '^Test' | grep -vE "$out")
if grep -q "$proxy" <<<"$tests"; then
  scripts/tools.sh kube-proxy
  jobs+=(". ./test/lab -run $proxy")
fi
jobs+=(". ./test/adversary" "test/conformance . -run ^TestServiceIP\$")
for third in 0 1 2; do
  names=$(grep -v "$proxy" <<<"$tests" | awk -v third="$third" 'NR % 3 == third' | paste -sd '|')
  jobs+=(". ./test/lab -run ^($names)\$")
done

set -m # each is a process group, and is ended with all that it has started
failed=0
finish() { # one of them
  local ended=
  wait -n -p ended "${!running[@]}" || failed=1
  cat "${running[$ended]}"
  unset "running[$ended]"
}
run() { # ARGUMENTS of in_lab
  local begin=$SECONDS code=0
  in_lab "$@" -parallel "${LAB_PARALLEL:-4}" || code=$?
  echo "a lab of $((SECONDS - begin)) s: $*"
  return "$code"
}
for i in "${!jobs[@]}"; do
  ((${#running[@]} < $(nproc))) || finish
  read -ra job <<<"${jobs[i]}"
  run "${job[@]}" >"$said/$i" 2>&1 &
  running[$!]=$said/$i
done
while ((${#running[@]})); do finish; done
cat "$LAB_LOSSES"
exit $failed
