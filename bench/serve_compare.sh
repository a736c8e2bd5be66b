#!/usr/bin/env bash
# Serving beside llama.cpp's server: the same file, client, slots and threads, in turn. 16 streams at
# once, and a mixed load (every eighth prompt long) whose requests come at random. Markdown, medians.
#
#   bench/serve_compare.sh [-r ROUNDS] [-n TOKENS] [-m REQUESTS] [-R RATE] LLAMA_SERVER MODEL.gguf
#
# QIANWEN and LOAD_GENERATOR name our programs (default: the release build). The client runs on the
# same cores as the servers. Prompts are token ids, asked for on /completion, which both have: what a
# model with random weights says is nothing that llama.cpp's OpenAI dialect would pass on.
set -euo pipefail

. "$(dirname "$0")/common.sh"

rounds=5 tokens=128 requests=32 rate=0.5
while getopts r:n:m:R: flag; do
  case $flag in
    r) rounds=$OPTARG ;;
    n) tokens=$OPTARG ;;
    m) requests=$OPTARG ;;
    R) rate=$OPTARG ;;
    *) usage ;;
  esac
done
shift $((OPTIND - 1))
[[ $# -eq 2 ]] || usage
peer=$1 model=$2
release=$(dirname "$0")/../build/release
ours=${QIANWEN:-$release/qianwen} load=${LOAD_GENERATOR:-$release/tools/load_generator}
need_files "$peer" "$ours" "$load" "$model"
need_count -r "$rounds"
need_count -n "$tokens"
need_count -m "$requests"
. "$(dirname "$0")/serve_common.sh"

# measure WHO: of the server at $url.
measure() {
  "$load" --url "$url/completion" --ids -n 16 -c 16 --prompt-tokens 16 --max-tokens "$tokens" --json > "$work/load"
  field generated_per_second_of_decoding < "$work/load" >> "$work/$1.decode"
  "$load" --url "$url/completion" --ids -n "$requests" -c 64 --trace mixed --rate "$rate" --prompt-tokens 64 --long-tokens 2000 \
    --max-tokens 32 --seed "$i" --json > "$work/mixed"
  quantile time_to_first_token_s p50 < "$work/mixed" >> "$work/$1.p50"
  quantile time_to_first_token_s p95 < "$work/mixed" >> "$work/$1.p95"
}

for ((i = 0; i < rounds; ++i)); do
  start_ours
  measure ours
  stop_server
  start_llama_server "$peer" "$(nproc)"
  measure peer
  stop_server
done

echo "| what | ours | llama.cpp's server | ratio |"
echo "|---|--:|--:|--:|"
for row in "decode:16 streams, tok/s" "p50:mixed load, first token p50, s" "p95:mixed load, first token p95, s"; do
  awk -v name="${row#*:}" -v a="$(median < "$work/ours.${row%%:*}")" -v b="$(median < "$work/peer.${row%%:*}")" \
    'BEGIN { printf "| %s | %.2f | %.2f | %.2f |\n", name, a, b, a / b }'
done
