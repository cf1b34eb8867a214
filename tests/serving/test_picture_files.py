"""Files of a result in other formats than PNG."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from hunyuan.requests import EditResult
from hunyuan.serving.picture_files import Format, encode_picture

# Grain without colour: a WebP's colours are shared between neighbours, which noise would show as a large error.
VALUES = np.random.default_rng(0).integers(0, 255, (48, 64, 1), dtype=np.uint8).repeat(3, axis=2)


def encode(output_format: Format, compression: int = 100, from_picture: bool = True) -> bytes:
    image = Image.fromarray(VALUES)
    image.info.update(icc_profile=b"secret", exif=b"Exif\0\0secret", comment=b"secret", xmp=b"secret")
    result = EditResult(image, None, 1, image.size, 2, 0)
    return encode_picture(
        result, output_format, compression, model_name="m", version="1", prompt=None, from_picture=from_picture
    )


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_more_compression_makes_it_smaller_and_worse(output_format: Format) -> None:
    files = [encode(output_format, compression) for compression in (100, 60, 0)]
    errors = []
    for file in files:
        with Image.open(BytesIO(file)) as picture:
            assert (picture.format, picture.size, picture.mode) == (output_format.upper(), (64, 48), "RGB")
            errors.append(np.abs(np.asarray(picture, dtype=int) - VALUES).mean())
    assert len(files[0]) > len(files[1]) > len(files[2])
    assert errors[0] < errors[1] < errors[2]
    assert errors[0] < 12  # noise is the worst case there is


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_nothing_of_an_upload_gets_in_and_it_is_always_the_same(output_format: Format) -> None:
    file = encode(output_format)
    assert b"secret" not in file
    assert file == encode(output_format)
    assert b"compositeWithTrainedAlgorithmicMedia" in file
    assert b"composite" not in encode(output_format, from_picture=False)


def test_a_jpeg_keeps_its_colours_apart() -> None:
    with Image.open(BytesIO(encode("jpeg"))) as picture:
        assert [layer[1:3] for layer in picture.layer] == [(1, 1)] * 3  # type: ignore[attr-defined]
