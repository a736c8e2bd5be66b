#!/usr/bin/env bash
# Prints how far a model is from this machine's limits, one row of a Markdown table for each file or
# directory: prefill, the linear layers of it alone, and decoding.
#
#   bench/limits.sh [-t THREADS] [-r REPETITIONS] [-p TOKENS] [-n TOKENS] MODEL...
#
# QIANWEN names the program (default: the release build). Each row is one call of `qianwen bench
# --profile`: medians over the repetitions, shares of limits measured just before each.
set -euo pipefail

. "$(dirname "$0")/common.sh"

threads=$(nproc) repetitions=5 prompt=512 generated=64
while getopts t:r:p:n: flag; do
  case $flag in
    t) threads=$OPTARG ;;
    r) repetitions=$OPTARG ;;
    p) prompt=$OPTARG ;;
    n) generated=$OPTARG ;;
    *) usage ;;
  esac
done
shift $((OPTIND - 1))
[[ $# -ge 1 ]] || usage
ours=${QIANWEN:-$(dirname "$0")/../build/release/qianwen}
need_files "$ours" "$@"
need_count -t "$threads"
need_count -r "$repetitions"
need_count -p "$prompt"
need_count -n "$generated"

log=$(mktemp)
trap 'rm -f "$log"' EXIT

printf '%s\n' '| model | prefill, tok/s | of the peak | linear layers | decode, tok/s | GB/s | of the read bandwidth |' \
  '|---|--:|--:|--:|--:|--:|--:|'
for model; do
  "$ours" bench "$model" --threads "$threads" -r "$repetitions" -p "$prompt" -n "$generated" --profile \
    > "$log" 2>&1 || { cat "$log" >&2; exit 1; }
  awk -v name="$(basename "$model")" '
      # test depth batch tok/s p10 p90 GB/s %read GOP/s %compute logits
      /^pp/ { speed = $4; share = $10 }
      /^tg/ { decode = $4; rate = $7; read = $8; is_decoding = 1 }
      /^ *linear layers/ && !is_decoding { linear = $NF }
      END { printf "| %s | %.0f | %.0f %% | %.0f %% | %.1f | %.1f | %.0f %% |\n",
                   name, speed, share, linear, decode, rate, read }' "$log"
done
