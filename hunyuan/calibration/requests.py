"""What a calibration runs: a person's own requests from a folder or a file, or those that are built in.

Knows JSON lines and the pictures beside them; no model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hunyuan.calibration.drawing import drawing
from hunyuan.errors import InvalidRequest
from hunyuan.pictures.reader import load_image
from hunyuan.requests import MAX_IMAGES, EditRequest, is_blank

FILE = "requests.jsonl"
SETTING = "--calibrate"
FEWEST, MOST = 4, 512
HOLD_EVERY = 4
"""Every fourth request only measures."""
_KEYS = frozenset({"prompt", "images", "cot_text", "resolution"})

BUILT_IN = (
    ("Make the sky orange and keep everything else", 1, "a quiet scene under a glowing orange sky"),
    ("Make it black and white", 1, "the same picture in black and white"),
    ("A lighthouse on a cliff at dusk, film grain", 0, "a white lighthouse on a dark cliff, waves below, grainy film"),
    ("Make the background blue", 1, "the same object before a plain blue background"),
    ("Put the first picture's colours on the second", 2, "the second picture in the palette of the first"),
    ("Mirror it", 1, "the picture mirrored from left to right"),
    ("A red circle on a yellow background", 0, "one red circle in the middle of a yellow surface"),
    ("Turn it into a watercolour painting", 1, "a soft watercolour with visible paper and running edges"),
    ("Blur it a little", 1, "the same picture, slightly out of focus"),
    ("把背景换成绿色", 1, "主体不变，背景是均匀的绿色"),
    ("Write OPEN in large letters above the door", 1, "the same front with the word OPEN above its door"),
    ("A portrait of an old sailor, studio light", 0, "an old sailor with a grey beard before a dark backdrop"),
    ("Make it warmer and a bit brighter", 1, "the picture in warm light, a little brighter"),
    ("Put the first beside the second", 2, "both pictures side by side"),
    ("Remove the lines and fill in what was behind them", 1, "a clean surface where the lines were"),
    ("Turn it upside down", 1, "the picture turned by half a turn"),
    ("Put a red frame around it", 1, "the same picture inside a red frame"),
    ("A cat on a green sofa", 0, "a grey cat lying on a green sofa, soft daylight"),
    ("Make it look like an old photo", 1, "a faded brown photograph with a pale border"),
    ("给这张照片加上雪", 1, "同样的景物，正在下雪，地面变白"),
    ("Increase the contrast", 1, "the same picture with darker shadows and brighter lights"),
    (
        "Use the second picture as the background of the first",
        2,
        "the first picture's subject before the second picture",
    ),
    ("Zoom in on the middle", 1, "the middle of the picture, twice as large"),
    ("Turn it into a pencil sketch", 1, "a pencil drawing on white paper, fine hatching"),
)
"""Prompt, how many made-up pictures come with it, and what its recaption may say."""
ROUNDS = 2
"""How often each comes, with other pictures."""

_SIZES = ((1, 1), (4, 3), (3, 4), (16, 9), (2, 3))


def read_requests(source: Path | None, base: int, fewest: int = FEWEST, setting: str = SETTING) -> list[EditRequest]:
    """Requests from a folder or a `.jsonl` file, or the built-in ones for a model that paints `base` pixels a side.

    Each line is `{"prompt": ..., "images": ["a.jpg"], "cot_text": ..., "resolution": ...}`, pictures relative to the
    file. A folder holds such a `requests.jsonl`, or pictures, each with its prompt in a `.txt` of its name. Without a
    `cot_text` the prompt stands where the model's rewriting of it would.

    Raises:
        InvalidRequest: naming the line and the field.
    """
    if source is None:
        return [_built_in(number, base) for number in range(ROUNDS * len(BUILT_IN))]
    try:
        if source.is_dir() and not (source / FILE).is_file():
            found = _pictures(source)
        else:
            found = _lines(source / FILE if source.is_dir() else source)
    except (OSError, ValueError) as error:
        raise InvalidRequest(setting, f"{source.name}: {error}") from error
    if not fewest <= len(found) <= MOST:
        raise InvalidRequest(setting, f"{source} holds {len(found)} requests; {fewest} to {MOST} are allowed")
    return found


def held_out(count: int) -> frozenset[int]:
    """The numbers of the requests that choose nothing and measure what the others chose."""
    return frozenset(range(HOLD_EVERY - 1, count, HOLD_EVERY))


def fingerprint(requests: Sequence[EditRequest]) -> str:
    """Changes with every text and every pixel."""
    digest = hashlib.sha256()
    for request in requests:
        digest.update(repr((request.prompt, request.cot_text, request.resolution, len(request.images))).encode())
        for image in request.images:
            picture = load_image(image)
            digest.update(repr(picture.size).encode() + np.asarray(picture).tobytes())
    return digest.hexdigest()


def _built_in(number: int, base: int) -> EditRequest:
    prompt, pictures, recaption = BUILT_IN[number % len(BUILT_IN)]
    images = []
    for i in range(pictures):
        across, down = _SIZES[(number + i) % len(_SIZES)]
        scale = base / (across * down) ** 0.5
        images.append(drawing(round(across * scale), round(down * scale), seed=10 * number + i))
    thought = f"The request is: {prompt}. What is not named stays as it is."
    return EditRequest(prompt, images, cot_text=f"<think>{thought}</think><recaption>{recaption}</recaption>")


def _pictures(folder: Path) -> list[EditRequest]:
    found = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"):
            text = path.with_suffix(".txt")
            if not text.is_file():
                raise ValueError(f"{path.name} has no prompt: {text.name} is missing beside it")
            found.append(_request({"prompt": text.read_text(encoding="utf-8").strip(), "images": [path.name]}, path))
    return found


def _lines(path: Path) -> list[EditRequest]:
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                found.append(_request(json.loads(line), path))
            except ValueError as error:  # of JSON, and our own
                raise ValueError(f"line {number}: {error}") from error
    return found


def _request(entry: Any, path: Path) -> EditRequest:
    """Raises `ValueError` naming what is wrong."""
    if not isinstance(entry, dict) or not set(entry) <= _KEYS:
        raise ValueError(f"expected an object with {', '.join(sorted(_KEYS))}")
    prompt, names = entry.get("prompt"), entry.get("images", [])
    if not isinstance(prompt, str) or is_blank(prompt):
        raise ValueError("prompt must be a text that is not blank")
    if not isinstance(names, list) or len(names) > MAX_IMAGES or not all(isinstance(name, str) for name in names):
        raise ValueError(f"images must be a list of at most {MAX_IMAGES} file names")
    cot, size = entry.get("cot_text"), entry.get("resolution", "auto")
    if not isinstance(cot, str | None) or not isinstance(size, str):
        raise ValueError("cot_text and resolution must be texts")
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        raise ValueError(f"images: there is no file {missing[0]}")
    images = [path.parent / name for name in names]
    return EditRequest(prompt, images, cot_text=cot or f"<recaption>{prompt}</recaption>", resolution=size)
