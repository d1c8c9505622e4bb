#!/usr/bin/env bash
# Installs, with apt, what building and testing need and this machine lacks.
# Does nothing, quickly, when nothing is missing.
#   deps.sh lab    only what building and the lab need
set -euo pipefail
export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

missing=()
need() { # PACKAGE COMMAND...: the package is missing when one of its commands is
  local package=$1 command
  shift
  for command; do
    command -v "$command" >/dev/null || { missing+=("$package"); return 0; }
  done
}

need qemu-system-x86 qemu-system-x86_64
need kmod modprobe depmod
need cpio cpio
need iptables iptables-nft iptables-legacy ip6tables-nft ip6tables-legacy
need nftables nft
need ipset ipset
need ipvsadm ipvsadm
need iproute2 ip
need conntrack conntrack
need make make
if [[ ${1:-} != lab ]]; then
  # Its unit is run, not only read.
  need systemd systemd-analyze systemctl
  # A container runtime, for the tests to start: nothing else uses it.
  need containerd containerd ctr
  need runc runc
  need shellcheck shellcheck
  # The race detector links with C.
  need gcc gcc
  [[ -e /usr/include/stdlib.h ]] || missing+=(libc6-dev)
fi
# The lab's first program runs where no library is: ldd accepts only dynamic ones.
if ! busybox=$(command -v busybox) || ldd "$busybox" >/dev/null 2>&1; then
  missing+=(busybox-static)
fi

if ! command -v go >/dev/null && [[ ! -x /usr/local/go/bin/go ]]; then
  echo "deps: Go is missing, and Debian's is too old: install the version named in go.mod from https://go.dev/dl" >&2
  exit 1
fi
((${#missing[@]})) || exit 0
if ! command -v apt-get >/dev/null; then
  echo "deps: missing, and there is no apt-get to install them: ${missing[*]}" >&2
  exit 1
fi
if ((EUID != 0)); then
  echo "deps: missing: ${missing[*]}" >&2
  echo "deps: run as root: apt-get update && apt-get install --no-install-recommends ${missing[*]}" >&2
  exit 1
fi
echo "deps: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# Tests start what they need themselves, so no service of these packages is started: packages ask
# this file of the administrator's first. One that is there already is not ours to change.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
  trap 'rm -f "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
fi
apt-get install -y -qq --no-install-recommends "${missing[@]}"
# Nor with the machine's next start.
if [[ " ${missing[*]} " == *" containerd "* ]]; then
  systemctl disable containerd 2>/dev/null || true
  echo "deps: containerd is installed, and its service disabled: tests run their own"
fi
