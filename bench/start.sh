#!/usr/bin/env bash
# From start to first token with a warm page cache: whole process, plain and with a packed cache, as
# a Markdown table of medians.
#
#   bench/start.sh [-r ROUNDS] [-c CONTEXT] MODEL
#
# QIANWEN names our program (default: the release build). The packed cache is a temporary directory
# beside the model, as large as its weights.
set -euo pipefail

usage() {
  sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
  exit 2
}

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
if [[ ! -e $model ]]; then
  echo "start.sh: error: [bench] $model: expected a model, got none" >&2
  exit 3
fi
cache=$(mktemp -d "$(dirname "$model")/packed.XXXXXX")
trap 'rm -rf "$cache"' EXIT

first_token() { # FLAGS...: seconds
  local begin end
  begin=$(date +%s.%N)
  "$ours" generate "$model" --ids "[1]" --max-new-tokens 1 --ctx "$context" --log-level error "$@" > /dev/null
  end=$(date +%s.%N)
  echo "$end - $begin" | bc -l
}
median() {
  sort -g | awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'
}

find "$model" -type f -exec cat {} + > /dev/null
first_token > /dev/null
filling=$(first_token --packed-cache "$cache")
find "$cache" -type f -exec cat {} + > /dev/null
for ((i = 0; i < rounds; ++i)); do
  first_token >> "$cache/plain"
  first_token --packed-cache "$cache" >> "$cache/mapped"
done
bytes=$(find "$model" -type f -printf '%s\n' | awk '{ s += $1 } END { print s }')
printf '| file | plain, s | filling the cache, s | mapped from the cache, s |\n|---|---|---|---|\n'
printf '| %.2f GB | %.2f | %.2f | %.2f |\n' "$(echo "$bytes / 10^9" | bc -l)" \
  "$(median < "$cache/plain")" "$filling" "$(median < "$cache/mapped")"
