#!/usr/bin/env bash
# One command on a machine with a GPU: builds the operators in place, tests them with no skipping,
# and measures them. Needs nvcc, a CUDA torch and the package's test dependencies.
#
#     benchmarks/gpu.sh            # minutes; writes gpu.json
#     benchmarks/gpu.sh --tiny     # the same with small sizes; arguments go to benchmarks/gpu.py
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

"$python" -c 'import torch; torch.cuda.is_available() or exit("no GPU: torch.cuda.is_available() is false")'
DINO_BUILD=cuda "$python" setup.py build_ext --inplace
DINO_REQUIRE_CUDA=1 "$python" -m pytest -q tests/ops
"$python" benchmarks/gpu.py --out gpu.json "$@"
