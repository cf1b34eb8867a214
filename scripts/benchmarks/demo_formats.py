"""What each format and step cache does to the demo's pictures: `python -m scripts.benchmarks.demo_formats WORK_FOLDER`.

Writes the demo, quantizes it in every way, and compares all with the official weights on wordings and photographs
of the test set that the calibration has not seen. `--calibrate-on own` lets it choose by the rest of the test set,
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
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from hunyuan.calibration.requests import held_out
from hunyuan.cli.main import main as hunyuan
from scripts.demo import testset

CACHES = (
    "step_cache=taylor,interval=2",
    "step_cache=taylor,interval=3",
    "step_cache=taylor,interval=5",
    "step_cache=spectrum,first_steps=5",
    "step_cache=spectrum,first_steps=3",
)


def photographs(part: str) -> list[Image.Image]:
    """The test set's photographs in three parts: a picture's tokens are the same in every request that begins with it,
    so what calibration chooses by, what it measures by and what is compared must not share one."""
    parts = {"choose": slice(0, 12), "measure": slice(12, 18), "compare": slice(18, 24)}
    return list(testset.photos().values())[parts[part]]


def crop(photo: Image.Image, seed: int) -> Image.Image:
    """A part of a photograph, three quarters of its sides or more, mirrored at times: another picture to the model."""
    random = np.random.default_rng(seed)
    share, flip = random.uniform(0.75, 1), random.random() < 0.5
    width, height = round(photo.width * share), round(photo.height * share)
    left, top = (int(random.integers(0, most + 1)) for most in (photo.width - width, photo.height - height))
    part = photo.crop((left, top, left + width, top + height))
    return ImageOps.mirror(part) if flip else part


def write_requests(folder: Path, rows: Iterable[tuple[testset.Wording, list[Image.Image], bool]]) -> Path:
    """Wordings with their pictures as `requests.jsonl` of a new folder; with the prompt as recaption where asked."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (wording, pictures, with_text) in enumerate(rows):
        names = [f"{number}_{i}.png" for i in range(len(pictures))]
        for name, picture in zip(names, pictures, strict=True):
            picture.save(folder / name)
        text = {"cot_text": f"<recaption>{wording.prompt}</recaption>"} if with_text else {}
        lines.append(json.dumps({"prompt": wording.prompt, "images": names, **text}, ensure_ascii=False))
    path = folder / "requests.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def to_calibrate(folder: Path, count: int) -> Path:
    """Every second wording, as often as it takes, each time with other parts of photographs."""
    wordings, held, rows = testset.wordings()[::2], held_out(count), []
    for number in range(count):
        photos, wording = photographs("measure" if number in held else "choose"), wordings[number % 50]
        pictures = [crop(photos[(number + i) % len(photos)], 10 * number + i) for i in range(wording.sources)]
        rows.append((wording, pictures, True))
    return write_requests(folder, rows)


def to_compare(folder: Path, count: int) -> Path:
    """Of the other wordings, with whole photographs."""
    photos, wordings = photographs("compare"), testset.wordings()[1::2]
    chosen = [wordings[n * len(wordings) // count] for n in range(count)]
    rows = [(w, [photos[(n + i) % len(photos)] for i in range(w.sources)], False) for n, w in enumerate(chosen)]
    return write_requests(folder, rows)


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
    parser.add_argument("--calibration-requests", type=int, default=96, metavar="N", help="of the own ones")
    parser.add_argument("--without", nargs="*", choices=("mixed", "caches"), default=[], help="what to leave out")
    parser.add_argument("--calibrate-on", choices=("own", "built-in"), default="own", help="requests to choose by")
    args = parser.parse_args(argv)
    work: Path = args.work
    demo = work / "demo"
    if not (demo / "config.json").is_file() and hunyuan(["demo", str(demo)]):
        return 1
    chosen = [str(to_calibrate(work / "seen", args.calibration_requests))] if args.calibrate_on == "own" else []
    four, eight = quantize(demo, work / "4bit", "--weights", "4bit"), quantize(demo, work / "fp8", "--weights", "fp8")
    calibrated = quantize(demo, work / f"calibrated-{args.calibrate_on}", "--calibrate", *chosen)
    forms = [eight, four, calibrated]
    if "mixed" not in args.without:
        layers = json.loads((demo / "config.json").read_text())["num_hidden_layers"]
        budget = ("--weights", "mixed", "--reserve-gib", "0", "--budget-gib", mixed_budget(four, eight, layers))
        forms.append(quantize(demo, work / f"mixed-{args.calibrate_on}", *budget, "--calibrate", *chosen))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    of = f", {args.calibration_requests} of them" if chosen else ""
    print(
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()} CPU, torch {torch.__version__}, commit "
        f"{commit.strip() or 'unknown'}, {args.requests} requests, calibrated on {args.calibrate_on} requests{of}; "
        "fp32, the demo's own steps",
        flush=True,
    )
    named = [f"{f}@name={f.name}" for f in forms]
    if "caches" not in args.without:
        named += [f"{demo}@name={cache.partition('=')[2].replace(',', '/')},{cache}" for cache in CACHES]
    file = to_compare(work / "unseen", args.requests)
    outputs = ["--json", str(work / "numbers.json"), "--sheet", str(work / "sheet.png")]
    return hunyuan(["compare", str(demo), *named, "--file", str(file), "--device", "cpu", *outputs])


if __name__ == "__main__":
    sys.exit(main())
