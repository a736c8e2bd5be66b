# What the scripts that measure servers share; they source it after common.sh, with $ours and $model set.

work=$(mktemp -d)
server=
stop_server() {
  [[ -n $server ]] && kill "$server" 2> /dev/null && wait "$server" 2> /dev/null
  server=
  return 0
}
trap 'stop_server; rm -rf "$work"' EXIT

# alive: or the end, with what the server said.
alive() {
  kill -0 "$server" 2> /dev/null || { cat "$work/log" >&2; exit 1; }
}

# start_ours [FLAG...]: serves $model with 16 slots of 4,096 tokens; $url.
start_ours() {
  : > "$work/where"
  "$ours" serve "$model" --port 0 --json --slots 16 --ctx 4096 --no-access-log "$@" > "$work/where" 2> "$work/log" &
  server=$!
  while [[ ! -s $work/where ]]; do
    alive
    sleep 0.1
  done
  url=$(sed 's/.*"url":"\([^"]*\)".*/\1/' "$work/where")
}

# start_llama_server PROGRAM THREADS: the same with llama.cpp's server.
start_llama_server() {
  local port=$((20000 + RANDOM % 20000))
  "$1" -m "$model" --port "$port" -np 16 -c 65536 -t "$2" -tb "$2" > "$work/log" 2>&1 &
  server=$!
  url=http://127.0.0.1:$port
  until curl -sf "$url/health" > /dev/null 2>&1; do
    alive
    sleep 0.1
  done
}

# field NAME: a number of the JSON on stdin, at its first place.
field() {
  grep -o "\"$1\":[-0-9.e+]*" | head -1 | cut -d: -f2
}

# quantile NAME WHICH: of a distribution in the JSON on stdin.
quantile() {
  grep -o "\"$1\":{[^}]*}" | field "$2"
}
