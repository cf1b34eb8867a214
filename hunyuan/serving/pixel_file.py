"""Decoded pixels on their way from one process to another: a memory file (memfd) with 4 bytes per pixel.

Knows Pillow's memory and the kernel's seals. Written by the process that decodes, read by the service.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import BinaryIO

from PIL import Image, ImageFile

PIXEL = "RGBX"  # as Pillow keeps RGB in memory: packing is a plain copy, and the service needs none
PIXEL_BYTES = len(PIXEL)


def new_pixel_file() -> BinaryIO:
    return open(os.memfd_create("pixels", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "wb")


def write_pixels(picture: Image.Image, file: BinaryIO) -> None:
    """`picture` is RGB. Its rows go straight to the file in small pieces; `tobytes` would make two more copies."""
    ImageFile._save(picture, file, [ImageFile._Tile("raw", (0, 0, *picture.size), 0, (PIXEL, 0, 1))])


def picture_of(file: int, width: int, height: int) -> Image.Image:
    """The pixels where they lie, in mode RGBX. Nothing is copied; the caller may close `file`.

    Raises:
        ValueError: the file is smaller.
        OSError: whoever wrote it can still change it.
    """
    # A file that shrinks, or changes, under its mapping would end or deceive the service.
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
    pixels = mmap.mmap(file, width * height * PIXEL_BYTES, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    return Image.frombuffer(PIXEL, (width, height), pixels, "raw", PIXEL, 0, 1)  # type: ignore[arg-type]
