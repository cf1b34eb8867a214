"""Pictures: any file to upright RGB, and from there to the autoencoder's and the vision tower's input."""

from __future__ import annotations

import builtins
import io
import json
import math
import struct
import zlib
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from torch.nn.functional import interpolate
from transformers.models.siglip2.image_processing_siglip2 import get_image_size_for_max_num_patches

from hunyuan.checkpoint.folder import read_config
from hunyuan.errors import InvalidImage
from hunyuan.formats.config import CheckpointConfig
from hunyuan.model.config import VitProcessorConfig
from hunyuan.pictures.reader import load_image
from hunyuan.pictures.rgb import to_rgb
from hunyuan.prompt.images import centre_crop, prepare_cond_image, resize, to_pil, vision_grid, vision_input
from hunyuan.prompt.resolution import Size

ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def config(golden) -> CheckpointConfig:
    return read_config(golden / "checkpoint")


@pytest.fixture(scope="module")
def recorded(golden) -> dict[str, torch.Tensor]:
    return load_file(golden / "preprocess.safetensors")


@pytest.fixture(scope="module")
def meta(golden) -> dict[str, dict]:
    sections = json.loads((golden / "manifest.json").read_text())["sections"]
    return {m["name"]: m for m in sections["preprocess"]["meta"]}


def encoded(image: Image.Image, kind: str, **options) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def halves(mode: str, first, second) -> Image.Image:
    """32x16, one value on the left half and another on the right."""
    image = Image.new(mode, (32, 16), first)
    image.paste(second, (16, 0, 32, 16))
    return image


def colours(image: Image.Image) -> list[tuple[int, ...]]:
    assert image.mode == "RGB"
    assert image.size == (32, 16)
    return [image.getpixel((8, 8)), image.getpixel((24, 8))]


def gradient(width: int, height: int) -> Image.Image:
    """A picture that differs everywhere and across both axes."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [x * 255 // max(width - 1, 1), y * 255 // max(height - 1, 1), (x * 7 + y * 13) % 256]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def noisy(width: int, height: int) -> Image.Image:
    """Random bytes: every value a byte can have, and edges everywhere."""
    values = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Of fp32 tensors: zeros of different sign differ."""
    return torch.equal(one.view(torch.int32), other.contiguous().view(torch.int32))


def u8(pixels: torch.Tensor) -> torch.Tensor:
    return ((pixels + 1) / 2 * 255).round().to(torch.uint8)


# --- modes


def test_rgb_stays():
    assert colours(to_rgb(halves("RGB", (1, 2, 3), (250, 251, 252)))) == [(1, 2, 3), (250, 251, 252)]


def test_grey():
    assert colours(to_rgb(halves("L", 10, 200))) == [(10, 10, 10), (200, 200, 200)]


def test_black_and_white():
    assert colours(to_rgb(halves("1", 0, 1))) == [(0, 0, 0), (255, 255, 255)]


@pytest.mark.trap(17)
def test_rgba_is_laid_on_white():
    image = halves("RGBA", (10, 20, 30, 255), (0, 0, 0, 0))
    assert colours(to_rgb(image)) == [(10, 20, 30), (255, 255, 255)]
    half = halves("RGBA", (0, 0, 0, 128), (255, 0, 0, 51))
    assert colours(to_rgb(half)) == [(127, 127, 127), (255, 204, 204)]


@pytest.mark.trap(17)
def test_grey_with_alpha_is_laid_on_white():
    assert colours(to_rgb(halves("LA", (100, 255), (100, 0)))) == [(100, 100, 100), (255, 255, 255)]


def test_premultiplied_alpha_is_laid_on_white():
    image = halves("RGBA", (200, 0, 0, 255), (200, 0, 0, 0)).convert("RGBa")
    assert colours(to_rgb(image)) == [(200, 0, 0), (255, 255, 255)]


def palette() -> Image.Image:
    image = halves("P", 0, 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    return image


@pytest.mark.trap(17)
def test_palette():
    assert colours(to_rgb(palette())) == [(255, 0, 0), (0, 0, 255)]


@pytest.mark.trap(17)
@pytest.mark.parametrize("transparency", [1, b"\xff\x00"])
def test_palette_with_a_transparent_colour_is_laid_on_white(transparency):
    file = encoded(palette(), "PNG", transparency=transparency)
    assert colours(load_image(Image.open(file))) == [(255, 0, 0), (255, 255, 255)]


@pytest.mark.parametrize(
    ("image", "transparency", "expected"),
    [
        (halves("RGB", (9, 9, 9), (7, 8, 9)), (7, 8, 9), [(9, 9, 9), (255, 255, 255)]),
        (halves("L", 9, 7), 7, [(9, 9, 9), (255, 255, 255)]),
    ],
)
def test_a_transparent_colour_without_a_palette_is_laid_on_white(image, transparency, expected):
    file = encoded(image, "PNG", transparency=transparency)
    assert colours(load_image(Image.open(file))) == expected


def test_cmyk():
    image = halves("CMYK", (0, 255, 255, 0), (0, 0, 0, 255))
    assert colours(to_rgb(image)) == [(255, 0, 0), (0, 0, 0)]
    red, black = colours(load_image(Image.open(encoded(image, "JPEG", quality=100, subsampling=0))))
    assert np.abs(np.subtract(red, (255, 0, 0))).max() <= 3
    assert max(black) <= 3


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L"])
def test_sixteen_bit_grey_keeps_the_high_byte(mode):
    values = np.full((16, 32), 0x12FF, dtype=np.uint16)
    values[:, 16:] = 0xFE01
    raw = values.astype(">u2" if mode.endswith("B") else "<u2").tobytes()
    image = Image.frombytes(mode, (32, 16), raw)
    assert colours(to_rgb(image)) == [(0x12,) * 3, (0xFE,) * 3]


def test_a_sixteen_bit_png_keeps_the_high_byte():
    values = np.full((16, 32), 0x12FF, dtype=np.uint16)
    values[:, 16:] = 0xFE01
    file = encoded(Image.fromarray(values), "PNG")
    assert Image.open(file).mode.startswith("I")
    assert colours(load_image(Image.open(file))) == [(0x12,) * 3, (0xFE,) * 3]


@pytest.mark.parametrize("transparency", [None, 0x12FF, 0xFE01])
def test_a_transparent_grey_of_sixteen_bits_is_laid_on_white(transparency):
    values = np.full((16, 32), 0x12FF, dtype=np.uint16)
    values[:, 16:] = 0xFE01
    file = encoded(Image.fromarray(values), "PNG", **({} if transparency is None else {"transparency": transparency}))
    expected = [255 if value == transparency else value >> 8 for value in (0x12FF, 0xFE01)]
    assert colours(load_image(Image.open(file))) == [(value,) * 3 for value in expected]


def png_of_sixteen_bits(
    colour_type: int, left: tuple[int, ...], right: tuple[int, ...], trns: bytes = b""
) -> io.BytesIO:
    """32x16, two colours; PIL cannot write 16 bits per channel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" + b"".join(struct.pack(f">{len(pixel)}H", *pixel) * 16 for pixel in (left, right))
    head = struct.pack(">IIBBBBB", 32, 16, 16, colour_type, 0, 0, 0)
    parts = [(b"IHDR", head), *([(b"tRNS", trns)] if trns else []), (b"IDAT", zlib.compress(row * 16)), (b"IEND", b"")]
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))


@pytest.mark.parametrize(
    ("colour_type", "left", "right", "expected"),
    [
        (0, (0x12FF,), (0xFE01,), [(0x12,) * 3, (0xFE,) * 3]),
        (2, (0x12FF, 0x3401, 0x5680), (0xFFFF, 0, 0x00FF), [(0x12, 0x34, 0x56), (255, 0, 0)]),
        (4, (0x12FF, 0xFFFF), (0x12FF, 0), [(0x12,) * 3, (255,) * 3]),
        (6, (0xFFFF, 0, 0, 0xFFFF), (0, 0, 0, 0x8000), [(255, 0, 0), (127,) * 3]),
    ],
)
def test_sixteen_bits_a_channel(colour_type, left, right, expected):
    assert colours(load_image(Image.open(png_of_sixteen_bits(colour_type, left, right)))) == expected


def test_a_transparent_colour_of_sixteen_bits_is_laid_on_white():
    left, right = (0x12FF, 0x3401, 0x5680), (0xFFFF, 0, 0)
    file = png_of_sixteen_bits(2, left, right, struct.pack(">3H", *left))
    assert colours(load_image(Image.open(file))) == [(255, 255, 255), (255, 0, 0)]


def test_32_bit_grey_within_8_bits_is_8_bit_grey():
    assert colours(to_rgb(halves("L", 10, 200).convert("I"))) == [(10,) * 3, (200,) * 3]
    assert colours(to_rgb(halves("I", -5, 255))) == [(0,) * 3, (255,) * 3]
    assert colours(to_rgb(halves("I", 0, 256))) == [(0,) * 3, (1,) * 3]


def test_values_beyond_sixteen_bits_are_clamped():
    assert colours(to_rgb(halves("I", 70_000, 0x3456))) == [(255, 255, 255), (0x34,) * 3]


# --- files


@pytest.mark.parametrize("as_path", [str, Path])
def test_a_path_and_its_picture_give_the_same(golden, as_path):
    path = golden / "images" / "src0.png"
    with Image.open(path) as image:
        assert load_image(as_path(path)).tobytes() == load_image(image).tobytes()


def test_the_callers_picture_is_left_alone():
    image = halves("RGBA", (1, 2, 3, 4), (5, 6, 7, 8))
    image.getexif()[ORIENTATION] = 6
    before = image.tobytes()
    assert load_image(image).size == (16, 32)
    assert (image.mode, image.size, image.tobytes()) == ("RGBA", (32, 16), before)
    assert image.getexif()[ORIENTATION] == 6


@pytest.mark.trap(17)
@pytest.mark.parametrize(
    ("orientation", "corner"),
    # Where a mark in the stored picture's top left corner ends up.
    [(1, "tl"), (2, "tr"), (3, "br"), (4, "bl"), (5, "tl"), (6, "tr"), (7, "br"), (8, "bl")],
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_exif_orientation_is_applied(orientation, corner, kind):
    stored = Image.new("RGB", (64, 32), (0, 0, 255))
    stored.paste((255, 255, 0), (0, 0, 16, 16))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = load_image(Image.open(encoded(stored, kind, exif=exif)))
    assert image.size == ((64, 32) if orientation < 5 else (32, 64))
    right, bottom = image.width - 8, image.height - 8
    corners = {"tl": (8, 8), "tr": (right, 8), "bl": (8, bottom), "br": (right, bottom)}
    marked = [name for name, place in corners.items() if image.getpixel(place)[0] > 128]
    assert marked == [corner]


def test_orientation_is_applied_once():
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    image = load_image(Image.open(encoded(Image.new("RGB", (64, 32)), "JPEG", exif=exif)))
    assert load_image(image).size == image.size == (32, 64)


@pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("WEBP", {}), ("PNG", {}), ("TIFF", {})])
def test_several_frames_are_refused(kind, options):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "green")]
    file = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    with pytest.raises(InvalidImage, match="animated picture was sent; send a single frame"):
        load_image(Image.open(file))


def test_one_frame_of_such_a_kind_is_taken():
    file = encoded(halves("RGB", (255, 0, 0), (0, 0, 255)), "GIF", save_all=True)
    assert colours(load_image(Image.open(file))) == [(255, 0, 0), (0, 0, 255)]


@pytest.mark.trap(17)
def test_of_a_phones_mpo_the_first_picture_is_taken():
    first, second = halves("RGB", (200, 0, 0), (0, 0, 200)), Image.new("RGB", (16, 16), (0, 200, 0))
    file = encoded(first, "MPO", save_all=True, append_images=[second], quality=100)
    image = Image.open(file)
    assert (image.format, image.n_frames) == ("MPO", 2)
    red, blue = colours(load_image(image))
    assert red[0] > 180
    assert max(red[1:]) < 40
    assert blue[2] > 180
    assert max(blue[:2]) < 40


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("keep", [0.02, 0.5])
def test_a_file_that_is_cut_short_is_refused(tmp_path, kind, keep):
    data = encoded(gradient(160, 120), kind).getvalue()
    path = tmp_path / "photo"
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(InvalidImage, match=r": (cannot be decoded \(\w+\)|the file is cut short or damaged.*)$"):
        load_image(path)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"hello", r"the file \(5 bytes\) is none of PNG, JPEG, WebP, HEIC and AVIF"),
        (bytes(2000), r"the file \(2,000 bytes\) is none of"),
        (b"\x89PNG\r\n\x1a\n" + b"x" * 100, ""),
        (b"<svg/>", "an SVG drawing"),
    ],
    ids=["empty", "text", "zeros", "PNG", "SVG"],
)
def test_what_is_no_picture_is_refused(tmp_path, data, reason):
    path = tmp_path / "file.png"
    path.write_bytes(data)
    with pytest.raises(InvalidImage, match=rf"file\.png: {reason}"):
        load_image(path)


def test_a_missing_file_is_refused_with_its_path(tmp_path):
    with pytest.raises(InvalidImage, match="No such file") as caught:
        load_image(tmp_path / "none.png")
    assert str(tmp_path / "none.png") in str(caught.value)


def test_too_many_pixels_are_refused(monkeypatch, tmp_path):
    path = tmp_path / "bomb.png"
    gradient(100, 100).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InvalidImage, match="DecompressionBombError"):
        load_image(path)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((15, 16), "got 15x16 px; each side must be at least 16 px"),
        ((64, 15), "got 64x15 px; each side must be at least 16 px"),
        ((1, 1), "got 1x1 px; each side must be at least 16 px"),
        ((160, 16), "got 160x16, a ratio of 10.0:1; at most 8:1 is allowed"),
        ((20, 180), "got 20x180, a ratio of 9.0:1; at most 8:1 is allowed"),
    ],
)
def test_sides_and_ratio_are_bounded(size, message):
    with pytest.raises(InvalidImage) as caught:
        load_image(Image.new("RGB", size), field="photo")
    assert str(caught.value) == f"photo: {message}"
    assert (caught.value.field, caught.value.code) == ("photo", "invalid_image")


@pytest.mark.parametrize("size", [(16, 16), (128, 16), (16, 128)])
def test_the_bounds_themselves_are_fine(size):
    assert load_image(Image.new("RGB", size)).size == size


# --- the autoencoder's input


@pytest.mark.trap(6)
@pytest.mark.parametrize("name", ["src0_align0", "src0_align1", "src1_align0", "src1_align1", "src2_align0"])
def test_cond_images_are_the_recorded_ones(golden, config, recorded, meta, name):
    facts = meta[name]
    image = prepare_cond_image(load_image(golden / facts["png"]), config, facts["align"])
    assert torch.equal(u8(image.pixels), recorded[f"{name}.vae_input_u8"])
    assert [image.source.width, image.source.height] == facts["ori_wh"]
    assert image.bucket.index == facts["ratio_index"]
    assert [image.bucket.size.height, image.bucket.size.width] == facts["vae_hw"]
    assert list(image.vision.grid) == facts["vit_tokens_hw"]


def test_pixels_are_scaled_to_minus_one_to_one(config):
    image = Image.new("RGB", (256, 256), (0, 255, 51))
    pixels = prepare_cond_image(image, config, align=False).pixels
    assert pixels.shape == (3, 256, 256)
    assert pixels.dtype == torch.float32
    assert torch.allclose(pixels[:, 0, 0], torch.tensor([-1.0, 1.0, -0.6]))


@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize("size", [(256, 256), (300, 190)])
def test_pixels_are_scaled_to_the_last_bit_as_the_model_says(config, size, align):
    """Of every value a byte can have; channels stay fastest in memory, which decides how convolutions compute."""
    image = noisy(*size)
    cond = prepare_cond_image(image, replace(config, image_base_size=256), align)
    fitted = (resize if align else centre_crop)(image, cond.bucket.size)
    values = torch.from_numpy(np.array(fitted)).permute(2, 0, 1)  # uint8 [3, H, W]
    assert len(values.unique()) == 256
    assert same_bits(cond.pixels, values.float() / 255 * 2 - 1)
    assert cond.pixels.permute(1, 2, 0).is_contiguous()


@pytest.mark.trap(6)
def test_align_stretches_and_the_other_way_crops(config):
    """A frame along the edge survives stretching, and loses two sides when the centre is cut out."""
    image = Image.new("RGB", (300, 240), (0, 0, 0))
    ImageDraw.Draw(image).rectangle((0, 0, 299, 239), outline=(255, 255, 255), width=8)
    wide = prepare_cond_image(image, replace(config, image_base_size=256), align=True)
    cut = prepare_cond_image(image, replace(config, image_base_size=256), align=False)
    assert wide.bucket == cut.bucket
    assert str(cut.bucket.size) == "288x224"
    rows, columns = 112, 144
    assert wide.pixels[0, 0, columns] > 0.9
    assert wide.pixels[0, rows, 0] > 0.9
    # 300x240 covers 288x224 as 288x230: full width, three rows cut off above and below.
    assert cut.pixels[0, rows, 0] > 0.9
    thickness = [int((p.pixels[0, : rows // 2, columns] > 0).sum()) for p in (wide, cut)]
    assert thickness == [7, 5]


@pytest.mark.trap(6)
def test_the_vision_input_does_not_depend_on_align(config):
    image = gradient(300, 190)
    one, other = (prepare_cond_image(image, config, align).vision for align in (True, False))
    assert torch.equal(one.patches, other.patches)
    assert one.grid == other.grid


def test_stretching_does_columns_before_rows(golden, recorded):
    """Pillow 13 picks the order by cost; the other order gives other bytes for this picture."""
    image = Image.open(golden / "images" / "src1.png")
    expected = recorded["src1_align1.vae_input_u8"].permute(1, 2, 0).numpy()
    assert np.array_equal(np.array(resize(image, Size(192, 320))), expected)
    tall = image.resize((image.width, 320), Image.Resampling.LANCZOS)
    assert not np.array_equal(np.array(tall.resize((192, 320), Image.Resampling.LANCZOS)), expected)


@pytest.mark.parametrize("size", [Size(320, 192), Size(192, 320), Size(64, 64), Size(300, 190)])
def test_stretch_gives_the_size_asked_for(size):
    assert resize(gradient(300, 190), size).size == (size.width, size.height)


def test_stretch_to_its_own_size_changes_nothing():
    image = gradient(300, 190)
    assert resize(image, Size(300, 190)) is image


@pytest.mark.parametrize("size", [Size(300, 120), Size(210, 190)])
def test_stretch_of_one_side_leaves_the_other(size):
    image = noisy(300, 190)
    assert resize(image, size).tobytes() == image.resize((size.width, size.height), Image.Resampling.LANCZOS).tobytes()


@pytest.mark.parametrize(
    ("source", "target", "box"),
    # The box of the source, its sides as multiples of the target's, that is left.
    [
        ((64, 32), Size(32, 32), (16, 0, 48, 32)),
        ((32, 64), Size(32, 32), (0, 16, 32, 48)),
        ((66, 32), Size(32, 32), (17, 0, 49, 32)),
        ((32, 32), Size(32, 32), (0, 0, 32, 32)),
        ((67, 32), Size(32, 32), (18, 0, 50, 32)),  # 17.5 rounds to the even 18
        ((65, 32), Size(32, 32), (16, 0, 48, 32)),  # 16.5 rounds to the even 16
    ],
)
def test_the_centre_is_what_is_left(source, target, box):
    image = gradient(*source)
    assert centre_crop(image, target).tobytes() == image.crop(box).tobytes()


@pytest.mark.parametrize("source", [(300, 190), (190, 300), (257, 255), (20, 150), (1000, 1001)])
@pytest.mark.parametrize("target", [Size(320, 192), Size(192, 320), Size(256, 256)])
def test_a_crop_always_covers_the_target(source, target):
    image = Image.new("RGB", source, (200, 100, 50))
    cut = centre_crop(image, target)
    assert cut.size == (target.width, target.height)
    assert cut.getextrema() == ((200, 200), (100, 100), (50, 50))  # nothing black from beyond the edge


# --- the vision tower's input

SIZES = [(w, h) for w in (16, 17, 64, 100, 190, 300, 333, 512) for h in (16, 50, 128, 190, 299, 340)]


@pytest.mark.parametrize("most", [64, 1024])
def test_grids_are_those_of_the_processor(most):
    for width, height in SIZES:
        h, w = get_image_size_for_max_num_patches(height, width, 16, most)
        assert vision_grid(Size(width, height), 16, most) == (h // 16, w // 16), (width, height)


@pytest.mark.parametrize("most", [64, 1024])
def test_grids_fit_keep_the_ratio_and_are_as_large_as_can_be(most):
    for width, height in SIZES:
        if max(width, height) > 8 * min(width, height):
            continue
        rows, columns = vision_grid(Size(width, height), 16, most)
        assert rows * columns <= most
        # Some scale gives both numbers: each side, rounded up, is that many patches.
        low = max(Fraction(16 * (rows - 1), height), Fraction(16 * (columns - 1), width))
        high = min(Fraction(16 * rows, height), Fraction(16 * columns, width))
        assert low < high, (width, height, rows, columns)
        # Just beyond that scale, one side or both need a patch more, and that is too much.
        more_rows = rows + (high == Fraction(16 * rows, height))
        more_columns = columns + (high == Fraction(16 * columns, width))
        assert more_rows * more_columns > most, (width, height, rows, columns)


def test_a_square_fills_the_square():
    assert vision_grid(Size(500, 500), 16, 1024) == (32, 32)
    assert vision_grid(Size(16, 16), 16, 64) == (8, 8)


@pytest.mark.parametrize("name", ["src0_align0", "src1_align0", "src2_align0"])
def test_vision_inputs_are_the_recorded_ones(golden, config, recorded, meta, name):
    vision = vision_input(load_image(golden / meta[name]["png"]), config)
    assert torch.allclose(vision.patches, recorded[f"{name}.vit_pixel_values"], rtol=0, atol=1e-4)
    assert list(vision.grid) == recorded[f"{name}.vit_spatial_shapes"].tolist()
    assert torch.equal(vision.mask, recorded[f"{name}.vit_attention_mask"])
    assert vision.mask.dtype == torch.int32


@pytest.mark.parametrize("size", [(300, 190), (190, 300), (128, 128), (128, 16), (17, 333), (1024, 1024)])
@pytest.mark.parametrize("most", [64, 1024])
def test_patches_are_to_the_last_bit_what_one_after_the_other_gives(config, size, most):
    """Resized with each channel by itself, normalized in fp32, then cut one patch after the other."""
    mean, std, scale = (0.48145466, 0.5, 0.40821073), (0.26862954, 0.5, 0.27577711), 1 / 255
    image, changed = noisy(*size), replace(config, vit_processor=VitProcessorConfig(most, mean, std, scale))
    vision = vision_input(image, changed)
    rows, columns = vision.grid
    expected = torch.zeros(most, 16, 16, 3)
    for channel, plane in enumerate(image.split()):
        pixels = torch.from_numpy(np.array(plane))[None, None]  # uint8 [1, 1, H, W]
        resized = interpolate(pixels, (16 * rows, 16 * columns), mode="bilinear", antialias=True)[0, 0]
        values = (resized.float() * scale - torch.tensor(mean[channel])) / torch.tensor(std[channel])
        for row in range(rows):
            for column in range(columns):
                cut = values[16 * row : 16 * (row + 1), 16 * column : 16 * (column + 1)]
                expected[row * columns + column, :, :, channel] = cut
    assert vision.patches.shape == (most, 16 * 16 * 3)
    assert vision.patches.is_contiguous()
    assert same_bits(vision.patches, expected.flatten(1))


def test_padding_is_zero_and_masked(config):
    vision = vision_input(gradient(300, 190), config)
    real = math.prod(vision.grid)
    assert real < config.vit_processor.max_num_patches == len(vision.mask) == len(vision.patches)
    assert vision.mask.tolist() == [1] * real + [0] * (len(vision.mask) - real)
    assert not vision.patches[real:].any()


def test_patches_run_along_rows_and_hold_rows_columns_channels(config):
    """At this size nothing is resized, so each value can be looked up in the picture."""
    image = gradient(128, 128)
    vision = vision_input(image, config)
    assert vision.grid == (8, 8)
    pixels = np.array(image)
    patch = vision.patches[8 * 2 + 5].view(16, 16, 3)  # third row, sixth column
    expected = torch.from_numpy(pixels[32:48, 80:96].astype(np.float32)) / 255 * 2 - 1
    assert torch.allclose(patch, expected, atol=1e-6)


def test_the_checkpoints_own_normalization_is_used(config):
    changed = replace(
        config,
        vit_processor=VitProcessorConfig(
            64, image_mean=(0.0, 0.5, 1.0), image_std=(1.0, 2.0, 0.5), rescale_factor=1 / 51
        ),
    )
    vision = vision_input(Image.new("RGB", (128, 128), (51, 102, 51)), changed)
    assert torch.allclose(vision.patches[0].view(-1, 3)[0], torch.tensor([1.0, 0.75, 0.0]), atol=1e-6)


# --- the way back


def test_decoder_output_is_clamped_and_rounded():
    values = torch.tensor([-5.0, -1.0, -0.999, 0.0, 0.5, 0.996, 1.0, 5.0])
    image = to_pil(values.repeat(3, 2, 1))
    assert (image.mode, image.size) == ("RGB", (8, 2))
    # .0005 * 255 = .13; 127.5 goes to the even 128; 191.25; .998 * 255 = 254.49
    assert [image.getpixel((x, 1))[0] for x in range(8)] == [0, 0, 0, 128, 191, 254, 255, 255]


def test_channels_and_rows_keep_their_place():
    image = gradient(20, 12)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255 * 2 - 1
    assert to_pil(pixels).tobytes() == image.tobytes()
    assert to_pil(pixels.double()).tobytes() == image.tobytes()


# --- files and tags that are not as they should be


@pytest.mark.parametrize("case", ["cut short", "animated", "mpo"])
def test_a_file_given_by_its_path_is_closed_again(tmp_path, monkeypatch, case):
    frames = [gradient(160, 120), gradient(160, 120)]
    data = encoded(frames[0], "JPEG").getvalue()[:-500]
    if case != "cut short":
        kind = {"animated": "GIF", "mpo": "MPO"}[case]
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:]).getvalue()
    (tmp_path / "file").write_bytes(data)
    files = []
    real = builtins.open
    monkeypatch.setattr(builtins, "open", lambda *args, **kwargs: files.append(real(*args, **kwargs)) or files[-1])
    with suppress(InvalidImage):
        load_image(tmp_path / "file")
    monkeypatch.undo()
    [file] = files
    closed = file.closed
    file.close()
    assert closed


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("tag", [0x0100, 0x0102, 0x011A])
def test_a_turned_photo_with_an_ill_typed_exif_tag_does_not_crash(tag):
    entries = [struct.pack("<HHI4s", tag, 2, 4, b"abc\0"), struct.pack("<HHI4s", ORIENTATION, 3, 1, b"\6\0\0\0")]
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + b"".join(entries) + bytes(4)
    file = encoded(Image.new("RGB", (40, 20)), "JPEG", exif=exif)
    try:
        size = load_image(Image.open(file)).size
    except InvalidImage:
        return
    assert size == (20, 40)


def test_a_picture_is_copied_once_and_never_changed() -> None:
    """50 megapixels are 200 MB; what is given stays its owner's, with all that it says of itself."""
    given = halves("RGB", (1, 2, 3), (250, 251, 252))
    given.info["comment"] = "mine"
    assert to_rgb(given) is given
    loaded = load_image(given)
    assert loaded is not given
    assert (given.info, loaded.info) == ({"comment": "mine"}, {})
    loaded.putpixel((0, 0), (9, 9, 9))
    assert given.getpixel((0, 0)) == (1, 2, 3)
