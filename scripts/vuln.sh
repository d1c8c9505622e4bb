#!/usr/bin/env bash
# Looks for known vulnerabilities in what podmark calls. Needs https://vuln.go.dev.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/env.sh
scripts/tools.sh lint
exec bin/tools/govulncheck ./...
