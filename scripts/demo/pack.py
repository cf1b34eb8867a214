"""Builds the training archive: photographs cut into tiles, clip art cut out and shrunk, as WebP in one .npz.

    python -m scripts.demo.pack WORK_FOLDER OUT.npz

Fetches the Debian packages into WORK_FOLDER if they are not there. The same packages give the same archive. The test
set's pictures never get in. Knows nothing of how training uses it (`pictures.py` reads it).
"""

from __future__ import annotations

import hashlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from scripts.demo import sources
from scripts.demo.tasks import SUBJECTS

TILE = 352
SPRITE = 240
PHOTO_BYTES, SPRITE_BYTES = 24_000_000, 10_000_000
MOST_TILES = 20
VALIDATION_SPRITES = 24
LIKENESS = 0.05
_WEBP_PHOTO, _WEBP_SPRITE = 84, 86  # 20 MB in all; what is lost is finer than the autoencoder shows

# Some clip art is drawn at 25,000 pixels: opening (which only reads the header) must not fail, decoding is not wanted.
Image.MAX_IMAGE_PIXELS = None
MOST_PIXELS = 9_000_000

TEST_CLIP_ART = (
    "animals/mammals/dogs/black_lab_ganson.png",
    "food/beverages/teacup_ganson.png",
    "recreation/toys/kiddy_train_orlando_kara_.png",
    "recreation/music/trumpet_pocket__ganson.png",
    "food/desserts/cone_alt3.png",
    "food/meats_and_eggs/hamburger_ganson.png",
    "people/head3.png",
    "people/fire_engine_mimooh_01.png",
    "transportation/vehicles/car.png",
    "recreation/music/africandrum_benji_park2.png",
    "people/stickmen/blueman_207_01.png",
    "food/beverages/orange_juice_box.png",
    "plants/island_palm_and_the_sun_01.png",
    "plants/acorn_jonathan_dietrich_01.png",
    "plants/trees/fern_mo_01.png",
    "signs_and_symbols/traffic_light_red_dan_ge_01.png",
    "transportation/vehicles/aircraft_jarno_vasamaa1.png",
    "geography/astronomy/saturn_dan_gerhards_01.png",
    "animals/mammals/vacca_pezzata_rossa_val_01.png",
    "animals/dinosaurs/dinosauro_architetto_fra_01.png",
    "recreation/knitting_01.png",
    "animals/bugs/formicona_architetto_fra_01.png",
    "animals/fish/orca_matthew_gates_r.png",
    "people/clothing/tennis_shoe_jarno_vasama_.png",
)
"""The 24 of the test set."""

Sprite = tuple[str, Image.Image]


def main(folder: Path, out: Path) -> None:
    """Fetches, shrinks and writes."""
    sources.fetch({photo.package for photo in sources.photos()} | {sources.CLIP_ART}, folder)
    split = split_sprites(list(sprites(folder)))
    arrays: dict[str, np.ndarray] = {}
    for name in ("train", "validation"):
        blobs = photo_blobs(folder, name, PHOTO_BYTES if name == "train" else 10**9)
        arrays |= _packed(f"{name}_photos", [blob for _, blob in blobs])
        arrays[f"{name}_photo_names"] = np.array([photo for photo, _ in blobs])
        kept = _within([(n, _webp(im, _WEBP_SPRITE)) for n, im in split[name]], SPRITE_BYTES)
        arrays |= _packed(f"{name}_sprites", [blob for _, blob in kept])
        arrays[f"{name}_sprite_names"] = np.array([sprite for sprite, _ in kept])
        print(f"{name}: {len(blobs)} tiles of {len({p for p, _ in blobs})} photographs, {len(kept)} clip arts")
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_suffix(".new.npz")
    np.savez(unfinished, **arrays)  # type: ignore[arg-type]  # the stubs know no ** of arrays
    unfinished.replace(out)
    print(f"{out.name}: {out.stat().st_size / 1e6:.1f} MB")


def photo_blobs(folder: Path, split: str, limit: int) -> list[tuple[str, bytes]]:
    """(photograph, WebP tile) of one split, in random order, as many as fit."""
    tiles = [
        (photo.name, _webp(tile, _WEBP_PHOTO))
        for photo in sources.photos()
        if photo.split == split
        for tile in tiles_of(sources.picture(photo, folder))
    ]
    Random(3).shuffle(tiles)
    return _within(tiles, limit)


def tiles_of(picture: Image.Image) -> Iterator[Image.Image]:
    """Square tiles: the whole picture's at first, then, of large ones, finer ones."""
    made = 0
    for side in (TILE, 2 * TILE, 4 * TILE):
        if side > TILE and min(picture.size) < side:
            return
        scale = side / min(picture.size)
        width, height = (max(side, round(length * scale)) for length in picture.size)
        scaled = picture.resize((width, height), Image.Resampling.LANCZOS)
        for top in _places(height):
            for left in _places(width):
                if made == MOST_TILES:
                    return
                made += 1
                yield scaled.crop((left, top, left + TILE, top + TILE))


def _places(length: int) -> list[int]:
    """Where tiles begin so that they cover a length, overlapping as little as can be."""
    count = -(-length // TILE)
    return [round(i * (length - TILE) / max(1, count - 1)) for i in range(count)]


def sprites(folder: Path) -> Iterator[Sprite]:
    """Every clip art that is one clear figure, cut to its edges, each picture once."""
    seen: set[bytes] = set()
    for name, file in sources.clip_art(folder):
        sprite = _sprite(file)
        if sprite is None:
            continue
        key = hashlib.sha256(sprite.resize((16, 16)).tobytes()).digest()
        if key not in seen:
            seen.add(key)
            yield name, sprite


def one_sprite(folder: Path, name: str) -> Image.Image:
    """One clip art by its name.

    Raises:
        SourceError: there is none that can be used.
    """
    sprite = _sprite(folder / sources.CLIP_ART / sources.CLIP_ART_FOLDER / name)
    if sprite is None:
        raise sources.SourceError(f"{sources.CLIP_ART}: {name} is no single figure of a usable size")
    return sprite


def _sprite(file: Path) -> Image.Image | None:
    picture: Image.Image = Image.open(file)
    if min(picture.size) < 100 or picture.width * picture.height > MOST_PIXELS:
        return None
    if picture.mode not in ("RGBA", "LA") and "transparency" not in picture.info:
        return None
    if max(picture.size) > 2000:
        picture = picture.reduce(max(picture.size) // 1000)
    picture = picture.convert("RGBA")
    box = picture.getchannel("A").point(lambda v: 255 if v > 30 else 0).getbbox()
    if box is None:
        return None
    picture = picture.crop(box)
    if max(picture.size) < 150 or max(picture.size) > 3.5 * min(picture.size):
        return None
    scale = SPRITE / max(picture.size)
    width, height = (max(1, round(length * scale)) for length in picture.size)
    # Resized with its colours multiplied by alpha, or the edges would take on what is hidden behind them.
    picture = picture.convert("RGBa").resize((width, height), Image.Resampling.LANCZOS).convert("RGBA")
    covered = float((np.asarray(picture.getchannel("A")) > 128).mean())
    return picture if 0.15 < covered < 0.93 else None


def split_sprites(found: list[Sprite]) -> dict[str, list[Sprite]]:
    """Train, validation and test, whose 24 are named; nothing of a held one's series or much like it is elsewhere."""
    by_name = dict(found)
    test = [(name, by_name[name]) for name in TEST_CLIP_ART]
    subjects = [(name, by_name[name]) for name in SUBJECTS.values()]
    rest = _unlike([sprite for sprite in found if sprite[0] not in SUBJECTS.values()], test)
    Random(4).shuffle(rest)
    validation = _unlike(rest[:VALIDATION_SPRITES], subjects)
    return {"train": subjects + _unlike(rest[VALIDATION_SPRITES:], validation), "validation": validation, "test": test}


def _unlike(sprites: list[Sprite], held: list[Sprite]) -> list[Sprite]:
    """The clip arts that are of no held one's series and look like none."""
    stems, looks = {_stem(name) for name, _ in held}, np.stack([_look(image) for _, image in held])
    return [
        (name, image)
        for name, image in sprites
        if _stem(name) not in stems and float(np.abs(looks - _look(image)).mean((1, 2, 3)).min()) > LIKENESS
    ]


def _stem(name: str) -> str:
    """A clip art's name without folder and number: drawings of one series have the same."""
    return name.rsplit("/", 1)[-1].removesuffix(".png").rstrip("0123456789_-.r")


def _look(image: Image.Image) -> np.ndarray:
    """A clip art at a glance: [12, 12, 4] in 0..1, alpha among them."""
    return np.asarray(image.convert("RGBa").resize((12, 12), Image.Resampling.BOX), np.float32) / 255


def _within(items: list[tuple[str, bytes]], limit: int) -> list[tuple[str, bytes]]:
    kept, total = [], 0
    for name, blob in items:
        total += len(blob)
        if total > limit:
            break
        kept.append((name, blob))
    return kept


def _webp(picture: Image.Image, quality: int) -> bytes:
    data = io.BytesIO()
    picture.save(data, "WEBP", quality=quality, method=4)
    return data.getvalue()


def _packed(name: str, blobs: list[bytes]) -> dict[str, np.ndarray]:
    return {
        f"{name}_data": np.frombuffer(b"".join(blobs), np.uint8),
        f"{name}_ends": np.cumsum([len(blob) for blob in blobs], dtype=np.int64),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
