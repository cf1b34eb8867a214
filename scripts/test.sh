#!/usr/bin/env bash
# Everything CI checks, in the environment that is active or in .venv: style, types, tests, coverage.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${VIRTUAL_ENV:-.venv}/bin
"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/mypy"
"$bin/python" -m pytest --cov --cov-report=term-missing:skip-covered "$@"
