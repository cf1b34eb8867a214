#!/usr/bin/env bash
# The tests that need an NVIDIA GPU. PYTHON names the interpreter (default .venv/bin/python).
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
"$python" -c 'import torch; print("torch", torch.__version__, torch.cuda.get_device_name())'
"$python" -m pytest -m gpu tests/gpu tests/serving/test_gpu.py "$@"
