"""Sizes: what a wish may look like, the buckets it snaps to, and the size an aligned output gets."""

from __future__ import annotations

import json
import math
import re

import pytest

from hunyuan.errors import InvalidRequest
from hunyuan.prompt.resolution import (
    Bucket,
    Size,
    aligned_output_size,
    parse_resolution,
    resolution_group,
)

BASES = (256, 512, 1024)
SQUARE = 16


@pytest.fixture(scope="module")
def recorded(golden) -> dict:
    return json.loads((golden / "resolution.json").read_text())


def bucket_of(wish: str, base: int = 1024) -> Bucket:
    size = parse_resolution(wish)
    assert size is not None
    return resolution_group(base).nearest(size)


# --- buckets


@pytest.mark.parametrize("base", BASES)
def test_buckets_are_the_recorded_ones_in_order(recorded, base):
    ours = [[b.size.height, b.size.width] for b in resolution_group(base).buckets]
    assert ours == recorded["tables_hw"][str(base)]


@pytest.mark.parametrize("base", BASES)
def test_picks_are_the_recorded_ones(recorded, base):
    for pick in recorded["picks"][str(base)]:
        bucket = resolution_group(base).nearest(Size(pick["width"], pick["height"]))
        assert [bucket.size.width, bucket.size.height] == pick["target_wh"], pick
        assert bucket.index == pick["ratio_index"], pick


@pytest.mark.parametrize("base", BASES)
def test_buckets_are_numbered_and_whole_in_patches(base):
    buckets = resolution_group(base).buckets
    assert [b.index for b in buckets] == list(range(37))
    assert all(b.size.width % 16 == 0 and b.size.height % 16 == 0 for b in buckets)


@pytest.mark.parametrize("base", BASES)
def test_the_last_four_keep_their_size_whatever_the_base_is(base):
    sizes = [str(b.size) for b in resolution_group(base).buckets[33:]]
    assert sizes == ["768x1024", "720x1280", "1024x768", "1280x720"]


@pytest.mark.parametrize("base", BASES)
def test_without_the_last_four_all_other_picks_are_the_recorded_ones(recorded, base):
    """A small checkpoint may leave them out: what the authors' code puts into the first 33, a square too, stays."""
    group = resolution_group(base, False)
    assert group.buckets == resolution_group(base).buckets[:33]
    same = [pick for pick in recorded["picks"][str(base)] if pick["ratio_index"] < 33]
    assert SQUARE in {pick["ratio_index"] for pick in same}
    for pick in same:
        assert group.nearest(Size(pick["width"], pick["height"])).index == pick["ratio_index"], pick
    assert str(resolution_group(256).nearest(Size(4, 3)).size) == "1024x768"
    assert str(resolution_group(256, False).nearest(Size(4, 3)).size) == "288x224"


@pytest.mark.parametrize("base", BASES)
def test_square(base):
    assert resolution_group(base).square == Bucket(SQUARE, Size(base, base))


def test_each_bucket_is_nearest_to_itself():
    group = resolution_group(1024)
    assert [group.nearest(b.size) for b in group.buckets] == list(group.buckets)


def test_the_first_bucket_wins_a_tie():
    group = resolution_group(256)
    low, high = group.buckets[30].size.ratio, group.buckets[31].size.ratio
    middle = Size(16, 62)  # 480/128 = 3.75, 496/128 = 3.875; 62/16 = 3.875
    assert group.nearest(middle).index == 31
    tie = Size(32, 122)  # 3.8125, exactly between the two
    assert tie.ratio == (low + high) / 2
    assert group.nearest(tie).index == 30


def test_a_group_is_made_once():
    assert resolution_group(512) is resolution_group(512)


# --- sizes


def test_size_reads_width_first_and_its_ratio_is_height_over_width():
    assert str(Size(1024, 768)) == "1024x768"
    assert Size(1024, 768).ratio == 0.75


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("auto", None),
        ("1024x768", Size(1024, 768)),
        ("768x1024", Size(768, 1024)),
        ("4:3", Size(4, 3)),
        ("3:4", Size(3, 4)),
        ("1:1", Size(1, 1)),
        ("16x16", Size(16, 16)),
        ("8:1", Size(8, 1)),
        ("128x16", Size(128, 16)),
        ("16x128", Size(16, 128)),
        ("999999x999999", Size(999999, 999999)),
    ],
)
def test_what_a_wish_means(text, size):
    assert parse_resolution(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        ":",
        "AUTO",
        " auto",
        "0x5",
        "5x0",
        "0x0",
        "01024x768",
        "1024X768",
        "1024×768",
        "1024*768",
        " 10x10",
        "1024x768 ",
        "1024x768\n",
        "1024 x 768",
        "1e3x5",
        "-16x16",
        "+16x16",
        "16.0x16",
        "1024",
        "1024x",
        "x768",
        "1024x768x3",
        "1024x4:3",
        "1000000x999999",
        "999999x1000000",
        "1000000:1000000",
        "9" * 5000 + "x1",
        "١٠٢٤x٧٦٨",
        "１０２４x７６８",
        "<img_ratio_5>",
    ],
)
def test_other_wishes_are_refused_with_what_came_and_what_is_allowed(text):
    with pytest.raises(InvalidRequest) as caught:
        parse_resolution(text)
    assert caught.value.field == "resolution"
    message = str(caught.value)
    assert repr(text[:40]) in message
    assert "auto, WIDTHxHEIGHT (1024x768) and W:H (4:3)" in message
    assert len(message) < 200


@pytest.mark.parametrize(
    ("text", "ratio"), [("9:1", "9.0"), ("1:9", "9.0"), ("1600x160", "10.0"), ("16x999999", "62499.9")]
)
def test_beyond_eight_to_one_is_refused(text, ratio):
    with pytest.raises(InvalidRequest, match=rf"a ratio of {re.escape(ratio)}:1; at most 8:1 is allowed"):
        parse_resolution(text)


@pytest.mark.parametrize("text", ["15x16", "16x15", "1x1"])
def test_pixels_have_a_least_side_and_ratios_do_not(text):
    with pytest.raises(InvalidRequest, match=f"got {text} px; each side must be at least 16 px"):
        parse_resolution(text)
    assert parse_resolution(text.replace("x", ":")) is not None


def test_the_field_at_fault_may_have_another_name():
    with pytest.raises(InvalidRequest, match=r"^image_size: ") as caught:
        parse_resolution("9:1", field="image_size")
    assert caught.value.field == "image_size"


@pytest.mark.trap(5)
def test_width_comes_first_in_both_forms():
    assert str(bucket_of("1280x720").size) == str(bucket_of("16:9").size) == "1280x720"
    assert str(bucket_of("720x1280").size) == str(bucket_of("9:16").size) == "720x1280"


@pytest.mark.trap(5)
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("wish", ["512x512", "1024x1024", "2048x2048", "1:1", "1000x1010"])
def test_every_square_wish_gives_the_one_square_bucket(wish, base):
    assert bucket_of(wish, base) == resolution_group(base).square


# --- the size of an aligned output


def aligned(*sources: Size, output: int, base: int = 256) -> Size:
    group = resolution_group(base)
    return aligned_output_size([(s, group.nearest(s).index) for s in sources], group.buckets[output], base)


@pytest.mark.trap(6)
def test_the_output_takes_the_sources_ratio_at_the_models_own_area():
    source = Size(1000, 700)
    group = resolution_group(256)
    bucket = group.nearest(source)
    assert (bucket.index, str(bucket.size)) == (13, "304x208")
    # k = sqrt(256^2 / 700000) = .30598; 1000 k = 305.98, 700 k = 214.18
    assert aligned(source, output=13) == Size(306, 214)


@pytest.mark.trap(6)
def test_the_outputs_area_does_not_follow_the_sources():
    assert aligned(Size(4000, 2800), output=13) == aligned(Size(100, 70), output=13) == Size(306, 214)
    size = aligned(Size(1000, 700), output=13, base=1024)
    assert abs(size.width * size.height / 1024**2 - 1) < 0.001


def test_a_ratio_close_to_the_buckets_keeps_the_bucket():
    bucket = resolution_group(256).buckets[SQUARE].size
    close, far = Size(1000, 1009), Size(1000, 1011)
    assert aligned(close, output=SQUARE) == bucket
    assert aligned(far, output=SQUARE) == Size(255, 257)
    assert aligned(Size(1000, 991), output=SQUARE) == bucket
    assert aligned(Size(1000, 989), output=SQUARE) == Size(257, 255)


def test_another_bucket_keeps_its_size():
    assert aligned(Size(1000, 700), output=SQUARE) == Size(256, 256)
    assert aligned(output=SQUARE) == Size(256, 256)


def test_of_several_sources_the_first_of_the_same_bucket_decides():
    other, first, second = Size(300, 300), Size(1000, 700), Size(1000, 680)
    assert resolution_group(256).nearest(second).index == 13
    assert aligned(other, first, second, output=13) == aligned(first, output=13) == Size(306, 214)
    assert aligned(other, second, first, output=13) == aligned(second, output=13) != Size(306, 214)


def test_a_close_first_source_decides_too():
    close, far = Size(304, 208), Size(1000, 700)
    assert aligned(close, far, output=13) == Size(304, 208)
    assert aligned(far, close, output=13) == Size(306, 214)


def test_aligned_sizes_keep_ratio_and_area_for_many_sources():
    group = resolution_group(1024)
    for width, height in [(640, 427), (427, 640), (3024, 4032), (1234, 777), (777, 1234), (1500, 500), (50, 57)]:
        source = Size(width, height)
        bucket = group.nearest(source)
        size = aligned_output_size([(source, bucket.index)], bucket, 1024)
        if abs(source.ratio - bucket.size.ratio) < 0.01:
            assert size == bucket.size
        else:
            assert math.isclose(size.ratio, source.ratio, rel_tol=0.003)
            assert math.isclose(size.width * size.height, 1024**2, rel_tol=0.003)
