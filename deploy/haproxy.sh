#!/bin/sh
# What the proxy's container runs: writes what deploy/haproxy.cfg reads of keys and pages, then runs HAProxy itself.
#   haproxy.sh KEYS FOLDER COMMAND...
# KEYS is a file of NAME:KEY entries, as HUNYUAN_API_KEYS_FILE. FOLDER/digests.txt gets one SHA-256 in hex in each line,
# FOLDER/origins.txt the pages of HUNYUAN_CORS_ORIGINS, one in each line.
set -eu
umask 077
grep -v '^[[:space:]]*#' "$1" | tr -d ' \t\r' | tr ',' '\n' | while IFS= read -r entry; do
    [ -z "$entry" ] || printf '%s' "${entry#*:}" | sha256sum | cut -c1-64
done >"$2/digests.txt"
printf '%s' "${HUNYUAN_CORS_ORIGINS-}" | tr -d ' \t\r' | tr ',' '\n' >"$2/origins.txt"
[ -s "$2/digests.txt" ] || {
    echo "no keys in $1" >&2
    exit 1
}
shift 2
exec "$@"
