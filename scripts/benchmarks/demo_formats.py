"""What each format and step cache does to the demo's pictures: `python -m scripts.benchmarks.demo_formats WORK_FOLDER`.

Writes the demo, quantizes it in every way, and compares all with the official weights on wordings of the test set that
the calibration has not seen. `--calibrate-on own` lets it choose by the other half of the test set;
`built-in` by the requests that come with `hunyuan quantize --calibrate`. docs/weights.md quotes the table. What is
there already in WORK_FOLDER is kept: delete it to begin anew.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from hunyuan.cli.main import main as hunyuan
from scripts.demo import testset

CACHES = (
    "step_cache=taylor,interval=2",
    "step_cache=taylor,interval=3",
    "step_cache=taylor,interval=5",
    "step_cache=spectrum,first_steps=5",
    "step_cache=spectrum,first_steps=3",
)
"""At 8 steps these run 6, 5, 4, 6 and 5 of them in full, as the docs' table counts."""


def requests(folder: Path, numbers: Sequence[int], with_text: bool) -> Path:
    """Wordings of the test set with its photographs, as `requests.jsonl` of a new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    photos, wordings, lines = testset.photos(), testset.wordings(), []
    for name, photo in photos.items():
        photo.save(folder / f"{name}.png")
    names = list(photos)
    for number in numbers:
        wording = wordings[number]
        images = [f"{names[(number + i) % len(names)]}.png" for i in range(wording.sources)]
        text = {"cot_text": f"<recaption>{wording.prompt}</recaption>"} if with_text else {}
        lines.append(json.dumps({"prompt": wording.prompt, "images": images, **text}, ensure_ascii=False))
    path = folder / "requests.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def quantize(demo: Path, out: Path, *options: str) -> Path:
    if not (out / "config.json").is_file():
        began = time.monotonic()
        if hunyuan(["quantize", str(demo), str(out), "--device", "cpu", *options]):
            raise SystemExit(f"{out.name} was not made")
        print(f"{out.name}: {time.monotonic() - began:.0f} s", flush=True)
    return out


def mixed_budget(four: Path, eight: Path, layers: int) -> str:
    """GiB that take a third of the layers in fp8."""
    sizes = [sum(f.stat().st_size for f in folder.glob("*.safetensors")) for folder in (four, eight)]
    return str((sizes[0] + (sizes[1] - sizes[0]) * (layers // 3 + 0.5) / layers) / 2**30)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, metavar="WORK_FOLDER")
    parser.add_argument("--requests", type=int, default=12, metavar="N", help="how many edits are compared")
    parser.add_argument("--calibrate-on", choices=("own", "built-in"), default="own", help="requests to choose by")
    args = parser.parse_args(argv)
    work: Path = args.work
    demo = work / "demo"
    if not (demo / "config.json").is_file() and hunyuan(["demo", str(demo)]):
        return 1
    count = len(testset.wordings())
    seen, unseen = range(0, count, 2), [n for n in range(1, count, 2) if n % 8 == 1][: args.requests]
    # Every fourth of the requests only measures; the pictures that are compared are of neither.
    chosen = [str(requests(work / "seen", seen, True))] if args.calibrate_on == "own" else []
    four, eight = quantize(demo, work / "4bit", "--weights", "4bit"), quantize(demo, work / "fp8", "--weights", "fp8")
    calibrated = quantize(demo, work / f"calibrated-{args.calibrate_on}", "--calibrate", *chosen)
    layers = json.loads((demo / "config.json").read_text())["num_hidden_layers"]
    budget = ("--weights", "mixed", "--reserve-gib", "0", "--budget-gib", mixed_budget(four, eight, layers))
    mixed = quantize(demo, work / f"mixed-{args.calibrate_on}", *budget, "--calibrate", *chosen)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    print(
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()} CPU, torch {torch.__version__}, {torch.get_num_threads()} "
        f"threads, commit {commit.strip() or 'unknown'}, {len(unseen)} requests, calibrated on {args.calibrate_on} "
        f"requests, {len(list(seen)) if chosen else 'the'} of them; fp32, the demo's own steps",
        flush=True,
    )
    named = [f"{f}@name={f.name}" for f in (eight, four, calibrated, mixed)]
    named += [f"{demo}@name={cache.partition('=')[2].replace(',', '/')},{cache}" for cache in CACHES]
    file = requests(work / "unseen", unseen, False)
    outputs = ["--json", str(work / "numbers.json"), "--sheet", str(work / "sheet.png")]
    return hunyuan(["compare", str(demo), *named, "--file", str(file), "--device", "cpu", *outputs])


if __name__ == "__main__":
    sys.exit(main())
