#!/usr/bin/env bash
# From start to first token with a warm page cache: whole process, plain and with a packed cache, as
# a Markdown table of medians.
#
#   bench/start.sh [-r ROUNDS] [-c CONTEXT] MODEL
#
# QIANWEN names our program (default: the release build). The packed cache is a temporary directory
# beside the model, as large as its weights.
set -euo pipefail

. "$(dirname "$0")/common.sh"

rounds=5 context=4096
while getopts r:c: flag; do
  case $flag in
    r) rounds=$OPTARG ;;
    c) context=$OPTARG ;;
    *) usage ;;
  esac
done
shift $((OPTIND - 1))
[[ $# -eq 1 ]] || usage
model=$1
ours=${QIANWEN:-$(dirname "$0")/../build/release/qianwen}
need_files "$ours" "$model"
need_count -r "$rounds"
need_count -c "$context"
cache=$(mktemp -d "$(dirname "$model")/packed.XXXXXX")
work=$(mktemp -d)
trap 'rm -rf "$cache" "$work"' EXIT

first_token() { # FLAGS...: seconds
  local begin end
  begin=$(date +%s%N)
  "$ours" generate "$model" --ids "[1]" --max-new-tokens 1 --ctx "$context" --log-level error \
    "$@" > /dev/null
  end=$(date +%s%N)
  awk -v ns=$((end - begin)) 'BEGIN { print ns / 1e9 }'
}

find "$model" -type f -exec cat {} + > /dev/null
first_token > /dev/null
filling=$(first_token --packed-cache "$cache")
find "$cache" -type f -exec cat {} + > /dev/null
for ((i = 0; i < rounds; ++i)); do
  first_token >> "$work/plain"
  first_token --packed-cache "$cache" >> "$work/mapped"
done
bytes=$(find "$model" -type f -printf '%s\n' | awk '{ s += $1 } END { print s }')
printf '| file | plain, s | filling the cache, s | mapped from the cache, s |\n|---|---|---|---|\n'
printf '| %.2f GB | %.2f | %.2f | %.2f |\n' "$(awk -v b="$bytes" 'BEGIN { print b / 1e9 }')" \
  "$(median < "$work/plain")" "$filling" "$(median < "$work/mapped")"
