#!/usr/bin/env bash
# Runs one shell command as root on a kernel that has what a Kubernetes node has
# (ip_vs, nf_tables, ip_set, sctp, both iptables variants), whatever kernel this
# machine runs. QEMU boots Debian's stock kernel in software; no privilege and no
# disk image is needed.
#
#   lab.sh 'modprobe -a ip_vs dummy && ipvsadm -Ln'
#
# The guest sees this machine's files and this work tree, both under a throw-away
# layer: what it writes is gone afterwards, but for the directory $LAB_OUT, which the
# command finds in the variable of the same name. /tmp and /run are empty inside;
# the work tree is there nevertheless, wherever it lies.
#
# Exit status: the command's; 124 after LAB_TIMEOUT seconds (300); 125 when the
# lab itself failed. Also read: LAB_MEM (MiB), LAB_CPUS (1: emulating two costs
# more than it gains), LAB_ACCEL (say "kvm" where it is known to work), and handed
# on to the command: CI, PODMARK_*.
set -euo pipefail
command=${1:?usage: lab.sh COMMAND}
cwd=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
repo=$PWD
export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
case $cwd/ in "$repo"/*) ;; *) cwd=$repo ;; esac

cache=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/podmark/lab
ctl=$(mktemp -d)
trap 'rm -rf "$ctl"' EXIT

die() {
  echo "lab: $*" >&2
  exit 125
}

# The kernel is a Debian package, unpacked once. A directory under its final name is
# complete, because renaming comes last.
fetch_kernel() {
  local package version unpacked=$cache/.unpack
  if ! package=$(apt-cache depends linux-image-amd64 2>/dev/null | awk '/Depends:/ {print $2; exit}') ||
    [[ -z $package ]]; then
    die "apt knows no linux-image-amd64: run apt-get update on a Debian amd64 machine"
  fi
  version=${package#linux-image-}
  echo "lab: fetching kernel $version" >&2
  rm -rf "$unpacked"
  mkdir -p "$unpacked"
  (cd "$unpacked" && apt-get download -qq "$package" 2>"$ctl/apt.log") ||
    die "downloading $package: $(cat "$ctl/apt.log")"
  dpkg-deb --fsys-tarfile "$unpacked"/*.deb | tar -x -C "$unpacked" ./boot ./lib/modules
  rm "$unpacked"/*.deb
  depmod -b "$unpacked" "$version"
  mv "$unpacked" "$cache/$version"
}

mkdir -p "$cache"
exec {lock}>"$cache/.lock"
flock "$lock"
version=$(cd "$cache" && find . -mindepth 1 -maxdepth 1 -name '[0-9]*' -printf '%f\n' | sort -V | tail -1)
if [[ -z $version ]]; then
  fetch_kernel
  version=$(cd "$cache" && echo [0-9]*)
fi
exec {lock}>&-
kernel=$cache/$version

# The initial file system: busybox, our init, and the modules that reach the host.
initrd=$ctl/initrd
mkdir -p "$initrd"/{bin,modules}
cp "$(command -v busybox)" "$initrd/bin/busybox"
cp scripts/lab/init "$initrd/init"
n=100
while read -r module; do
  cp "$module" "$initrd/modules/$((n++)).ko"
done < <(modprobe -d "$kernel" -S "$version" --show-depends -a virtio_pci virtio_console 9pnet_virtio 9p overlay |
  awk '$1 == "insmod" && !seen[$2]++ {print $2}')
((n > 100)) || die "kernel $version has no modules below $kernel"
(cd "$initrd" && find . | cpio -o -H newc --quiet) >"$ctl/initrd.img"

shared=$ctl/guest
mkdir "$shared"
cp scripts/lab/guest "$shared/guest"
printf '%s' "$command" >"$shared/command"
{
  printf '%s=%q\n' lab_repo "$repo" lab_cwd "$cwd" lab_kernel "$version" lab_out "${LAB_OUT:+yes}"
  while read -r name; do
    printf 'export %s=%q\n' "$name" "${!name}"
  done < <(compgen -e | grep -E '^(CI$|PODMARK_)' || true)
} >"$shared/env"

share() { # TAG PATH [OPTIONS]
  # A comma in a path is written twice, QEMU's own way.
  args+=(-virtfs "local,mount_tag=$1,path=${2//,/,,},security_model=none,multidevs=remap${3:-}")
}
# shellcheck disable=SC2054 # the commas are QEMU's
args=(
  -accel "${LAB_ACCEL:-tcg,thread=multi}" -cpu max -smp "${LAB_CPUS:-1}" -m "${LAB_MEM:-2048}"
  -nodefaults -no-user-config -display none -no-reboot
  -kernel "$kernel"/boot/vmlinuz-* -initrd "$ctl/initrd.img"
  -append "console=ttyS0 quiet panic=-1 mitigations=off"
  # Kernel messages go to a file and are shown only when the lab fails; the
  # command has a port of its own, free of terminal conversions.
  -chardev "file,id=console,path=$ctl/console" -serial chardev:console
  -chardev stdio,id=out,signal=off -device virtio-serial-pci
  -device virtserialport,chardev=out,name=out
)
share root / ,readonly=on
share repo "$repo" ,readonly=on
share modules "$kernel/lib/modules/$version" ,readonly=on
share lab "$shared"
if [[ -n ${LAB_OUT:-} ]]; then
  mkdir -p "$LAB_OUT"
  share out "$(realpath "$LAB_OUT")"
fi

# QEMU unplugs the port when its standard input ends, so give it one that does not.
mkfifo "$ctl/silence"
limit=${LAB_TIMEOUT:-300} ended=0
timeout --foreground -k 5 "$limit" qemu-system-x86_64 "${args[@]}" <>"$ctl/silence" 2>"$ctl/qemu.log" || ended=$?
if [[ -s $shared/status ]]; then
  exit "$(cat "$shared/status")"
fi
tail -n 40 "$ctl/console" "$ctl/qemu.log" >&2 || true
if ((ended == 124)); then
  echo "lab: the command did not end within $limit s" >&2
  exit 124
fi
die "the lab died before the command ended (QEMU status $ended); its last messages are above"
