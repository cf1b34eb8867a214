"""Whether a demo checkpoint answers in the shape of its source: `python -m scripts.demo.shapes FOLDER`.

The model names its picture's shape by itself, as a ratio token. One photograph of the test set is cut to every shape
that there is, and made black and white. Knows sizes; whether the edit is right is the judge's matter.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from hunyuan.prompt.resolution import Size, resolution_group
from scripts.demo import edits, testset
from scripts.demo.answers import Product
from scripts.demo.judge import BASE, to_tensor

PHOTO, PROMPT = "coffee", "Make it black and white"


def answered(product: Product, size: Size, steps: int) -> Size:
    """The size that comes back for a source of this one."""
    photo = edits.fill(to_tensor(testset.photos()[PHOTO]), size.height, size.width)
    height, width = product.answer(PROMPT, [photo], steps).picture.shape[2:]
    return Size(width, height)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Ask a demo checkpoint for an edit in every shape there is.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=2, help="the shape is chosen before the first")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    product = Product.load(args.folder, args.device)
    sizes = [bucket.size for bucket in resolution_group(BASE, False).buckets]
    found = [answered(product, size, args.steps) for size in sizes]
    for size, got in zip(sizes, found, strict=True):
        print(f"{size}: {'right' if got == size else f'WRONG, {got}'}")
    print(f"{sum(got == size for size, got in zip(sizes, found, strict=True))} of {len(sizes)} shapes right")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
