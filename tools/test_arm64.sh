#!/usr/bin/env bash
# Cross-builds for 64-bit ARM on a Debian or Ubuntu machine of another kind and tests the kernels under
# qemu's user mode, on a processor with dot products and on one without.
#
#   tools/test_arm64.sh                 kernels and backend, then one answer of the bundled model
#   tools/test_arm64.sh qw_quant_tests  these test programs instead
#
# Not part of ./check: it takes some minutes, and installs packages of a second architecture.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

build=build/arm64
emulator=qemu-aarch64-static
programs=("$@")
(( $# )) || programs=(qw_kernels_tests qw_backend_tests)
# Emulated, these wait for minutes: they measure the machine.
filter='-CpuLimits.*'

install_packages() {
  local as_root=()
  [[ $EUID -eq 0 ]] || as_root=(sudo)
  "${as_root[@]}" dpkg --add-architecture arm64
  "${as_root[@]}" apt-get update -qq
  DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends \
    cmake ninja-build pkg-config g++-aarch64-linux-gnu qemu-user-static \
    nlohmann-json3-dev libcli11-dev libxxhash-dev libboost-dev \
    lib{c6,fmt,spdlog,icu,edit,ssl,gtest,gmock}-dev:arm64 prometheus-cpp-dev:arm64
}

missing=0
for there in "$(command -v aarch64-linux-gnu-g++)" "$(command -v $emulator)" \
  /usr/include/{nlohmann/json.hpp,CLI/CLI.hpp,xxhash.h} \
  /usr/lib/aarch64-linux-gnu/{libfmt.so,libspdlog.so,libicuuc.so,libedit.so,libssl.so,libprometheus-cpp-core.so,libgtest.a,libgmock.a}; do
  [[ -n $there && -e $there ]] || missing=1
done
(( missing == 0 )) || install_packages

cmake --preset arm64 > /dev/null
targets=("${programs[@]}")
(( $# )) || targets+=(qianwen)
cmake --build --preset arm64 --target "${targets[@]}"

for cpu in cortex-a57 max; do # without and with dot products
  for program in "${programs[@]}"; do
    printf '%s on %s\n' "$program" "$cpu"
    QEMU_CPU=$cpu $emulator "$build/$program" --gtest_brief=1 --gtest_filter="$filter"
  done
done

if (( $# == 0 )); then
  answers=()
  for cpu in cortex-a57 max; do
    answers+=("$(QEMU_CPU=$cpu $emulator "$build/qianwen" generate models/qianwen-mini-chat \
      -p "The capital of Japan is" --max-new-tokens 16 --temperature 0)")
    printf '%s: %s\n' "$cpu" "${answers[-1]}"
  done
  [[ -n ${answers[0]} && ${answers[0]} == "${answers[1]}" ]] ||
    { echo "the answers differ" >&2; exit 1; }
fi
