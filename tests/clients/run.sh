#!/usr/bin/env bash
# run.sh TEST.mjs PROGRAM MODEL: runs one client's tests with node; 77 (skipped) where node or the packages
# are missing.
set -euo pipefail
folder="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
command -v node > /dev/null 2>&1 || { echo "skipped: no node"; exit 77; }
[[ -d "$folder/node_modules" ]] || { echo "skipped: no packages; npm ci in tests/clients"; exit 77; }
export QIANWEN_PROGRAM="$2" QIANWEN_MODEL="$3"
exec node --test "$1"
