#!/usr/bin/env bash
# Checks which package imports which. Data flows one way,
#
#   mark | nfnetlink | xtables | version | fault | config, conflist -> foreign, runtimes -> attachment -> endpoint, desired -> state, policy, explain -> dataplane -> node -> podapi, manifest -> agent -> doctor
#
# and no package imports one to its right, nor a neighbour of the same place. Some are pure:
# they import nothing that acts, nor anything of podmark's that does.
# Test files are free.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/env.sh

module=$(go list -m)
go list -f '{{.ImportPath}} {{join .Imports " "}}' ./... | awk -v module="$module" '
  BEGIN {
    n = split("mark,nfnetlink,xtables,version,fault config,conflist foreign,runtimes attachment endpoint,desired state,policy,explain dataplane node podapi,manifest agent doctor", places, " ")
    for (i = 1; i <= n; i++) {
      m = split(places[i], names, ",")
      for (j = 1; j <= m; j++) place[names[j]] = i
    }
    split("mark config conflist attachment policy desired explain", names, " ")
    for (i in names) pure[names[i]] = 1
    view = module "/pkg/agent/kube/view"
    split("os os/exec net net/http syscall io/ioutil github.com/vishvananda/netlink", names, " ")
    for (i in names) acts[names[i]] = 1
  }
  # unit names the part of pkg/ that an import path belongs to: "dataplane" for pkg/dataplane/nftables.
  function unit(path) {
    if (index(path, module "/pkg/") != 1) return ""
    path = substr(path, length(module "/pkg/") + 1)
    sub("/.*", "", path)
    return path
  }
  function bad(why) {
    printf "arrows: %s %s\n", $1, why
    failed = 1
  }
  {
    from = unit($1)
    if (from != "" && !(from in place)) bad("has no place in the order: give it one in scripts/check-arrows.sh")
    for (i = 2; i <= NF; i++) {
      to = unit($i)
      if (from != "" && index($i, module "/plugins/") == 1) bad("imports a program, " $i)
      if (from != "" && index($i, module "/test/") == 1) bad("imports a test package, " $i)
      if (from in place && to in place && to != from && place[to] >= place[from]) bad("imports " to ", which is not to its left")
      if ((from in pure || $1 == view) && $i in acts) bad("is pure and imports " $i)
      if (from in pure && to != "" && !(to in pure)) bad("is pure and imports " to ", which is not")
      if ($1 == view && $i ~ /^k8s\.io\// && $i != "k8s.io/apimachinery/pkg/util/validation") bad("is pure and imports " $i)
      if ($1 == module "/plugins/podmark" && (to == "policy" || to == "agent")) bad("imports " to)
      if ($i ~ /^k8s\.io\/client-go/ && from != "agent" && $1 != module "/plugins/podmarkd" && index($1, module "/test/") != 1) bad("imports " $i ": only pkg/agent asks the API")
    }
  }
  END { exit failed }
'
# Of what others have written they may reach what the standard library does, and no more of the kernel.
if reached=$(go list -deps ./pkg/{mark,config,conflist,attachment,policy,desired,explain} | grep -E '^(github\.com/vishvananda/|golang\.org/x/sys/unix$)'); then
  echo "arrows: what is pure reaches:" "$reached"
  exit 1
fi
if grep -n 'time\.\(Now\|Since\|Until\|After\)(' pkg/agent/kube/view/*.go | grep -v _test.go; then
  echo "arrows: pkg/agent/kube/view is pure and reads a clock"
  exit 1
fi
if [[ -d plugins/podmark ]] && kubernetes=$(go list -deps ./plugins/podmark | grep '^k8s\.io/'); then
  echo "arrows: plugins/podmark reaches Kubernetes libraries:" "$kubernetes"
  exit 1
fi
