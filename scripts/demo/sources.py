"""Where the training and test pictures come from: reads `credits.toml`, fetches the Debian packages, opens pictures.

Every photograph is named one by one with its author, licence and content hash: a package whose picture has changed, and
with it perhaps the author and the licence, is refused. Knows nothing of what becomes of the pictures.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from scripts.demo import qtresource

CREDITS = Path(__file__).with_name("credits.toml")
ALLOWED = ("public domain", "CC0-1.0", "CC-BY-1.0", "CC-BY-2.0", "CC-BY-3.0", "CC-BY-4.0", "Matplotlib", "Expat")
"""No share-alike, no GPL."""

CLIP_ART = "openclipart-png"
CLIP_ART_FOLDER = "usr/share/openclipart/png"


class SourceError(Exception):
    """A source is missing, or is not what the credits say."""


@dataclass(frozen=True)
class Photo:
    """One photograph.

    Attributes:
        package, path: the Debian package and the file in it; `a.rcc:b.webp` is a file in a Qt resource collection.
        split: `train`, `validation` or `test`; no photograph is in two.
        sha256: the start of the content's hash, in hex.
    """

    name: str
    package: str
    path: str
    author: str
    licence: str
    split: str
    sha256: str
    url: str = ""


def photos() -> list[Photo]:
    """Every photograph of the credits.

    Raises:
        SourceError: a licence that is not allowed, or a name that stands twice.
    """
    found = [Photo(**entry) for entry in tomllib.loads(CREDITS.read_text(encoding="utf-8"))["photo"]]
    for photo in found:
        if photo.licence not in ALLOWED:
            raise SourceError(f"credits.toml: {photo.name}: licence {photo.licence!r} is none of {', '.join(ALLOWED)}")
    if len({photo.name for photo in found}) != len(found):
        raise SourceError("credits.toml: a photograph stands twice")
    return found


def fetch(packages: set[str], folder: Path) -> None:
    """Downloads and unpacks (does not install) Debian packages into folder/NAME; what is there already stays."""
    folder.mkdir(parents=True, exist_ok=True)
    for package in sorted(packages):
        target = folder / package
        if target.is_dir():
            continue
        subprocess.run(["apt-get", "download", package], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        archive = next(folder.glob(f"{package}_*.deb"))
        subprocess.run(["dpkg", "-x", archive.name, package], cwd=folder, check=True)
        archive.unlink()


def picture(photo: Photo, folder: Path) -> Image.Image:
    """A photograph in RGB, from the unpacked packages.

    Raises:
        SourceError: it is not the picture that the credits name.
    """
    path, _, inner = photo.path.partition(":")
    data = (folder / photo.package / path).read_bytes()
    if inner:
        data = qtresource.read(data)[inner]
    if not hashlib.sha256(data).hexdigest().startswith(photo.sha256):
        raise SourceError(f"{photo.package}: {photo.path} is not the picture that the credits name (sha256 differs)")
    return Image.open(io.BytesIO(data)).convert("RGB")


def clip_art(folder: Path) -> Iterator[tuple[str, Path]]:
    """Name (path below the package's picture folder) and file of every clip art worth having."""
    root = folder / CLIP_ART / CLIP_ART_FOLDER
    for file in sorted(root.rglob("*.png")):
        name = file.relative_to(root).as_posix()
        if not name.startswith(_NO_CLIP_ART) and "_bw" not in name:
            yield name, file


# Icons, stars by the thousand, flags and the like: hardly any pictures, and many of them nearly the same.
_NO_CLIP_ART = (
    *("computer/icons", "shapes/", "signs_and_symbols/flags", "signs_and_symbols/map_symbols", "special/"),
    *("transportation/aiga-symbols", "transportation/roadsigns", "computer/buttons", "signs_and_symbols/led"),
    *("recreation/games/", "recreation/religion", "tools/weapons", "unsorted", "office/"),
)
