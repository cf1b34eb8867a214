"""Makes the README's picture: `python -m scripts.demo.showcase hunyuan.webp`, edits by the demo as it is served.

Sources are pictures of the held-out test set. Knows which are shown; how they are edited is the product's matter.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from hunyuan import Editor, EditRequest, Settings
from scripts.demo import edits, testset
from scripts.demo.judge import BASE, to_image, to_tensor
from scripts.demo.pictures import centred

SHOWN = (
    ("chelsea", "Make it black and white"),
    ("orca_matthew_gates_r", "Make the background yellow"),
    ("coffee", "Give it a blue frame"),
    ("astronaut", "Turn it into an old photo"),
    ("vacca_pezzata_rossa_val_01", "换成绿色背景"),
    ("china", "Mirror it and make it warmer"),
)
CELL, GAP, TEXT = 176, 6, 22


def source(name: str) -> Image.Image:
    """A photograph's middle square, or a clip art on pink; `KeyError` where the test set has no such picture."""
    photos = testset.photos()
    if name in photos:
        return to_image(edits.fill(to_tensor(photos[name]), BASE, BASE))
    art = Image.fromarray(centred(testset.clip_art()[name]))
    ground = Image.new("RGB", art.size, (255, 150, 190))
    ground.paste(art, mask=art)
    return ground


def compose(pairs: Sequence[tuple[Image.Image, Image.Image, str]], columns: int = 3) -> Image.Image:
    """Before and after side by side, the request above each pair."""
    width, height = 2 * CELL + 3 * GAP, CELL + TEXT + 2 * GAP
    out = Image.new("RGB", (columns * width, -(-len(pairs) // columns) * height), "white")
    draw = ImageDraw.Draw(out)
    for number, (before, after, prompt) in enumerate(pairs):
        x, y = number % columns * width + GAP, number // columns * height + GAP
        draw.text((x, y), prompt, fill=(60, 60, 60), font=_font(prompt))
        for place, picture in enumerate((before, after)):
            out.paste(picture.resize((CELL, CELL), Image.Resampling.LANCZOS), (x + place * (CELL + GAP), y + TEXT))
    return out


def _font(text: str) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font has Latin letters only; for others a font of the system's."""
    if text.isascii():
        return ImageFont.load_default(14)
    for name in ("wqy-microhei.ttc", "NotoSansCJK-Regular.ttc", "DroidSansFallbackFull.ttf", "wqy-zenhei.ttc"):
        try:
            return ImageFont.truetype(name, 14)
        except OSError:
            continue
    raise SystemExit(f"no font here has the letters of {text!r}: install fonts-wqy-microhei")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make the README's picture with the demo.")
    parser.add_argument("out", type=Path)
    args = parser.parse_args(argv)
    editor = Editor.load(Settings(model_id="demo", device="cpu"))
    pairs = []
    for name, prompt in SHOWN:
        before = source(name)
        pairs.append((before, editor.run(EditRequest(prompt, images=[before], seed=42)).image, prompt))
    compose(pairs).save(args.out, quality=82, method=6)
    print(f"wrote {args.out}: {args.out.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
