#!/usr/bin/env bash
# Writes requirements.lock: requirements.txt and everything it brings, exact and with hashes, for the image's Python
# 3.12 on x86_64 Linux. Keeps what is locked as long as it fits; --upgrade takes the newest that fits.
#   scripts/checks/lock.sh [--upgrade]
set -euo pipefail
cd "$(dirname "$0")/../.."
uv=${VIRTUAL_ENV:-.venv}/bin/uv
"$uv" pip compile requirements.txt --output-file requirements.lock --generate-hashes --no-annotate \
    --python-version 3.12 --python-platform x86_64-manylinux_2_28 --custom-compile-command scripts/checks/lock.sh "$@" >/dev/null
