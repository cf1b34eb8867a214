#!/usr/bin/env bash
# Everything CI checks, in the environment that is active or in .venv: style and types, and beside them the image's
# Python steps with an edit in what they made, its licences and its SBOM; tests and coverage; and last the known
# vulnerabilities of what is locked: one that was published today must not hide what the tests say. Arguments go to
# pytest.
set -euo pipefail
cd "$(dirname "$0")/../.."
bin=${VIRTUAL_ENV:-.venv}/bin

work=$(mktemp -d)
replay=
trap 'kill $replay 2>/dev/null || true; rm -rf "$work"' EXIT
"$bin/python" scripts/image/replay_image.py --work "$work/replay" >"$work/replay.log" 2>&1 &
replay=$!
"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/mypy"
status=0
wait "$replay" || status=$?
cat "$work/replay.log"
case $status in
0) "$bin/python" scripts/checks/licences.py "$work/replay/app/.venv/bin/python" --check --sbom "$work/sbom.json" ;;
77) echo "IMAGE NOT REPLAYED, for the reason above" ;; # of this machine; a replay that fails has another status
*) exit 1 ;;
esac
rm -rf "$work"
trap - EXIT

"$bin/python" -m pytest --cov --cov-report=term-missing:skip-covered "$@"
"$bin/python" scripts/checks/audit.py
