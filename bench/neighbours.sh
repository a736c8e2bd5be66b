#!/usr/bin/env bash
# Decoding beside other processes that spin: what is left of the undisturbed speed, as a Markdown
# table of medians.
#
#   bench/neighbours.sh [-t THREADS] [-r ROUNDS] [-n TOKENS] MODEL.gguf [PEER_BINARY_DIR]
#
# A neighbour is a process of its own scheduling group that does nothing but count, held to one
# core: the first to the last core that this process may use, the second to the one before.
# PEER_BINARY_DIR holds a llama-bench that is measured in the same rounds. QIANWEN names our program
# (default: the release build).
set -euo pipefail

. "$(dirname "$0")/common.sh"

threads=$(nproc) rounds=5 tokens=64
while getopts t:r:n: flag; do
  case $flag in
    t) threads=$OPTARG ;;
    r) rounds=$OPTARG ;;
    n) tokens=$OPTARG ;;
    *) usage ;;
  esac
done
shift $((OPTIND - 1))
[[ $# -eq 1 || $# -eq 2 ]] || usage
model=$1 peer=${2:+$2/llama-bench}
ours=${QIANWEN:-$(dirname "$0")/../build/release/qianwen}
need_files "$ours" "$model" ${peer:+"$peer"}
need_count -t "$threads"
need_count -r "$rounds"
need_count -n "$tokens"

work=$(mktemp -d)
spinning=()
stop_neighbours() {
  local pid
  for pid in "${spinning[@]}"; do
    kill "$pid" 2> /dev/null || true
    wait "$pid" 2> /dev/null || true
  done
  spinning=()
}
trap 'stop_neighbours; rm -rf "$work"' EXIT

# The cores that this process may use, one a line.
mapfile -t cores < <(taskset -cp $$ | sed 's/.*: //; s/,/\n/g' |
  awk -F- '{ for (i = $1; i <= (NF > 1 ? $2 : $1); ++i) print i }')
if ((${#cores[@]} < 2)); then
  echo "neighbours.sh: error: [bench] cores: expected at least two, got one" >&2
  exit 3
fi
start_neighbours() { # COUNT
  local i
  for ((i = 0; i < $1; ++i)); do
    setsid taskset -c "${cores[-1 - i]}" bash -c 'while :; do :; done' &
    spinning+=($!)
  done
}

rate_of_ours() {
  "$ours" bench "$model" --threads "$threads" -p 0 -n "$tokens" -r 1 |
    awk '$1 ~ /^tg/ { print $4 }'
}
rate_of_peer() {
  "$peer" -m "$model" -t "$threads" -p 0 -n "$tokens" -r 1 2> /dev/null |
    awk -F'|' '$0 ~ / tg[0-9]+ / { split($(NF - 1), rate, " "); print rate[1] }'
}

for ((round = 0; round < rounds; ++round)); do
  for ((count = 0; count < 3; ++count)); do
    start_neighbours "$count"
    echo "ours $count $(rate_of_ours)" >> "$work/results"
    [[ -z $peer ]] || echo "peer $count $(rate_of_peer)" >> "$work/results"
    stop_neighbours
  done
  echo "round $((round + 1)) of $rounds done" >&2
done

median_of() { # WHO COUNT
  awk -v who="$1" -v count="$2" '$1 == who && $2 == count { print $3 }' "$work/results" | median
}

echo "| program | alone, tok/s | one neighbour | left | two neighbours | left |"
echo "|---|---|---|---|---|---|"
for who in ours ${peer:+peer}; do
  a=$(median_of $who 0) b=$(median_of $who 1) c=$(median_of $who 2)
  awk -v who="$who" -v a="$a" -v b="$b" -v c="$c" 'BEGIN {
    row = "| %s | %.1f | %.1f | %.0f %% | %.1f | %.0f %% |\n"
    printf row, who, a, b, 100 * b / a, c, 100 * c / a
  }'
done
