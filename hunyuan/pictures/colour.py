"""Colours as a file means them, to sRGB.

Knows ICC profiles (through LittleCMS) and what PNG, HEIC and AVIF say in their place. Pixels only: no files, no alpha.

Relative colorimetric with black point compensation: what browsers and editors do by default. Profiles of screens and
cameras have nothing else, and with one of a press the paper becomes white.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from hunyuan.pictures.parts import BadFile, Colour

# A profile that moves no colour by more than this is sRGB by another name: the pixels stay as they are.
SRGB_WITHIN = 2
_SPACES = {"RGB": "RGB ", "L": "GRAY", "CMYK": "CMYK"}
_SRGB_XY = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)  # white, red, green, blue
_SRGB_CURVE = (3, 2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)  # ICC's parametric curve of type 3
_D50 = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
# ITU-T H.273. What is 2 (unspecified) means sRGB, and so do the curves of television: encoders of photographs write
# them for sRGB, and browsers show them so.
_PRIMARIES: dict[int, tuple[float, ...]] = {
    1: _SRGB_XY,
    2: _SRGB_XY,
    4: (0.310, 0.316, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (0.3127, 0.3290, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (0.3127, 0.3290, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07),
    7: (0.3127, 0.3290, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07),
    9: (0.3127, 0.3290, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
    12: (0.3127, 0.3290, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
}
_CURVES: dict[int, tuple[float, ...]] = dict.fromkeys((1, 2, 6, 13, 14, 15), _SRGB_CURVE) | {
    4: (0, 2.2),
    5: (0, 2.8),
    8: (0, 1.0),
    17: (0, 2.6),
}
ADOBE_RGB = Colour(gamma=2.19921875, chromaticities=(0.3127, 0.3290, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06))
_HDR = {16: "PQ", 18: "HLG"}


def colour_of(info: Mapping[Any, Any]) -> Colour:
    """What Pillow has read from a file by itself."""
    stored = info.get("gamma")
    return Colour(
        profile=info.get("icc_profile") or None,
        gamma=1 / stored if stored else None,
        chromaticities=info.get("chromaticity"),
        is_srgb="srgb" in info,
    )


def to_srgb(image: Image.Image, colour: Colour) -> Image.Image:
    """`L`, `RGB` or `CMYK` as 8-bit sRGB (`RGB`). A profile that is broken or of another kind is passed over.

    The same image where there is nothing to do: a copy of 50 megapixels is 200 MB.

    Raises:
        BadFile: the file says that its values are of a kind that is not read (HDR, unknown curves).
    """
    profile = _stated_profile(colour)
    if profile is None:
        return _as_rgb(image)
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        space = source.profile.xcolor_space
        if image.mode == "L" and space == "RGB ":  # PNG's gAMA, or a grey picture with its editor's working space
            image = image.convert("RGB")
        if space != _SPACES[image.mode]:
            return _as_rgb(image)
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            image.mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        if _changes_nothing(transform, image.mode):
            return _as_rgb(image)
        converted = ImageCms.applyTransform(image, transform)
    except (ImageCms.PyCMSError, OSError, ValueError, SyntaxError):
        return _as_rgb(image)
    assert converted is not None
    return converted


def _as_rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")


def _stated_profile(colour: Colour) -> bytes | None:
    """An ICC profile of what the file says; None: sRGB. The order is PNG's own."""
    if colour.cicp is not None:
        return _profile_of_cicp(*colour.cicp)
    if colour.profile is not None:
        return colour.profile
    if colour.is_srgb or (colour.gamma is None and colour.chromaticities is None):
        return None
    xy, gamma = colour.chromaticities or _SRGB_XY, colour.gamma
    # With sRGB's colours, 1/2.2 is what its own curve is called in this chunk; what no device has is a mistake.
    is_srgb = len(xy) == len(_SRGB_XY) and all(abs(a - b) < 0.005 for a, b in zip(xy, _SRGB_XY, strict=True))
    as_srgb = gamma is None or (is_srgb and abs(gamma - 2.2) < 0.05) or not 0.2 <= gamma <= 10
    return matrix_profile(xy, _SRGB_CURVE if as_srgb or gamma is None else (0, gamma))


def _profile_of_cicp(primaries: int, transfer: int, full_range: bool) -> bytes | None:
    if transfer in _HDR:
        raise BadFile(f"an HDR picture ({_HDR[transfer]}); convert it to sRGB, its brightness has no place there")
    if not full_range:
        raise BadFile("its colours are in a narrow (video) range; convert it to sRGB")
    if transfer not in _CURVES or primaries not in _PRIMARIES:
        raise BadFile(
            f"its colours are of an unknown kind (primaries {primaries}, transfer {transfer}); convert to sRGB"
        )
    return matrix_profile(_PRIMARIES[primaries], _CURVES[transfer])


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Tried on colours from all over the cube."""
    if mode == "CMYK":
        return False
    steps = np.linspace(0, 255, 256 if mode == "L" else 18).round().astype(np.uint8)
    axes = np.meshgrid(*[steps] * (1 if mode == "L" else 3), indexing="ij")
    values = np.stack(axes, -1).reshape(1, -1, len(axes))
    tried = Image.fromarray(values[..., 0] if mode == "L" else values)
    moved = np.asarray(ImageCms.applyTransform(tried, transform)).astype(int)
    return int(np.abs(moved - values.astype(int)).max()) <= SRGB_WITHIN


def matrix_profile(chromaticities: tuple[float, ...], curve: tuple[float, ...]) -> bytes | None:
    """A minimal ICC profile (version 4): three primaries and one curve. None where the numbers make no colour space.

    Args:
        chromaticities: x and y of white, red, green and blue.
        curve: the number of an ICC parametric curve, then its parameters.
    """
    xy = np.array(chromaticities, dtype=float).reshape(4, 2)
    if not np.isfinite(xy).all() or (xy[:, 1] <= 0).any():
        return None
    xyz = np.column_stack([xy[:, 0] / xy[:, 1], np.ones(4), (1 - xy.sum(1)) / xy[:, 1]])
    white, primaries = xyz[0], xyz[1:].T
    if abs(np.linalg.det(primaries)) < 1e-6:
        return None
    columns = primaries * np.linalg.solve(primaries, white)
    adapted = np.linalg.inv(_BRADFORD) @ np.diag((_BRADFORD @ _D50) / (_BRADFORD @ white)) @ _BRADFORD @ columns
    if np.abs(adapted).max() > 10:
        return None
    curve_tag = b"para" + struct.pack(">IHH", 0, int(curve[0]), 0) + _fixed(curve[1:])
    tags = {b"wtpt": b"XYZ \0\0\0\0" + _fixed(_D50)}
    for name, column in zip((b"r", b"g", b"b"), adapted.T, strict=True):
        tags |= {name + b"XYZ": b"XYZ \0\0\0\0" + _fixed(column), name + b"TRC": curve_tag}
    return _icc_file(tags)


def _fixed(values: Any) -> bytes:
    """ICC's signed numbers with 16 bits after the point."""
    return b"".join(struct.pack(">i", round(float(value) * 65536)) for value in values)


def _icc_file(tags: dict[bytes, bytes]) -> bytes:
    """These tags behind the header of a display's profile (ICC.1:2010, section 7)."""
    table, body = b"", b""
    for name, data in tags.items():
        padded = data + bytes(-len(data) % 4)
        table += struct.pack(">4sII", name, 128 + 4 + 12 * len(tags) + len(body), len(data))
        body += padded
    size = 128 + 4 + len(table) + len(body)
    header = struct.pack(">I4sI4s4s4s", size, b"\0\0\0\0", 0x04200000, b"mntr", b"RGB ", b"XYZ ")
    header += bytes(12) + b"acsp" + bytes(28) + _fixed(_D50)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body
