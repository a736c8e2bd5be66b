#!/usr/bin/env bash
# Installs what building Qianwen needs and builds it. Sourced by ./run and ./check.
#
# Everything printed goes to stderr, so that `./run ARGS` adds nothing to the program's stdout.

qw_root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# Debian/Ubuntu packages, and a file or program that shows each is there.
qw_packages=(
  "g++:g++" "cmake:cmake" "ninja-build:ninja" "git:git" "pkg-config:pkg-config"
  "libfmt-dev:/usr/include/fmt/format.h"
  "libspdlog-dev:/usr/include/spdlog/spdlog.h"
  "nlohmann-json3-dev:/usr/include/nlohmann/json.hpp"
  "libcli11-dev:/usr/include/CLI/CLI.hpp"
  "libicu-dev:/usr/include/unicode/unorm2.h"
  "libxxhash-dev:/usr/include/xxhash.h"
  "libedit-dev:/usr/include/editline/readline.h"
  "libboost-dev:/usr/include/boost/beast/http.hpp"
  "prometheus-cpp-dev:/usr/include/prometheus/registry.h"
  "libssl-dev:/usr/include/openssl/ssl.h"
  "libgtest-dev:/usr/include/gtest/gtest.h"
  "libgmock-dev:/usr/include/gmock/gmock.h"
)
# Wanted, but not needed: a second build is much faster with it.
qw_optional_packages=("ccache:ccache")

# What the tests with other systems' clients need (tests/clients); without them these are skipped.
qw_client_packages=("nodejs:node" "npm:npm")

qw_say() { printf '%s\n' "$*" >&2; }
# The last line of a failure, in the form of the program's own: docs/errors.md.
qw_error() { qw_say "qianwen: error: [setup] $*"; }

qw_present() {
  case "$1" in
    /*) [[ -e "$1" ]] ;;
    *) command -v "$1" > /dev/null 2>&1 ;;
  esac
}

qw_missing() {
  local entry
  for entry in "$@"; do
    qw_present "${entry#*:}" || printf '%s\n' "${entry%%:*}"
  done
}

# Installs missing packages, or says exactly what is missing and how to get it. Further arguments are
# packages that are wanted but not needed, as in qw_optional_packages.
qw_install_packages() {
  local missing optional
  mapfile -t missing < <(qw_missing "${qw_packages[@]}")
  mapfile -t optional < <(qw_missing "${qw_optional_packages[@]}" "$@")
  (( ${#missing[@]} + ${#optional[@]} )) || return 0

  local as_root=()
  if [[ $EUID -ne 0 ]]; then
    if command -v sudo > /dev/null 2>&1 && sudo -n true 2> /dev/null; then
      as_root=(sudo -n)
    else
      (( ${#missing[@]} )) || return 0
      qw_say "qianwen: packages are missing that only root can install. Run this, then try again:"
      qw_say "  sudo apt-get update && sudo apt-get install -y ${missing[*]}"
      qw_error "packages: expected ${missing[*]} to be installed, got none of them"
      return 1
    fi
  fi
  if ! command -v apt-get > /dev/null 2>&1; then
    (( ${#missing[@]} )) || return 0
    qw_say "qianwen: this is not a Debian or Ubuntu system; install the equivalents of the packages below"
    qw_error "packages: expected ${missing[*]} to be installed, got none of them"
    return 1
  fi
  qw_say "qianwen: installing ${missing[*]} ${optional[*]}"
  "${as_root[@]}" apt-get update -qq >&2 || qw_say "qianwen: apt-get update failed; trying with the lists that are there"
  if (( ${#missing[@]} )); then
    DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2 || {
      qw_error "packages: expected apt-get to install ${missing[*]}, got an error (above)"
      return 1
    }
  fi
  if (( ${#optional[@]} )); then
    DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${optional[@]}" >&2 ||
      qw_say "qianwen: going on without ${optional[*]}"
  fi
}

# Node and the clients of tests/clients, as their lock file says. Without them their tests are skipped,
# so nothing here is a failure.
qw_install_clients() {
  local folder="$qw_root/tests/clients" stamp
  stamp="$(cksum < "$folder/package-lock.json")"
  if [[ -f "$folder/node_modules/.qw-stamp" && "$(< "$folder/node_modules/.qw-stamp")" == "$stamp" ]]; then
    return 0
  fi
  qw_install_packages "${qw_client_packages[@]}" || return 0
  command -v npm > /dev/null 2>&1 || { qw_say "qianwen: no npm; tests with other clients are skipped"; return 0; }
  qw_say "qianwen: installing the clients of tests/clients"
  if (cd "$folder" && npm ci --no-fund --no-audit --ignore-scripts >&2); then
    printf '%s' "$stamp" > "$folder/node_modules/.qw-stamp"
  else
    qw_say "qianwen: npm failed; tests with other clients are skipped"
  fi
}

# A hash of every file that can change the build: names, sizes and times, so it costs milliseconds.
qw_source_stamp() {
  (cd "$qw_root" && find CMakeLists.txt CMakePresets.json cmake src include tests tools examples bench web/CMakeLists.txt web/dist \
    \( -name '*.cpp' -o -name '*.h' -o -name '*.cmake' -o -name 'CMakeLists.txt' -o -name '*.json' -o -name '*.in' -o -name '*.html' \) \
    -not -path 'tests/golden/*' -not -path 'tests/fuzz/*' -printf '%p %s %T@\n' 2> /dev/null | LC_ALL=C sort | cksum)
}

# qw_build TARGET...: configures and builds the release preset unless nothing changed since.
qw_build() {
  local build="$qw_root/build/release" stamp key
  key="$(printf '%s' "$*" | tr -c 'a-zA-Z0-9' '_')"
  stamp="$(qw_source_stamp)"
  if [[ -f "$build/.qw-stamp-$key" && "$(< "$build/.qw-stamp-$key")" == "$stamp" && -x "$build/qianwen" ]]; then
    return 0
  fi
  qw_install_packages || return 1
  qw_say "qianwen: building (release preset; the first time takes a few minutes)"
  mkdir -p "$build" 2> /dev/null && [[ -w "$build" ]] || {
    qw_error "build folder: expected to write to it, got permission denied ($build)"
    return 1
  }
  (cd "$qw_root" && cmake --preset release > "$build/configure.log" 2>&1) || {
    cat "$build/configure.log" >&2
    qw_error "configuring: expected cmake to succeed, got an error (above, and $build/configure.log)"
    return 1
  }
  (cd "$qw_root" && cmake --build --preset release --target "$@") >&2 || {
    qw_error "build: expected it to succeed, got an error (above)"
    return 1
  }
  printf '%s' "$stamp" > "$build/.qw-stamp-$key"
}

# What the tests of the chat page need; without it they are skipped. Not for `./run`, whose users need
# none of it.
qw_web_packages=("nodejs:node" "npm:npm" "chromium:/usr/bin/chromium")
qw_install_web() { qw_install_packages "${qw_web_packages[@]}" || qw_say "qianwen: tests of the chat page are skipped"; }
