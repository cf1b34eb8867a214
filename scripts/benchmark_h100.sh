#!/usr/bin/env bash
# Latency of edits over HTTP: p50/p95/p99, the split by stage, GPU memory, and the exact set-up.
#   scripts/benchmark_h100.sh [-n 20] [--warm-up 2] [--concurrency 1] [--steps 28] [--resolution 1024x1024] [--url URL]
# Without --url it starts a server of its own from the environment (MODEL_ID, HUNYUAN_*) on a free port; without
# MODEL_ID that is the built-in demo, on a CPU too: good for trying the script, not for figures.
# EDIT_API_KEY holds the key where the server at URL wants one. All options: scripts/benchmark_h100.sh --help
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-${VIRTUAL_ENV:-.venv}/bin/python}
exec "$python" scripts/benchmarks/benchmark_http.py "$@"
