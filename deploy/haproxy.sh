#!/bin/sh
# What the proxy's container runs: the digests of the keys, as deploy/haproxy.cfg compares them, then HAProxy itself.
#   haproxy.sh KEYS DIGESTS COMMAND...
# KEYS is a file of NAME:KEY entries, as HUNYUAN_API_KEYS_FILE; DIGESTS is written, one SHA-256 in hex in each line.
set -eu
umask 077
grep -v '^[[:space:]]*#' "$1" | tr -d ' \t\r' | tr ',' '\n' | while IFS= read -r entry; do
    [ -z "$entry" ] || printf '%s' "${entry#*:}" | sha256sum | cut -c1-64
done >"$2"
[ -s "$2" ] || {
    echo "no keys in $1" >&2
    exit 1
}
shift 2
exec "$@"
