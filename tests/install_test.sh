#!/usr/bin/env bash
# Installs the build, builds the examples against the installed package only, and runs one.
#   tests/install_test.sh BUILD_DIR SOURCE_DIR
set -euo pipefail
build="$1"
source="$2"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

cmake --install "$build" --prefix "$work/prefix" > "$work/install.log"
cmake -S "$source/examples" -B "$work/examples" -DCMAKE_PREFIX_PATH="$work/prefix" -DCMAKE_BUILD_TYPE=Release > "$work/configure.log" ||
  { cat "$work/configure.log"; exit 1; }
cmake --build "$work/examples" > "$work/build.log" || { cat "$work/build.log"; exit 1; }

model="$work/prefix/share/qianwen/models/qianwen-mini-chat"
answer="$(LD_LIBRARY_PATH="$work/prefix/lib:$work/prefix/lib/$(gcc -dumpmachine 2> /dev/null || true)" "$work/examples/chat_example" "$model" "What is the capital of Japan?")"
[[ "$answer" == *"The capital of Japan is Tokyo."* ]] || { printf 'unexpected answer: %s\n' "$answer"; exit 1; }
# The installed program finds the installed model.
[[ "$(cd / && "$work/prefix/bin/qianwen" chat -p "What is the capital of Japan?" --temperature 0)" == "The capital of Japan is Tokyo." ]]
# Only the public API is visible.
if nm -DC --defined-only "$work"/prefix/lib/libqianwen.so "$work"/prefix/lib/*/libqianwen.so 2> /dev/null | grep -E " [TW] " | grep -vE "qw::(LanguageModel|Error|exit_code|name_of|version)|typeinfo|vtable"; then
  echo "the library exports more than its public API"
  exit 1
fi
echo "installed, built against, and ran"
