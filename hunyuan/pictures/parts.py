"""What a picture file is taken apart into: the bytes that make pixels, and what is said about those pixels.

The walkers (`jpeg.py`, `png.py`, `webp.py`, `heif.py`) make one; `reader.py` hands `data` to a decoder and the rest
to `colour.py`. Whatever else a file carries (texts, previews, maker notes) no decoder of ours ever sees.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MAX_PROFILE_BYTES = 16 * 2**20  # press profiles have 1 to 4 MB
MAX_METADATA_BYTES = 2**20  # of EXIF and XMP each, of which the orientation alone is wanted


class BadFile(Exception):
    """The file cannot be read, or asks for more than is allowed. The message names what is at fault and the limit."""


@dataclass
class Colour:
    """What a file says its values mean. None: it does not say.

    `cicp` is (primaries, transfer, full range) in the numbers of ITU-T H.273; `gamma` the exponent from value to light;
    `chromaticities` x and y of white, red, green and blue.
    """

    profile: bytes | None = None
    cicp: tuple[int, int, bool] | None = None
    gamma: float | None = None
    chromaticities: tuple[float, ...] | None = None
    is_srgb: bool = False


@dataclass
class PictureFile:
    """`data` is a file of its own, for a decoder. `ended` is false where the end marker is missing.

    `claimed` is the width and height that the file states, where a decoder's own limits are below what it may state.
    """

    data: bytes
    colour: Colour = field(default_factory=Colour)
    exif: bytes | None = None
    xmp: bytes | None = None
    ended: bool = True
    claimed: tuple[int, int] | None = None
