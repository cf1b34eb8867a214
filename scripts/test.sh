#!/usr/bin/env bash
# Everything CI checks, in the environment that is active or in .venv: style, types, tests, coverage, and last the known
# vulnerabilities of what is locked: one that was published today must not hide what the tests say.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${VIRTUAL_ENV:-.venv}/bin
"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/mypy"
"$bin/python" -m pytest --cov --cov-report=term-missing:skip-covered "$@"
"$bin/python" scripts/audit.py
