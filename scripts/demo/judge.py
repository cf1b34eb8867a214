"""Judges a demo checkpoint on the held-out test set: `python -m scripts.demo.judge FOLDER --sheet sheet.png`.

For each of the 100 held-out wordings one edit through the product's `Editor`, of a picture that training
never saw. Asked is: does the recaption name the edit; is the exact edit the nearest of all; how near is it, beside
the autoencoder's own copy of the exact edit. Knows pictures and tasks; how they are computed is the product's matter.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from hunyuan.prompt.resolution import Size, resolution_group
from scripts.demo import edits, testset
from scripts.demo.autoencoder import psnr
from scripts.demo.findings import Finding, aims, mean_of, table
from scripts.demo.pictures import centred, placed
from scripts.demo.speech import parse
from scripts.demo.tasks import Task, beside_size, single_steps

BASE = 256
GROUNDS = ("white", "turquoise", "grey", "yellow", "pink", "white")
"""What clip art stands before until its background is changed, in turn."""

KEPT_WITHIN = 1.0
"""dB by which a picture that should be kept may be worse than the autoencoder's copy of it."""


@dataclass
class Case:
    """One wording with its pictures.

    Attributes:
        sources: `[1, 3, h, w]` in 0..1 each, of a bucket's size.
        exact: what the answer should be; None where only training knows (a clip art's subject from words).
        others: by name, what other edits would have given, the unchanged picture among them.
    """

    prompt: str
    task: Task
    sources: list[Tensor]
    exact: Tensor | None
    others: dict[str, Tensor]


@dataclass
class Answer:
    """What an editor gave: `[1, 3, h, w]` in 0..1, what it said, and how long it took."""

    picture: Tensor
    said: str
    seconds: float = 0.0


def cases(file: Path = testset.WORDINGS) -> list[Case]:
    """A file's wordings, in their order, with the test set's pictures in turn."""
    photos, art = list(testset.photos().values()), list(testset.clip_art().values())
    made = []
    for number, wording in enumerate(testset.wordings(file)):
        photo = _photograph(photos[number % len(photos)])
        figure = _figure(art[number % len(art)])
        made.append(_case(wording, photo, figure, GROUNDS[number % len(GROUNDS)]))
    return made


def _case(wording: testset.Wording, photo: Tensor, figure: tuple[Tensor, Tensor], ground: str) -> Case:
    task, kind = wording.task, wording.task.kind
    rgb, alpha = figure
    drawing = edits.over(rgb, alpha, edits.colour_of(ground, rgb))
    if wording.sources == 0:
        return Case(wording.prompt, task, [], _from_words(task), {})
    if wording.sources == 2:
        height, width = photo.shape[2:]
        if kind == "beside":
            second = edits.fill(drawing, height, width)
            exact = edits.beside(photo, second, *beside_size(height, width))
            return Case(wording.prompt, task, [photo, second], exact, {})
        ground_photo = edits.fill(photo, *drawing.shape[2:])
        exact = edits.over(rgb, alpha, ground_photo)
        return Case(wording.prompt, task, [drawing, ground_photo], exact, {"first": drawing, "second": ground_photo})
    on_ground = edits.changes_background(task.steps)
    source = drawing if on_ground else photo
    others = {step: edits.apply(step, source) for step in single_steps() if step.name != "background"}
    if on_ground:
        for colour in edits.COLOURS:
            others[edits.Step("background", colour)] = edits.over(rgb, alpha, edits.colour_of(colour, rgb))
    exact = edits.apply_all(task.steps, source, figure) if kind == "edit" else source
    named = {str(step): x for step, x in others.items() if (step,) != task.steps and x.shape == exact.shape}
    return Case(wording.prompt, task, [source], exact, named if kind == "unknown" else {"unedited": source} | named)


def _from_words(task: Task) -> Tensor | None:
    """The exact picture of a shape; a clip art's is in the training archive alone."""
    if task.kind != "shape":
        return None
    alpha = edits.shape_mask(task.shape or "", BASE, BASE)
    colour, ground = (edits.colour_of(name or "", alpha) for name in (task.colour, task.ground))
    return edits.over(colour * alpha, alpha, ground)


def _photograph(image: Image.Image) -> Tensor:
    """Cut to the bucket of its ratio."""
    size = resolution_group(BASE, False).nearest(Size(*image.size)).size
    return edits.fill(to_tensor(image), size.height, size.width)


def _figure(image: Image.Image) -> tuple[Tensor, Tensor]:
    """Clip art in the middle of a square: premultiplied rgb and alpha."""
    return placed(torch.from_numpy(centred(image)).permute(2, 0, 1)[None], BASE, BASE)


def to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].float() / 255


def to_image(picture: Tensor) -> Image.Image:
    return Image.fromarray((picture[0].clamp(0, 1).permute(1, 2, 0).numpy() * 255).round().astype("uint8"))


def judge(case: Case, answer: Answer, copy: Callable[[Tensor], Tensor]) -> Finding:
    """Compares one answer; `copy` sends a picture through the autoencoder and back."""
    said = parse(recaption_of(answer.said)) == case.task
    exact, got = case.exact, answer.picture
    name = " ".join(f"{s.name}:{s.colour}" if s.colour else s.name for s in case.task.steps) or case.task.kind
    found = Finding(case.prompt, name, said, said, None, None, None, recaption_of(answer.said), answer.seconds)
    if exact is None:
        return found
    if got.shape != exact.shape:
        found.nearest = False
        return found
    found.psnr, found.ceiling = psnr(got, exact), psnr(copy(exact), exact)
    if case.task.kind == "unknown":
        found.nearest = found.psnr >= found.ceiling - KEPT_WITHIN
        return found
    # Some other edit may give the same, as a background of the colour that is there.
    others = [x for x in case.others.values() if x.shape == got.shape and not torch.equal(x, exact)]
    found.nearest = all(found.psnr > psnr(got, other) for other in others)
    if case.sources and case.sources[0].shape == exact.shape:
        found.unedited = psnr(case.sources[0], exact)
    return found


def recaption_of(said: str) -> str:
    match = re.search(r"<recaption>(.*?)(</recaption>|$)", said, re.DOTALL)
    return match[1].strip() if match else ""


def sheet(shown: Sequence[tuple[Case, Answer, Finding]], columns: int = 3, cell: int = 150) -> Image.Image:
    """A contact sheet: source, exact edit and answer of each case, its prompt above."""
    height, width = cell + 16, 3 * cell + 12
    rows = -(-len(shown) // columns)
    out = Image.new("RGB", (columns * width, rows * height), "white")
    draw = ImageDraw.Draw(out)
    for number, (case, answer, found) in enumerate(shown):
        x, y = number % columns * width, number // columns * height
        mark = "" if found.said and found.nearest else "WRONG "
        text = f"{mark}{case.prompt}"[:72].encode("latin-1", "replace").decode("latin-1")
        draw.text((x + 2, y + 2), text, fill="red" if mark else "black")
        for place, picture in enumerate((case.sources[0] if case.sources else None, case.exact, answer.picture)):
            if picture is not None:
                image = to_image(picture)
                image.thumbnail((cell, cell))
                out.paste(image, (x + place * (cell + 2), y + 15))
    return out


def main(argv: Sequence[str] | None = None) -> int:
    from scripts.demo.answers import Product

    parser = argparse.ArgumentParser(
        description="Judge a demo checkpoint on the held-out test set.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--wordings", type=Path, default=testset.WORDINGS, help="and what they mean")
    parser.add_argument("--every", type=int, default=1, help="judge only every so many wordings")
    parser.add_argument("--steps", type=int, help="unset: what a request has by default")
    parser.add_argument("--guidance", type=float, help="unset: the checkpoint's own")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet, PNG")
    parser.add_argument("--json", type=Path, help="write all findings")
    args = parser.parse_args(argv)
    product = Product.load(args.folder, args.device)
    shown = []
    for case in cases(args.wordings)[:: args.every]:
        answer = product.answer(case.prompt, case.sources, args.steps, args.guidance)
        shown.append((case, answer, judge(case, answer, product.copy)))
        print(f"{answer.seconds:.1f} s {'right' if shown[-1][2].nearest else 'WRONG'} {case.prompt!r}", flush=True)
    findings = [found for *_, found in shown]
    print(f"{table(findings)}\n\n{aims(findings)}\n")
    print(f"seconds per edit: first {findings[0].seconds:.1f}, then {mean_of(f.seconds for f in findings[1:])}")
    if args.sheet:
        sheet(shown).save(args.sheet)
    if args.json:
        args.json.write_text(json.dumps([asdict(found) for found in findings], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
