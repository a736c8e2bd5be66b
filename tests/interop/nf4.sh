#!/usr/bin/env bash
# nf4.sh PROGRAM: what `PROGRAM quantize --to nf4` writes, read by Transformers and bitsandbytes, and what they write, read
# by PROGRAM (requirements-reference.txt and requirements-nf4.txt: every package pinned). The environment is made in
# build/interop (5.7 GB, some minutes the first time). Run by hand: continuous integration does not depend on it.
set -euo pipefail
folder="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
environment="$folder/../../build/interop/nf4"
if [[ ! -x "$environment/bin/python" ]]; then
  python3 -m venv "$environment"
  # With CUDA's libraries: torch's published package cannot be imported without them.
  "$environment/bin/python" -m pip install -q --no-deps -r "$folder/requirements-reference.txt" -r "$folder/requirements-nf4.txt"
fi
"$environment/bin/python" "$folder/nf4.py" "$1" "$folder/../.."
