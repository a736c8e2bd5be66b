#!/usr/bin/env bash
# Compares qianwen with a llama-bench on the same file, threads and tests, in alternation, and
# prints the medians and their ratio as a Markdown table.
#
#   bench/compare.sh [-t THREADS] [-r ROUNDS] [-p LIST] [-n LIST] [-d LIST] PEER_BINARY_DIR MODEL.gguf
#
# PEER_BINARY_DIR holds a llama-bench (llama.cpp's or ik_llama.cpp's build/bin). QIANWEN names our
# program (default: the release build). A round is one run of each, ours first in even rounds, so
# that a machine that slows down harms both. Lists are comma-separated, as in llama-bench.
set -euo pipefail

usage() {
  sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
  exit 2
}

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
for file in "$peer" "$ours" "$model"; do
  if [[ ! -e $file ]]; then
    echo "compare.sh: error: [bench] $file: expected a file, got none" >&2
    exit 3
  fi
done

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

median() { # WHO TEST DEPTH
  awk -v who="$1" -v test="$2" -v depth="$3" \
    '$1 == who && $2 == test && $3 == depth { print $4 }' "$work/results" | sort -g |
    awk '{ v[NR] = $1 } END { print NR == 0 ? "-" : NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'
}

cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1)
echo "$(basename "$model"), $threads threads, $cpu, $(date +%F), medians of $rounds alternating rounds;"
echo "peer: $(head -1 "$work/build.txt")"
echo
echo "| test | depth | qianwen, tok/s | peer, tok/s | ratio |"
echo "|---|---|---|---|---|"
awk '$1 == "ours" && !seen[$2 " " $3]++ { print $2, $3 }' "$work/results" |
  while read -r test depth; do
    a=$(median ours "$test" "$depth") b=$(median peer "$test" "$depth")
    ratio=$(awk -v a="$a" -v b="$b" 'BEGIN { print (b == "-" ? "-" : sprintf("%.2f", a / b)) }')
    echo "| $test | $depth | $a | $b | $ratio |"
  done
