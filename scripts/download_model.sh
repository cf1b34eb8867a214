#!/usr/bin/env bash
# Downloads the checkpoint with Hugging Face's own `hf`, and checks that it came whole.
#   scripts/download_model.sh instruct|distil [PARENT] [more arguments of `hf download`, e.g. --revision REVISION]
# writes PARENT/HunyuanImage-3-Instruct or PARENT/HunyuanImage-3-Instruct-Distil; PARENT is /models when absent. The
# folder's name has no dot, which the checkpoint's own Python code would stumble over. Started again, it goes on where
# it stopped. A gated or private copy wants HF_TOKEN in the environment.
set -euo pipefail

needed=170000000000 # bytes of one checkpoint in bf16, and a little

here=$(cd "$(dirname "$0")" && pwd)
case "${1-}" in
instruct) repo=tencent/HunyuanImage-3.0-Instruct name=HunyuanImage-3-Instruct ;;
distil) repo=tencent/HunyuanImage-3.0-Instruct-Distil name=HunyuanImage-3-Instruct-Distil ;;
*)
    sed -n '2,7s/^# //p' "$0" >&2
    exit 2
    ;;
esac
shift
parent=/models
if [ $# -gt 0 ] && [[ $1 != -* ]]; then
    parent=$1
    shift
fi
if ! command -v hf >/dev/null; then
    echo "hf is not on the path: pip install huggingface_hub" >&2
    exit 2
fi

folder=$parent/$name
mkdir -p "$folder"
free=$(df --output=avail --block-size=1 "$folder" | tail -n 1)
have=$(du --summarize --block-size=1 "$folder" | cut -f 1)
if [ $((free + have)) -lt "$needed" ]; then
    echo "$folder: $((free / 1000000000)) GB free and $((have / 1000000000)) GB downloaded, $((needed / 1000000000)) GB wanted" >&2
    exit 1
fi

hf download "$repo" --local-dir "$folder" "$@"
python3 "$here/../hunyuan/checkpoint/verify.py" "$folder"
chmod -R a+rX "$folder" # the service's user in the container is another one
