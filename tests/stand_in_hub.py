"""A stand-in for Hugging Face's command `hf`: `hf download REPO --local-dir FOLDER` copies $SOURCE to FOLDER.

Writes its arguments to the file $CALLED and ends with the status $HF_STATUS (0).
"""

HF = """#!/bin/sh
echo "$@" >"$CALLED"
test "$1" = download || exit 9
cp -r "$SOURCE"/. "$4"
exit "${HF_STATUS:-0}"
"""
