"""The answer's file: right pixels, the numbers that make it reproducible, and no prompt unless asked for."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from hunyuan.requests import EditResult
from hunyuan.serving.png import encode_png

PLAIN_CHUNKS = {b"IHDR", b"sRGB", b"tEXt", b"iTXt", b"IDAT", b"IEND"}
PROMPT = "A secret: das Blau, 天空变红 🌅"


def result(image: Image.Image | None = None, cot_text: str | None = None) -> EditResult:
    if image is None:
        values = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
        image = Image.fromarray(values)
    return EditResult(image, cot_text, seed=2**63 - 1, size=image.size, steps=8, tokens=3, timings={"total": 1.0})


def encode(edited: EditResult, model_name: str = "tiny", prompt: str | None = None) -> bytes:
    return encode_png(edited, model_name=model_name, version="0.1.0", prompt=prompt)


def chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Every chunk of a PNG, its checksum compared; nothing may follow the last one."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at = 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length]) == (zlib.crc32(kind + body),)
        yield kind, body
        at += 12 + length
    assert kind == b"IEND"


def test_every_pixel_survives() -> None:
    edited = result()
    with Image.open(BytesIO(encode(edited))) as read:
        assert (read.format, read.mode, read.size) == ("PNG", "RGB", (40, 30))
        assert np.array_equal(np.asarray(read), np.asarray(edited.image))


def test_the_file_says_how_it_was_made() -> None:
    with Image.open(BytesIO(encode(result()))) as read:
        assert {name: text for name, text in read.text.items() if name != "XML:com.adobe.xmp"} == {
            "Software": "hunyuan-image-bento 0.1.0",
            "Model": "tiny",
            "Seed": "9223372036854775807",
            "Steps": "8",
            "Size": "40x30",
        }


def test_the_file_says_srgb_before_its_pixels() -> None:
    kinds = [kind for kind, _ in chunks(encode(result()))]
    assert kinds.index(b"sRGB") < kinds.index(b"IDAT")
    with Image.open(BytesIO(encode(result()))) as read:
        assert read.info["srgb"] == 0


@pytest.mark.parametrize(
    ("from_picture", "source_type"),
    [(True, "compositeWithTrainedAlgorithmicMedia"), (False, "trainedAlgorithmicMedia")],
)
def test_the_file_is_marked_as_made_by_a_model(from_picture: bool, source_type: str) -> None:
    """As XMP, where IPTC's readers look: one property, in a well-formed document."""
    data = encode_png(result(), model_name="tiny", version="0.1.0", from_picture=from_picture)
    (body,) = [body for kind, body in chunks(data) if kind == b"iTXt"]
    assert body.startswith(b"XML:com.adobe.xmp\0\0\0\0\0")
    xmp = ElementTree.fromstring(body.split(b"\0\0\0\0\0", 1)[1].decode())
    (described,) = xmp.iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description")
    name = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
    assert described.attrib[name] == f"http://cv.iptc.org/newscodes/digitalsourcetype/{source_type}"


def test_the_same_result_gives_the_same_bytes() -> None:
    assert encode(result(), prompt=PROMPT) == encode(result(), prompt=PROMPT)


def test_neither_prompt_nor_thoughts_get_in_unasked() -> None:
    data = encode(result(cot_text=PROMPT))
    assert {kind for kind, _ in chunks(data)} == PLAIN_CHUNKS
    for word in ("secret", "Blau", "天空", "Prompt"):
        assert word.encode() not in data


def test_a_prompt_in_any_script_can_be_asked_for() -> None:
    data = encode(result(), prompt=PROMPT)
    written = [body for kind, body in chunks(data) if kind == b"iTXt" and body.startswith(b"Prompt")]
    assert written == [b"Prompt\0\0\0\0\0" + PROMPT.encode()]  # not compressed, no language, no translated keyword
    with Image.open(BytesIO(data)) as read:
        assert read.text["Prompt"] == PROMPT


@pytest.mark.parametrize("prompt", ["", "a\nb", "a\0b", "x" * 4000])
def test_an_odd_prompt_leaves_a_file_that_opens(prompt: str) -> None:
    with Image.open(BytesIO(encode(result(), prompt=prompt))) as read:
        read.load()
        assert read.text["Prompt"] == prompt


def test_a_checkpoint_folder_may_have_any_name() -> None:
    data = encode(result(), model_name="模型.v1")
    with Image.open(BytesIO(data)) as read:
        assert read.text["Model"] == "模型.v1"


def test_what_an_upload_left_in_the_picture_stays_out() -> None:
    image = Image.new("RGB", (16, 16))
    image.info |= {"icc_profile": b"a profile", "transparency": (0, 0, 0), "comment": "secret", "exif": b"Exif\0\0x"}
    assert {kind for kind, _ in chunks(encode(result(image)))} == PLAIN_CHUNKS


def test_a_smooth_picture_becomes_a_small_file() -> None:
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (256, 256, 3))
    assert len(encode(result(Image.fromarray(np.ascontiguousarray(ramp))))) < 256 * 256 * 3 / 20
