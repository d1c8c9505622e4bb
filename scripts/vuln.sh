#!/usr/bin/env bash
# Looks for known vulnerabilities in what podmark calls. Needs https://vuln.go.dev.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH=$PATH:/usr/local/go/bin
scripts/tools.sh lint
exec bin/tools/govulncheck ./...
