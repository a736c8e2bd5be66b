#!/usr/bin/env bash
# quantised.sh PROGRAM: what `PROGRAM quantize --to gptq-...` and `--to awq` writes, unpacked by AutoGPTQ and AutoAWQ
# (requirements-reference.txt and requirements-quantised.txt: every package pinned; Python 3.11, for which AutoGPTQ has its
# last wheel). The environment is made in build/interop (5.7 GB, some minutes the first time). Run by hand: continuous
# integration does not depend on it.
set -euo pipefail
folder="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
environment="$folder/../../build/interop/quantised"
if [[ ! -x "$environment/bin/python" ]]; then
  python3.11 -m venv "$environment"
  # With CUDA's libraries: torch's published package cannot be imported without them.
  "$environment/bin/python" -m pip install -q --no-deps -r "$folder/requirements-reference.txt" setuptools==80.9.0
  "$environment/bin/python" -m pip install -q --no-deps --no-build-isolation -r "$folder/requirements-quantised.txt"
fi
"$environment/bin/python" "$folder/quantised.py" "$1" "$folder/../.."
