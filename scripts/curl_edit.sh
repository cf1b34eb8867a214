#!/usr/bin/env bash
# Edits one picture over HTTP with plain curl.
#   scripts/curl_edit.sh IMAGE PROMPT [OUT] [more curl arguments, e.g. -F seed=42 -F steps=8]
# URL names the server (default http://127.0.0.1:8000), EDIT_API_KEY holds the key where it wants one.
# Exits 1 and prints the server's error on anything but 200.
set -euo pipefail

if [ $# -lt 2 ]; then
    sed -n '2,5s/^# //p' "$0" >&2
    exit 2
fi
image=$1
prompt=$2
shift 2
out=edited.png
if [ $# -gt 0 ] && [[ $1 != -* ]]; then
    out=$1
    shift
fi
if [ ! -r "$image" ]; then
    echo "cannot read the picture: $image" >&2
    exit 2
fi

headers=$(mktemp)
body=$(mktemp)
trap 'rm -f "$headers" "$body"' EXIT

# --form-string: a prompt that starts with @ or < stays a prompt. The quotes let a path contain , and ;
quoted=${image//\\/\\\\}
quoted=${quoted//\"/\\\"}
url=${URL:-http://127.0.0.1:8000}
direct=()
case "$url" in # this machine is never asked through a proxy
http*://127.*|http*://localhost*|http*://\[::1\]*) direct=(--noproxy '*') ;;
esac
key() { # to curl by a file, not by its arguments, which everybody on this machine may read
    [ -z "${EDIT_API_KEY:-}" ] || printf 'header = "Authorization: Bearer %s"\n' "$EDIT_API_KEY"
}
status=$(curl --config <(key) "${direct[@]}" -sS -o "$body" -D "$headers" -w '%{http_code}' \
    -F "image=@\"$quoted\"" --form-string "prompt=$prompt" "$@" "$url/edit") || {
    echo "no answer from $url/edit" >&2
    exit 1
}

if [ "$status" != 200 ]; then
    echo "HTTP $status" >&2
    cat "$body" >&2
    echo >&2
    exit 1
fi
grep -iE '^(x-request-id|x-seed|x-image-size|x-steps|x-model|server-timing):' "$headers" | tr -d '\r'
cat "$body" >"$out"
echo "$out"
