#!/usr/bin/env bash
# The page's checks, as ctest runs them: check.sh unit | page | reproducible. Status 77: cannot run here.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

say() { printf 'web: %s\n' "$*" >&2; }
skip() {
  say "skipped: $*"
  exit 77
}

command -v node > /dev/null && command -v npm > /dev/null || skip "node and npm are not there"
node -e 'const [major, minor] = process.versions.node.split(".").map(Number);
         process.exit(major > 20 || (major === 20 && minor >= 19) ? 0 : 1)' ||
  skip "node 20.19 or later is needed, got $(node --version)"

# Once for all checks, whichever comes first; again when the lock file has changed.
install_packages() {
  local stamp=node_modules/.qianwen-lock
  cmp -s package-lock.json "$stamp" && return 0
  say "npm ci"
  local log
  if ! log="$(npm ci --prefer-offline --no-audit --no-fund 2>&1)"; then
    printf '%s\n' "$log" >&2
    grep -qE 'ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH' <<< "$log" &&
      skip "the package registry cannot be reached"
    exit 1
  fi
  cp package-lock.json "$stamp"
}
exec 9> .lock
flock 9
install_packages
flock -u 9

export NO_COLOR=1
case "${1:-}" in
  unit)
    npx svelte-check --tsconfig ./tsconfig.json --fail-on-warnings --output human-verbose
    npx vitest run --project unit
    ;;
  page)
    [[ -x "${QIANWEN_CHROMIUM:=/usr/bin/chromium}" ]] || skip "Chromium is not there ($QIANWEN_CHROMIUM)"
    export QIANWEN_CHROMIUM
    npx vitest run --project page
    ;;
  reproducible)
    built="$(mktemp -d)"
    trap 'rm -rf "$built"' EXIT
    npx vite build --outDir "$built" --emptyOutDir --logLevel warn
    if ! diff -r --brief dist "$built"; then
      say "web/dist is not what web/src builds: run 'npm run build' in web/ and commit the result"
      exit 1
    fi
    ;;
  *)
    say "expected unit, page or reproducible, got '${1:-}'"
    exit 2
    ;;
esac
