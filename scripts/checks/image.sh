#!/usr/bin/env bash
# The image's Python steps with an edit in what they made, its licences and its SBOM, and a smoke test on its Python
# 3.12: scripts/checks/image.sh FOLDER, which is filled. Exit status 77 where this machine cannot do that, with its
# reason; a step that fails has another one.
set -euo pipefail
cd "$(dirname "$0")/../.."
bin=${VIRTUAL_ENV:-.venv}/bin
work=$1
export PYTHONDONTWRITEBYTECODE=

"$bin/python" scripts/image/replay_image.py --work "$work"
python=$work/app/.venv/bin/python
"$bin/python" scripts/checks/licences.py "$python" --check --sbom "$work/sbom.json"
"$python" scripts/checks/smoke.py
