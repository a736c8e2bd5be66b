#!/usr/bin/env bash
# What serving costs: 16 streams over HTTP against `bench -b 16` on the same file, in turn; and the
# first token behind a long prompt that is new, that is in memory, and that is on disk after a restart. Markdown, medians.
#
#   bench/serve.sh [-r ROUNDS] [-n TOKENS] MODEL.gguf
#
# QIANWEN and LOAD_GENERATOR name our programs (default: the release build). The client runs on the
# same cores as the server. Prompts are token ids, so that the file needs no tokenizer.
set -euo pipefail

. "$(dirname "$0")/common.sh"

rounds=5 tokens=192
while getopts r:n: flag; do
  case $flag in
    r) rounds=$OPTARG ;;
    n) tokens=$OPTARG ;;
    *) usage ;;
  esac
done
shift $((OPTIND - 1))
[[ $# -eq 1 ]] || usage
model=$1
release=$(dirname "$0")/../build/release
ours=${QIANWEN:-$release/qianwen} load=${LOAD_GENERATOR:-$release/tools/load_generator}
need_files "$ours" "$load" "$model"
need_count -r "$rounds"
need_count -n "$tokens"

. "$(dirname "$0")/serve_common.sh"

# Six requests one after the other that share 2,000 tokens: the same ones every time.
shared_prefix() {
  "$load" --url "$url" --ids -n 6 -c 1 --trace shared-prefix --prefix-tokens 2000 --prompt-tokens 20 --max-tokens 4 \
    --json > "$work/prefix" || true
}

for ((i = 0; i < rounds; ++i)); do
  "$ours" bench "$model" -p 16 -n "$tokens" -b 16 -r 1 --json 2> /dev/null | grep '"test":"tg' |
    field median >> "$work/bench"
  start_ours
  "$load" --url "$url" --ids -n 16 -c 16 --prompt-tokens 16 --max-tokens "$tokens" --json > "$work/load"
  field generated_per_second_of_decoding < "$work/load" >> "$work/served"
  quantile inter_token_s p50 < "$work/load" | awk '{ print 16 / $1 }' >> "$work/steady"
  shared_prefix
  field first_request_to_first_token_s < "$work/prefix" >> "$work/first"
  quantile time_to_first_token_s p50 < "$work/prefix" >> "$work/later"
  stop_server
  start_ours --prefix-cache-dir "$work/kv"
  shared_prefix
  field first_request_to_first_token_s < "$work/prefix" >> "$work/writing"
  stop_server
  start_ours --prefix-cache-dir "$work/kv"
  shared_prefix
  field first_request_to_first_token_s < "$work/prefix" >> "$work/disk"
  stop_server
  rm -rf "$work/kv"
done

bench=$(median < "$work/bench") served=$(median < "$work/served") steady=$(median < "$work/steady")
first=$(median < "$work/first") later=$(median < "$work/later")
writing=$(median < "$work/writing") disk=$(median < "$work/disk")
awk -v bench="$bench" -v served="$served" -v steady="$steady" -v first="$first" -v later="$later" -v writing="$writing" -v disk="$disk" 'BEGIN {
  print "| what | value |"
  print "|---|---|"
  printf "| bench -b 16 | %.0f tok/s |\n", bench
  printf "| 16 streams, first token to last | %.0f tok/s, %.0f %% |\n", served, 100 * served / bench
  printf "| 16 streams, by the median time between tokens | %.0f tok/s, %.0f %% |\n", steady, 100 * steady / bench
  printf "| first token behind 2,000 new tokens | %.2f s |\n", first
  printf "| the same while it is written to disk | %.2f s |\n", writing
  printf "| behind the same 2,000 later | %.3f s, %.1f %% |\n", later, 100 * later / first
  printf "| the first one after a restart, from disk | %.3f s, %.1f %% |\n", disk, 100 * disk / first
}'
