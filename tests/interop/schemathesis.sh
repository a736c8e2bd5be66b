#!/usr/bin/env bash
# schemathesis.sh PROGRAM MODEL [EXAMPLES] [SECONDS]: Schemathesis against the server's own OpenAPI
# document. Every operation is called with values that the document allows and with ones that it does
# not; what comes back must be what the document says (status, media type, schema), and never a fault of
# the server's own.
#
# Run by hand: the first run fetches the packages pinned below into a directory of its own.
set -euo pipefail
program=$1 model=$2 examples=${3:-50} seconds=${4:-600}
venv="${SCHEMATHESIS_VENV:-${XDG_CACHE_HOME:-$HOME/.cache}/qianwen/schemathesis}"
if [[ ! -x "$venv/bin/schemathesis" ]]; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet schemathesis==4.32.5
fi

folder=$(mktemp -d)
trap 'kill "$pid" 2> /dev/null; wait "$pid" 2> /dev/null; rm -rf "$folder"' EXIT
"$program" serve "$model" --port 0 --json --ctx 256 --slots 4 --lora-dir "$folder" \
  --slot-save-path "$folder" --check-integrity --no-access-log --request-timeout 60 > "$folder/where" 2> "$folder/log" &
pid=$!
while [[ ! -s "$folder/where" ]]; do
  kill -0 "$pid" || { cat "$folder/log"; exit 1; }
  sleep 0.1
done
url=$(sed 's/.*"url":"\([^"]*\)".*/\1/' "$folder/where")

cd "$folder"  # where it keeps its own files
code=0
"$venv/bin/schemathesis" run "$url/openapi.json" --max-examples "$examples" --max-time "$seconds" --seed 1 \
  --workers 2 --request-timeout 60 --suppress-health-check all --continue-on-failure \
  --checks not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance || code=$?
kill -0 "$pid" || { echo "the server has ended"; cat "$folder/log"; exit 1; }
exit "$code"
