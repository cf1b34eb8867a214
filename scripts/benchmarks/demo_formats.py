"""What each format and step cache does to the demo's pictures: `python -m scripts.benchmarks.demo_formats WORK_FOLDER`.

Writes the demo, quantizes it in every way, and compares all with the official weights in fp32 on wordings and
photographs of the test set that the calibration has not seen. `--calibrate-on own` lets it choose by the rest of the
test set, `built-in` by the requests that come with `hunyuan quantize --calibrate`. docs/weights.md quotes the tables.

What is there already in WORK_FOLDER is kept: a folder that is quantized, a candidate that was compared. So it may be
stopped at any time, also by `--minutes`, and the same command goes on; delete WORK_FOLDER to begin anew. With
`--requests 6 --calibration-requests 48` it takes 5 minutes of one core; the defaults are
about twice the work.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from hunyuan.calibration.requests import held_out
from hunyuan.checkpoint.safetensors_file import write_durably
from hunyuan.cli.compare import build_cases, loader, read_candidates, watch
from hunyuan.cli.main import build_parser
from hunyuan.cli.main import main as hunyuan
from hunyuan.compare.report import sheet, summary
from hunyuan.compare.weights import Comparison, Outcome, compare
from hunyuan.pictures.reader import load_image
from scripts.demo import testset

CACHES = (
    "taylor,interval=2",
    "spectrum,first_steps=5",
    "taylor,interval=3",
    "spectrum,first_steps=3",
    "taylor,interval=5",
    "spectrum,first_steps=3,window=3",
)
"""In pairs: 6, 5 and 4 of the demo's 8 steps run in full."""


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


class Results:
    """The candidates that were compared already, in a folder of JSON and pictures.

    Args:
        requests: what was compared, in words; a result of other requests is none.
    """

    def __init__(self, folder: Path, requests: str) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.requests = folder, requests

    def save(self, text: str, outcome: Outcome) -> None:
        """Pictures first: a result is there once its JSON is."""
        self.keep_pictures(outcome.name, outcome.pictures)
        found: dict[str, Any] = {"candidate": text, "requests": self.requests, "weight_error": outcome.weight_error}
        found["comparisons"] = [asdict(comparison) for comparison in outcome.comparisons]
        write_durably(self.folder / f"{outcome.name}.json", json.dumps(found, indent=1) + "\n")

    def load(self, name: str, text: str) -> Outcome | None:
        path = self.folder / f"{name}.json"
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if (found.get("candidate"), found.get("requests")) != (text, self.requests):
            return None
        comparisons = [Comparison(**{**c, "size": tuple(c["size"])}) for c in found["comparisons"]]
        pictures = self.pictures(name, len(comparisons))
        return None if pictures is None else Outcome(name, found["weight_error"], comparisons, pictures)

    def keep_pictures(self, name: str, pictures: Sequence[Image.Image]) -> None:
        for number, picture in enumerate(pictures):
            picture.save(self.folder / f"{name}_{number}.png")

    def pictures(self, name: str, count: int) -> list[Image.Image] | None:
        paths = [self.folder / f"{name}_{number}.png" for number in range(count)]
        return list(map(load_image, paths)) if all(path.is_file() for path in paths) else None


class TimeIsUp(Exception):
    """`--minutes` are over; what was compared is kept."""


def candidates(work: Path, args: argparse.Namespace) -> dict[str, str]:
    """By name: what `hunyuan compare` is told. Writes the folders that are not there yet."""
    demo = work / "demo"
    chosen = [str(to_calibrate(work / "seen", args.calibration_requests))] if args.calibrate_on == "own" else []
    four, eight = quantize(demo, work / "4bit", "--weights", "4bit"), quantize(demo, work / "fp8", "--weights", "fp8")
    calibrated = quantize(demo, work / f"calibrated-{args.calibrate_on}", "--calibrate", *chosen)
    found = {"bf16": f"{demo}@dtype=bfloat16"} | {form.name: str(form) for form in (eight, four, calibrated)}
    if "mixed" not in args.without:
        layers = json.loads((demo / "config.json").read_text())["num_hidden_layers"]
        budget = ("--weights", "mixed", "--reserve-gib", "0", "--budget-gib", mixed_budget(four, eight, layers))
        mixed = quantize(demo, work / f"mixed-{args.calibrate_on}", *budget, "--calibrate", *chosen)
        found[mixed.name] = str(mixed)
    if "caches" not in args.without:
        found |= {cache.replace(",", " "): f"{demo}@step_cache={cache}" for cache in CACHES}
    return {name: f"{text}{',' if '@' in text else '@'}name={name}" for name, text in found.items()}


def compare_all(work: Path, texts: dict[str, str], args: argparse.Namespace) -> bool:
    """Runs what is not there yet, then prints the tables and writes the sheet; False where the time was not enough."""
    file, until = to_compare(work / "unseen", args.requests), time.monotonic() + 60 * args.minutes
    demo = str(work / "demo")
    results = Results(work / "results", f"{args.requests} of {hashlib.sha256(file.read_bytes()).hexdigest()}")
    waiting = [text for name, text in texts.items() if results.load(name, text) is None]

    def on_outcome(outcome: Outcome) -> None:
        results.save(texts[outcome.name], outcome)
        if time.monotonic() > until and texts[outcome.name] != waiting[-1]:
            raise TimeIsUp

    options = ["--file", str(file), "--device", "cpu", "--dtype", "float32"]
    asked = build_parser("compare").parse_args(["compare", demo, *(waiting or [demo]), *options])
    cases, originals = build_cases(asked), results.pictures("reference", args.requests)
    if waiting or originals is None:
        try:
            load = loader(asked, asked.a, "auto", "bf16")
            references, _ = compare(load, read_candidates(asked) if waiting else [], cases, watch, on_outcome)
        except TimeIsUp:
            return False
        originals = [reference.result.image for reference in references]
        results.keep_pictures("reference", originals)
    outcomes = [outcome for name, text in texts.items() if (outcome := results.load(name, text)) is not None]
    print(summary(outcomes))
    sheet(cases, originals, outcomes).save(work / "sheet.png")
    return True


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, metavar="WORK_FOLDER")
    parser.add_argument("--requests", type=int, default=12, metavar="N", help="how many edits are compared")
    parser.add_argument("--calibration-requests", type=int, default=96, metavar="N", help="of the own ones")
    parser.add_argument("--without", nargs="*", choices=("mixed", "caches"), default=[], help="what to leave out")
    parser.add_argument("--calibrate-on", choices=("own", "built-in"), default="own", help="requests to choose by")
    parser.add_argument(
        "--minutes", type=float, default=1e9, help="begin no candidate after so many; status 3 where some are left"
    )
    args = parser.parse_args(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    demo = args.work / "demo"
    if not (demo / "config.json").is_file() and hunyuan(["demo", str(demo)]):
        return 1
    texts = candidates(args.work, args)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    of = f", {args.calibration_requests} of them" if args.calibrate_on == "own" else ""
    print(
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()} CPU, torch {torch.__version__}, commit "
        f"{commit.strip() or 'unknown'}, {args.requests} requests, calibrated on {args.calibrate_on} requests{of}; "
        "fp32, the demo's own steps",
        flush=True,
    )
    if compare_all(args.work, texts, args):
        return 0
    print("the time is up; the same command goes on where it was")
    return 3


if __name__ == "__main__":
    sys.exit(main())
