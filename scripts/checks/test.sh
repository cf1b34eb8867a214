#!/usr/bin/env bash
# Everything CI checks, in the environment that is active or in .venv. The quick tests run two at a time, for two cores,
# the long ones three, since these often wait for a server; beside them run the types, and what is checked of the image
# (scripts/checks/image.sh). Then by themselves the tests that measure time. Last the known vulnerabilities of what is
# locked: one that was published today must not hide what the tests say. Arguments go to pytest, each time.
set -euo pipefail
cd "$(dirname "$0")/../.."
bin=${VIRTUAL_ENV:-.venv}/bin
export OMP_NUM_THREADS=1        # a process computes on one core
export PYTHONDONTWRITEBYTECODE= # compiled once: the tests start many processes, each of which imports PyTorch

work=$(mktemp -d)
beside=()
trap 'kill "${beside[@]}" 2>/dev/null || true; rm -rf "$work"' EXIT
section() { echo "== $1 ($((SECONDS / 60)) min $((SECONDS % 60)) s since the start)"; }

section "style"
"$bin/ruff" check .
"$bin/ruff" format --check .
nice -n 5 scripts/checks/image.sh "$work/image" >"$work/image.log" 2>&1 &
beside+=($!)
"$bin/mypy" >"$work/types.log" 2>&1 &
beside+=($!)

# loadfile: a file's tests share one server or one checkpoint; the longest files are first (tests/conftest.py).
shared=(--dist loadfile --no-loadscope-reorder)
# Long tests look at processes of their own, which coverage does not follow, or compute, which it would slow down by a
# third.
section "quick tests, two at a time, and what they cover"
"$bin/python" -m pytest -n 2 "${shared[@]}" -m "not (slow or server or alone)" \
    --cov --cov-report=term-missing:skip-covered "$@"
section "long tests, three at a time"
"$bin/python" -m pytest -n 3 "${shared[@]}" -m "(slow or server) and not alone" "$@"

section "types"
status=0
wait "${beside[1]}" || status=$?
cat "$work/types.log"
[ "$status" = 0 ] || exit 1

section "the image: Python steps, licences, a smoke test on its Python"
status=0
wait "${beside[0]}" || status=$?
cat "$work/image.log"
case $status in
0) ;;
77) # of this machine; a step that fails has another status
    echo "IMAGE NOT REPLAYED, for the reason above; NO SMOKE TEST ON PYTHON 3.12, which it would have installed"
    ;;
*) exit 1 ;;
esac
rm -rf "$work"
trap - EXIT

section "tests that measure time"
"$bin/python" -m pytest -m alone "$@"
section "known vulnerabilities"
"$bin/python" scripts/checks/audit.py
section "done"
