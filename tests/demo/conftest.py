"""A small archive of made-up pictures, and the small files of a demo with a narrow autoencoder."""

from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageDraw

from hunyuan.checkpoint import tiny_tokenizer
from hunyuan.checkpoint.folder import read_config
from hunyuan.formats.config import CheckpointConfig
from scripts.demo import pack, sizes, sources
from scripts.demo.tasks import SUBJECTS


def photo(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 24, 3), np.uint8)
    return Image.fromarray(pixels).resize((720, 360), Image.Resampling.BICUBIC)


def figure(seed: int) -> Image.Image:
    art = Image.new("RGBA", (300, 300))
    rng = Random(seed)
    for _ in range(4):
        x, y = rng.randrange(150), rng.randrange(150)
        ImageDraw.Draw(art).ellipse((x, y, x + 140, y + 100), fill=tuple(rng.randrange(256) for _ in range(3)))
    return art


@pytest.fixture(scope="session")
def work(tmp_path_factory) -> Path:
    """A folder that looks like unpacked packages: 6 photographs, the named clip art and 40 more."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "photos").mkdir()
    for i in range(6):
        photo(i).save(folder / "photos" / f"{i}.png")
    root = folder / sources.CLIP_ART / sources.CLIP_ART_FOLDER
    more = [f"plants/kind_{a}{b}.png" for a in "abcdefghij" for b in "klmn"]
    names = [*SUBJECTS.values(), *pack.TEST_CLIP_ART, *more]
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        figure(i).save(root / name)
    # The same drawing as one of the test set, under another name and larger.
    figure(len(SUBJECTS)).resize((450, 450)).save(root / "plants" / "copycat.png")
    return folder


@pytest.fixture(scope="session")
def archive(work) -> Path:
    splits = ["train", "train", "train", "validation", "test", "test"]
    photos = [
        sources.Photo(f"photo{i}", "photos", f"{i}.png", "nobody", "CC0-1.0", split, "")
        for i, split in enumerate(splits)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "photos", lambda: photos)
        pack.main(work, work / "made" / "pack.npz")
    return work / "made" / "pack.npz"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's small files, with the tiny tokenizer and a narrow autoencoder."""
    out = tmp_path_factory.mktemp("demo")
    tokenizer = tiny_tokenizer.build_tokenizer()
    raw = sizes.model_config(tokenizer, 0.7, 0.1, block_out_channels=[32] * 5, latent_channels=16)
    sizes.write_small_files(out, tokenizer, raw)
    return out


@pytest.fixture(scope="session")
def config(folder: Path) -> CheckpointConfig:
    return read_config(folder)
