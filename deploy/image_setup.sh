#!/usr/bin/env bash
# Runs once while the image is built, as root, after the Python packages: compiles the GPU kernels (no GPU needed) and
# makes the folders that the service writes to. BUILD_KERNELS=0 leaves the kernels out, for a try without nvcc.
set -euo pipefail

if [ "${BUILD_KERNELS:-1}" != 0 ]; then
    PYTHONPATH=./src python -m hunyuan kernels
fi

mkdir -p /cache /jobs # a new volume takes owner and mode of the folder that it is mounted over
chmod 700 /jobs
chown "${BENTO_USER_UID:-1034}:${BENTO_USER_GID:-1034}" /cache /jobs
