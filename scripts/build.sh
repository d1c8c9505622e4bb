#!/usr/bin/env bash
# Builds every program below plugins/ into bin/, static and stripped, and holds
# the CNI plugin to its limits: it is started for every pod, so it stays small
# and free of the Kubernetes libraries.
#   build.sh linux/amd64 linux/arm64 darwin/arm64
# builds for other platforms, each into a directory of bin/ of its name, as bin/linux-arm64; for
# those without a Linux kernel podmarkctl alone.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/env.sh

max_plugin_bytes=$((31 << 18)) # 7.75 MiB

for platform; do
  [[ $platform =~ ^([a-z]+)/([a-z0-9]+)$ ]] || {
    echo "build: platform \"$platform\": want OS/ARCH, as linux/arm64" >&2
    exit 2
  }
  dir=bin/${platform/\//-} programs=(./plugins/podmarkctl)
  [[ $platform == linux/* ]] && programs=(./plugins/...)
  mkdir -p "$dir"
  GOOS=${BASH_REMATCH[1]} GOARCH=${BASH_REMATCH[2]} go build -ldflags '-s -w' -o "$dir/" "${programs[@]}"
  echo "built $dir:" "$(cd "$dir" && echo *)"
done
(($# == 0)) || exit 0

mkdir -p bin
for dir in plugins/*/; do
  name=$(basename "$dir")
  [[ -d $dir && $(go list -f '{{.Name}}' "./$dir" 2>/dev/null) == main ]] || continue
  go build -ldflags '-s -w' -o "bin/$name" "./$dir"
  echo "built bin/$name, $(stat -c %s "bin/$name") bytes"
done

[[ -d plugins/podmark ]] || exit 0
size=$(stat -c %s bin/podmark)
if ((size > max_plugin_bytes)); then
  echo "build: bin/podmark has $size bytes; at most $max_plugin_bytes are allowed" >&2
  exit 1
fi
if kubernetes=$(go list -deps ./plugins/podmark | grep '^k8s\.io/'); then
  echo "build: bin/podmark must not contain Kubernetes libraries:" >&2
  echo "$kubernetes" >&2
  exit 1
fi
