"""The held-out test set in the repository: 24 photographs and 24 clip arts, and 100 wordings with what they mean.

    python -m scripts.demo.testset WORK_FOLDER      writes the pictures anew (the wordings are kept by hand)

Reading it needs no package and no network. The pictures are of sources that training never sees (`credits.toml`,
`pack.TEST_CLIP_ART`), the wordings none that training can draw (`wordings.could_say`); tests hold both.
"""

from __future__ import annotations

import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from scripts.demo import sources
from scripts.demo.edits import Step, in_order
from scripts.demo.tasks import UNKNOWN, Task

FOLDER = Path(__file__).parents[2] / "tests" / "data" / "demo"
WORDINGS = FOLDER / "wordings.toml"
SHORT_SIDE = 256


@dataclass(frozen=True)
class Wording:
    """One held-out wording: its prompt, what it means, and how many pictures come with it."""

    prompt: str
    task: Task
    sources: int


def photos() -> dict[str, Image.Image]:
    """Name to photograph in RGB, the short side 256."""
    return {f.stem: Image.open(f).convert("RGB") for f in sorted((FOLDER / "photos").glob("*.webp"))}


def clip_art() -> dict[str, Image.Image]:
    """Name to clip art in RGBA, the long side 240."""
    return {f.stem: Image.open(f).convert("RGBA") for f in sorted((FOLDER / "clip_art").glob("*.webp"))}


def wordings(file: Path = WORDINGS) -> list[Wording]:
    """A file's, in its order: the 100, or others in the same form."""
    entries = tomllib.loads(file.read_text(encoding="utf-8"))["wording"]
    return [Wording(e["prompt"], task_of(e["means"]), e.get("sources", 1)) for e in entries]


def task_of(means: str) -> Task:
    """`unknown`, `beside`, `onto`, `shape SHAPE COLOUR GROUND`, `subject NAME GROUND`, or steps (`tint:red mirror`)."""
    words = means.split()
    if means == "unknown":
        return UNKNOWN
    if means in ("beside", "onto"):
        return Task(means)  # type: ignore[arg-type]  # one of the kinds, as the line above says
    if words[0] == "shape":
        return Task("shape", shape=words[1], colour=words[2], ground=words[3])
    if words[0] == "subject":
        return Task("subject", subject=words[1], ground=words[2])
    steps = [word.split(":") for word in words]
    return Task("edit", in_order([Step(step[0], step[1] if len(step) == 2 else None) for step in steps]))


def write_pictures(work: Path) -> None:
    """The pictures from the Debian packages in (or fetched into) a work folder."""
    from scripts.demo.pack import TEST_CLIP_ART, one_sprite

    held = [photo for photo in sources.photos() if photo.split == "test"]
    sources.fetch({photo.package for photo in held} | {sources.CLIP_ART}, work)
    for kind in ("photos", "clip_art"):
        (FOLDER / kind).mkdir(parents=True, exist_ok=True)
    for photo in held:
        picture = sources.picture(photo, work)
        # Wide panoramas are cut to 16:9, which is what cameras make at most.
        width = min(picture.width, round(picture.height * 16 / 9))
        left = (picture.width - width) // 2
        picture = picture.crop((left, 0, left + width, picture.height))
        scale = SHORT_SIDE / min(picture.size)
        size = (round(picture.width * scale), round(picture.height * scale))
        picture.resize(size, Image.Resampling.LANCZOS).save(FOLDER / "photos" / f"{photo.name}.webp", quality=88)
    for name in TEST_CLIP_ART:
        stem = Path(name).stem.strip("_")
        one_sprite(work, name).save(FOLDER / "clip_art" / f"{stem}.webp", quality=88)


if __name__ == "__main__":
    write_pictures(Path(sys.argv[1]))
