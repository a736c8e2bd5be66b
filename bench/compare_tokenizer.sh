#!/usr/bin/env bash
# Compares our tokenizer with Hugging Face's `tokenizers` on one core and the same text, in
# alternation, and prints the medians and their ratio as a Markdown table. The ids must be equal.
#
#   bench/compare_tokenizer.sh [-r ROUNDS] [-c CORE] TOKENIZER_DIR TEXT_FILE
#
# TOKENIZER_DIR holds a tokenizer.json, TEXT_FILE any UTF-8 text, best of several languages. It is
# encoded as one document, as messages (its lines of 50 to 500 bytes, one after another), and its
# ids are decoded. Of the peer's ways to encode, every one is measured and the fastest counts.
# TEXT_BENCH names our program (default: that of the release build, configured with
# -DQIANWEN_BUILD_BENCH=ON). The peer is installed into a virtual environment under PEER_VENV
# (default: a temporary folder); needs python3.
set -euo pipefail
peer_version=0.23.3

. "$(dirname "$0")/common.sh"

rounds=5 core=0
while getopts r:c: flag; do
  case $flag in
    r) rounds=$OPTARG ;;
    c) core=$OPTARG ;;
    *) usage ;;
  esac
done
shift $((OPTIND - 1))
[[ $# -eq 2 ]] || usage
vocabulary=$1 text=$2
ours=${TEXT_BENCH:-$(dirname "$0")/../build/release/bench/text_bench}
need_files "$vocabulary/tokenizer.json" "$text" "$ours"
need_count -r "$rounds"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
venv=${PEER_VENV:-$work/venv}
[[ -x $venv/bin/python ]] || python3 -m venv "$venv"
"$venv/bin/python" -c "import tokenizers; assert tokenizers.__version__ == '$peer_version'" \
  2> /dev/null || "$venv/bin/pip" install --quiet "tokenizers==$peer_version" >&2

# Prints "peer TEST MB/s TOKENS/s HASH". Everything is encoded once before each test, which fills
# the peer's cache of words.
cat > "$work/peer.py" << 'PYTHON'
import array, hashlib, sys, time
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file(sys.argv[1])
data = open(sys.argv[2], "rb").read()
document = data.decode()
messages = [line.decode() for line in data.split(b"\n") if 50 <= len(line) <= 500]


def seconds_of(work):
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def report(test, texts, ways):
    encodings = tokenizer.encode_batch(texts)
    digest = hashlib.sha256()
    for e in encodings:
        digest.update(array.array("i", e.ids).tobytes())
    n_tokens = sum(len(e.ids) for e in encodings)
    n_bytes = sum(len(t.encode()) for t in texts)
    seconds = min(seconds_of(way) for way in ways)
    print("peer", test, n_bytes / seconds / 1e6, n_tokens / seconds, digest.hexdigest())


report("document", [document], [
    lambda: tokenizer.encode(document),
    lambda: tokenizer.encode_batch_fast([document]),
])
report("messages", messages, [
    lambda: [tokenizer.encode(m) for m in messages],
    lambda: tokenizer.encode_batch(messages),
    lambda: tokenizer.encode_batch_fast(messages),
])
ids = tokenizer.encode(document).ids
seconds = seconds_of(lambda: tokenizer.decode(ids, skip_special_tokens=False))
print("peer", "decode", len(data) / seconds / 1e6, len(ids) / seconds, "-")
PYTHON

run_peer() {
  TOKENIZERS_PARALLELISM=false taskset -c "$core" "$venv/bin/python" "$work/peer.py" \
    "$vocabulary/tokenizer.json" "$text" >> "$work/results"
}

# Of the columns of the CSV: name, bytes a second, items a second, label.
run_ours() {
  QIANWEN_BENCH_TOKENIZER=$vocabulary QIANWEN_BENCH_TEXT=$text taskset -c "$core" "$ours" \
    --benchmark_filter='^BM_File' --benchmark_min_time=0.5 --benchmark_format=csv \
    2> "$work/ours.log" |
    awk -F, '
      { gsub(/"/, "") }
      $1 == "name" { for (i = 1; i <= NF; ++i) column[$i] = i }
      $1 ~ /^BM_File/ {
        label = $column["label"]
        print "ours", tolower(substr($1, 8)), $column["bytes_per_second"] / 1e6,
              $column["items_per_second"], label == "" ? "-" : label
      }' >> "$work/results"
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

median_of() { # WHO TEST COLUMN
  awk -v who="$1" -v test="$2" -v column="$3" '$1 == who && $2 == test { print $column }' \
    "$work/results" | median
}

cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1)
echo "$(basename "$text"), one core, $cpu, $(date +%F), medians of $rounds alternating rounds;"
echo "peer: tokenizers $peer_version"
echo
echo "| test | qianwen, MB/s | Mtok/s | tokenizers, MB/s | Mtok/s | ratio | ids |"
echo "|---|---|---|---|---|---|---|"
for test in document messages decode; do
  hashes=$(awk -v test="$test" '$2 == test { print $5 }' "$work/results" | sort -u | wc -l)
  awk -v test="$test" -v hashes="$hashes" \
    -v a="$(median_of ours "$test" 3)" -v b="$(median_of peer "$test" 3)" \
    -v ta="$(median_of ours "$test" 4)" -v tb="$(median_of peer "$test" 4)" 'BEGIN {
      printf "| %s | %.1f | %.2f | %.2f | %.2f | %.1f | %s |\n", test, a, ta / 1e6, b, tb / 1e6,
             a / b, test == "decode" ? "-" : hashes == 1 ? "equal" : "DIFFERENT"
    }'
done
# Different ids make the comparison void.
! awk '$5 != "-" { print $2, $5 }' "$work/results" | sort -u | cut -d' ' -f1 | uniq -d | grep -q .
