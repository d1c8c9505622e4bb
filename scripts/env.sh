# shellcheck shell=bash
# What the scripts share that run Go: where it is, and one way of building. What one of them
# has compiled is there for the next; built otherwise, the Kubernetes libraries alone take
# minutes more.
export PATH=$PATH:/usr/local/go/bin:/usr/local/sbin:/usr/sbin:/sbin
export CGO_ENABLED=0 GOFLAGS=-trimpath
