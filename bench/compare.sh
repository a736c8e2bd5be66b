#!/usr/bin/env bash
# Compares qianwen with a llama-bench on the same file, threads and tests, in alternation, and
# prints the medians and their ratio as a Markdown table.
#
#   bench/compare.sh [-t THREADS] [-r ROUNDS] [-p LIST] [-n LIST] [-d LIST]
#                    PEER_BINARY_DIR MODEL.gguf
#
# PEER_BINARY_DIR holds a llama-bench (llama.cpp's or ik_llama.cpp's build/bin). QIANWEN names our
# program (default: the release build). A round is one run of each, ours first in even rounds, so
# that a machine that slows down harms both. Lists are comma-separated, as in llama-bench.
set -euo pipefail

. "$(dirname "$0")/common.sh"

threads=$(nproc) rounds=5 prompts=512 generated=64 depths=0
while getopts t:r:p:n:d: flag; do
  case $flag in
    t) threads=$OPTARG ;;
    r) rounds=$OPTARG ;;
    p) prompts=$OPTARG ;;
    n) generated=$OPTARG ;;
    d) depths=$OPTARG ;;
    *) usage ;;
  esac
done
shift $((OPTIND - 1))
[[ $# -eq 2 ]] || usage
peer=$1/llama-bench model=$2
ours=${QIANWEN:-$(dirname "$0")/../build/release/qianwen}
need_files "$peer" "$ours" "$model"
need_count -t "$threads"
need_count -r "$rounds"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Lines "ours|peer TEST DEPTH TOKENS_PER_SECOND" in $work/results.
run_ours() {
  "$ours" bench "$model" --threads "$threads" -p "$prompts" -n "$generated" -d "$depths" -r 1 \
    > "$work/ours.txt"
  awk '$1 ~ /^(pp|tg)[0-9]+$/ { print "ours", $1, $2, $4 }' "$work/ours.txt" >> "$work/results"
}

# llama-bench writes "| ... | pp512 @ d4096 | 123.4 +- 5.6 |"; the depth is left out when it is 0,
# and the flag for it when nobody asked (old builds lack it).
run_peer() {
  local depth_flag=()
  [[ $depths == 0 ]] || depth_flag=(-d "$depths")
  "$peer" -m "$model" -t "$threads" -p "$prompts" -n "$generated" "${depth_flag[@]}" -r 1 \
    > "$work/peer.txt" 2> "$work/peer.log" || { cat "$work/peer.log" >&2; exit 1; }
  awk -F'|' '
    {
      for (i = 2; i < NF; ++i) {
        if ($i !~ /^ *(pp|tg)[0-9]+( @ d[0-9]+)? *$/) continue
        split($i, test, " ")
        depth = test[3] == "" ? 0 : substr(test[3], 2)
        split($(i + 1), rate, " ")
        print "peer", test[1], depth, rate[1]
      }
    }
    /^build:/ { print > "/dev/stderr" }' "$work/peer.txt" >> "$work/results" 2> "$work/build.txt"
}

for ((round = 0; round < rounds; ++round)); do
  if ((round % 2 == 0)); then
    run_ours
    run_peer
  else
    run_peer
    run_ours
  fi
  echo "round $((round + 1)) of $rounds done" >&2
done

median_of() { # WHO TEST DEPTH
  awk -v who="$1" -v test="$2" -v depth="$3" \
    '$1 == who && $2 == test && $3 == depth { print $4 }' "$work/results" | median
}

cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1)
echo "$(basename "$model"), $threads threads, $cpu, $(date +%F), medians of $rounds rounds;"
echo "peer: $(head -1 "$work/build.txt")"
echo
echo "| test | depth | qianwen, tok/s | peer, tok/s | ratio |"
echo "|---|---|---|---|---|"
awk '$1 == "ours" && !seen[$2 " " $3]++ { print $2, $3 }' "$work/results" |
  while read -r test depth; do
    a=$(median_of ours "$test" "$depth") b=$(median_of peer "$test" "$depth")
    ratio=$(awk -v a="$a" -v b="$b" 'BEGIN { print (b == "-" ? "-" : sprintf("%.2f", a / b)) }')
    echo "| $test | $depth | $a | $b | $ratio |"
  done
