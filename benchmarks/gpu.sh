#!/usr/bin/env bash
# Builds the operators in place, tests them without skipping, and measures them, on a machine with a
# GPU. It needs nvcc, a CUDA build of torch and the package's test dependencies.
#
#     benchmarks/gpu.sh            # takes minutes and writes gpu.json
#     benchmarks/gpu.sh --tiny     # the same with small sizes; arguments are passed to benchmarks/gpu.py
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

"$python" -c 'import torch; torch.cuda.is_available() or exit("no GPU: torch.cuda.is_available() is false")'
DINO_BUILD=cuda "$python" setup.py build_ext --inplace
DINO_REQUIRE_CUDA=1 "$python" -m pytest -q tests/ops
"$python" benchmarks/gpu.py --out gpu.json "$@"
