#!/usr/bin/env bash
# Runs clang-tidy with the project's .clang-tidy over src/ and says what it finds; any finding is a failure.
#   tools/lint.sh [--quick] [-p BUILD] [FILE...]     all of src/ without tests, or the given files
#
# --quick leaves out the path-sensitive analyser, which takes two thirds of the time.
# BUILD (default build/release) is a configured build folder with compile_commands.json; nothing is
# installed or built. CLANG_TIDY names another program than clang-tidy-14, JOBS the processes at once.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

build=build/release
checks=()
while [[ "${1:-}" == -* ]]; do
  case "$1" in
    --quick) checks=(--checks=-clang-analyzer-*) ;;
    -p) build="${2:-}"; shift $(( $# > 1 )) ;;
    *)
      echo "lint: options: expected --quick or -p BUILD, got $1" >&2
      exit 2
      ;;
  esac
  shift
done
tidy="${CLANG_TIDY:-clang-tidy-14}"
if ! command -v "$tidy" > /dev/null; then
  echo "lint: clang-tidy: expected $tidy to be installed, got nothing of that name (CLANG_TIDY names another)" >&2
  exit 2
fi
if [[ ! -f "$build/compile_commands.json" ]]; then
  echo "lint: build folder: expected compile_commands.json, got none (cmake --preset release; $build)" >&2
  exit 2
fi

# Files that this build leaves out (those of other processors) have no command to be read with.
files=("$@")
if (( ! $# )); then
  mapfile -t files < <(find src -name '*.cpp' -not -name '*_test.cpp' | LC_ALL=C sort |
    while read -r file; do grep -qF "$PWD/$file\"" "$build/compile_commands.json" && echo "$file"; done)
fi

# g++ knows warnings that clang does not; the counts on stderr are of what was suppressed.
printf '%s\0' "${files[@]}" |
  xargs -0 -n 1 -P "${JOBS:-$(nproc)}" "$tidy" -p "$build" --quiet "${checks[@]}" --warnings-as-errors='*' \
    --extra-arg=-Wno-unknown-warning-option 2> >(grep -vE '^[0-9]+ warnings? (generated|treated as errors?)' >&2) || {
  echo "lint: clang-tidy has findings (above)" >&2
  exit 1
}
echo "lint: ${#files[@]} files without findings"
