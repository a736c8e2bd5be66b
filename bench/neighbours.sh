#!/usr/bin/env bash
# Decoding beside other processes that spin: what is left of the undisturbed speed, as a Markdown
# table of medians.
#
#   bench/neighbours.sh [-t THREADS] [-r ROUNDS] [-n TOKENS] MODEL.gguf [PEER_BINARY_DIR]
#
# A neighbour is a process of its own scheduling group that does nothing but count, held to one core:
# the first to the last core of this process, the second to the one before. PEER_BINARY_DIR holds a
# llama-bench that is measured in the same rounds. QIANWEN names our program (default: the release
# build).
set -euo pipefail

usage() {
  sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
  exit 2
}

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
for file in "$ours" "$model" ${peer:+"$peer"}; do
  if [[ ! -e $file ]]; then
    echo "neighbours.sh: error: [bench] $file: expected a file, got none" >&2
    exit 3
  fi
done

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

cores=$(nproc --all)
start_neighbours() { # COUNT
  local i
  for ((i = 0; i < $1; ++i)); do
    setsid taskset -c $((cores - 1 - i)) bash -c 'while :; do :; done' &
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

median() { # WHO COUNT
  awk -v who="$1" -v count="$2" '$1 == who && $2 == count { print $3 }' "$work/results" | sort -g |
    awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'
}

echo "| program | alone, tok/s | one neighbour | left | two neighbours | left |"
echo "|---|---|---|---|---|---|"
for who in ours ${peer:+peer}; do
  awk -v who="$who" -v a="$(median $who 0)" -v b="$(median $who 1)" -v c="$(median $who 2)" 'BEGIN {
    printf "| %s | %.1f | %.1f | %.0f %% | %.1f | %.0f %% |\n", who, a, b, 100 * b / a, c, 100 * c / a
  }'
done
