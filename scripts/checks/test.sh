#!/usr/bin/env bash
# Everything CI checks, in the environment that is active or in .venv. Beside each other, for two cores: the image's
# Python steps with an edit in what they made; and style, types and the tests, two at a time. Then by themselves the
# tests that measure time, a smoke test on the image's Python 3.12, its licences and its SBOM. Last the known
# vulnerabilities of what is locked: one that was published today must not hide what the tests say. Arguments go to
# pytest, both times.
set -euo pipefail
cd "$(dirname "$0")/../.."
bin=${VIRTUAL_ENV:-.venv}/bin
export OMP_NUM_THREADS=1 # a process computes on one core; there are two at a time

work=$(mktemp -d)
replay=
trap 'kill $replay 2>/dev/null || true; rm -rf "$work"' EXIT
section() { echo "== $1 ($((SECONDS / 60)) min $((SECONDS % 60)) s since the start)"; }

nice "$bin/python" scripts/image/replay_image.py --work "$work/replay" >"$work/replay.log" 2>&1 &
replay=$!
section "style and types"
"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/mypy"
section "tests, two at a time"
# loadfile: a file's tests share one server or one checkpoint.
"$bin/python" -m pytest -n 2 --dist loadfile -m "not alone" --cov --cov-report= --cov-fail-under=0 "$@"

section "the image's Python steps"
status=0
wait "$replay" || status=$?
cat "$work/replay.log"
python=$work/replay/app/.venv/bin/python
case $status in
0)
    "$bin/python" scripts/checks/licences.py "$python" --check --sbom "$work/sbom.json"
    section "smoke test on the image's Python"
    "$python" scripts/checks/smoke.py
    ;;
77) # of this machine; a replay that fails has another status
    echo "IMAGE NOT REPLAYED, for the reason above; NO SMOKE TEST ON PYTHON 3.12, which it would have installed"
    ;;
*) exit 1 ;;
esac
rm -rf "$work"
trap - EXIT

section "tests that measure time"
"$bin/python" -m pytest -m alone --cov --cov-append --cov-report=term-missing:skip-covered "$@"
section "known vulnerabilities"
"$bin/python" scripts/checks/audit.py
section "done"
