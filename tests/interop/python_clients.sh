#!/usr/bin/env bash
# python_clients.sh PROGRAM MODEL [NAME...]: published Python clients (requirements-*.txt: every package pinned)
# against `PROGRAM serve MODEL`. Their environments are made in build/interop (about 1 GB, some minutes the
# first time). Run by hand: continuous integration does not depend on them.
set -euo pipefail
folder="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
environments="$folder/../../build/interop"
program="$1" model="$2"
shift 2
log="$(mktemp)"
"$program" serve "$model" --served-model-name mini --port 0 --json > "$log" &
server=$!
trap 'kill "$server"; wait "$server" || true; rm -f "$log"' EXIT
until grep -q url "$log"; do
  kill -0 "$server"
  sleep 0.1
done
QIANWEN_URL="$(python3 -c 'import json, sys; print(json.loads(open(sys.argv[1]).readline())["url"])' "$log")"
export QIANWEN_URL
failed=0
for name in clients qwen-agent sglang; do
  python="$environments/$name/bin/python"
  if [[ ! -x "$python" ]]; then
    python3 -m venv "$environments/$name"
    # SGLang's package asks for CUDA libraries that its front end does not use.
    "$python" -m pip install -q --no-deps -r "$folder/requirements-$name.txt"
  fi
  "$python" "$folder/python_clients.py" "$@" || failed=1
done
exit "$failed"
