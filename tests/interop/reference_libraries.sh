#!/usr/bin/env bash
# reference_libraries.sh PROGRAM: what `PROGRAM` writes, read by Transformers and peft (requirements-reference.txt: every
# package pinned). The environment is made in build/interop (5.6 GB, some minutes the first time). Run by hand:
# continuous integration does not depend on it.
set -euo pipefail
folder="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
environment="$folder/../../build/interop/reference"
if [[ ! -x "$environment/bin/python" ]]; then
  python3 -m venv "$environment"
  # With CUDA's libraries: torch's published package cannot be imported without them.
  "$environment/bin/python" -m pip install -q --no-deps -r "$folder/requirements-reference.txt"
fi
"$environment/bin/python" "$folder/reference_libraries.py" "$1" "$folder/../.."
