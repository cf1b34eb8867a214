"""The demo's edits: each does what its name says, and no two of them look alike."""

from itertools import combinations

import pytest
import torch
from torch import Tensor

from scripts.demo import edits, tasks, testset
from scripts.demo.edits import COLOURS, Step, apply, apply_all


@pytest.fixture(scope="module")
def photo() -> Tensor:
    """A colourful photograph as [1, 3, 256, 256]."""
    return edits.fill(as_tensor(testset.photos()["coffee"]), 256, 256)


def as_tensor(image) -> Tensor:
    return (
        torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        .reshape(1, image.height, image.width, 3)
        .permute(0, 3, 1, 2)
        / 255
    )


def psnr(a: Tensor, b: Tensor) -> float:
    return float(-10 * torch.log10((a - b).square().mean().clamp(min=1e-10)))


def spread(x: Tensor) -> float:
    """How far the colours are from grey."""
    return float((x - edits.luma(x)).abs().mean())


def test_colour_edits(photo):
    grey = apply(Step("bw"), photo)
    assert torch.equal(grey[:, 0], grey[:, 1])
    torch.testing.assert_close(edits.luma(grey), edits.luma(photo))
    assert spread(apply(Step("vivid"), photo)) > 1.3 * spread(photo)
    assert spread(apply(Step("pale"), photo)) < 0.5 * spread(photo)
    torch.testing.assert_close(apply(Step("invert"), photo) + photo, torch.ones_like(photo))
    red, _, blue = apply(Step("sepia"), photo).mean((0, 2, 3))
    assert red > blue + 0.05


@pytest.mark.parametrize(("name", "channel"), [("warmer", 0), ("cooler", 2)])
def test_light_has_the_colour_of_its_name(photo, name, channel):
    change = (apply(Step(name), photo) - photo).mean((0, 2, 3))
    assert change.argmax() == channel
    assert change[channel] > 0
    assert change[2 - channel] < 0


def test_tone_edits(photo):
    assert apply(Step("brighter"), photo).mean() > photo.mean() + 0.05
    assert apply(Step("darker"), photo).mean() < photo.mean() - 0.05
    assert apply(Step("contrast"), photo).std() > 1.2 * photo.std()
    assert apply(Step("flat"), photo).std() < 0.6 * photo.std()


def test_detail_edits(photo):
    def detail(x):
        return float((x[..., 1:] - x[..., :-1]).abs().mean())

    assert detail(apply(Step("blur"), photo)) < 0.7 * detail(photo)
    assert detail(apply(Step("sharpen"), photo)) > 1.3 * detail(photo)
    squares = apply(Step("pixelate"), photo)
    block = squares[:, :, 16:32, 32:48]
    assert torch.equal(block, block[:, :, :1, :1].expand_as(block))
    torch.testing.assert_close(block[..., 0, 0], photo[:, :, 16:32, 32:48].mean((2, 3)))


def test_geometry():
    x = torch.arange(6.0).reshape(1, 1, 2, 3).expand(1, 3, 2, 3) / 6
    assert apply(Step("mirror"), x)[0, 0, 0].tolist() == x[0, 0, 0].flip(0).tolist()
    assert torch.equal(apply(Step("upside"), x)[0, 0, 0], x[0, 0, 1])
    left = apply(Step("left"), x)
    assert left.shape == (1, 3, 3, 2)
    assert torch.equal(left[0, 0, 0], x[0, 0, :, 2])
    assert torch.equal(apply(Step("right"), left), x)
    assert edits.turned([Step("left"), Step("bw")])
    assert not edits.turned([Step("mirror")])


@pytest.mark.parametrize("colour", COLOURS)
def test_coloured_edits(photo, colour):
    wanted = torch.tensor(COLOURS[colour])
    framed = apply(Step("frame", colour), photo)
    torch.testing.assert_close(framed[0, :, 3, 200], wanted)
    assert torch.equal(framed[:, :, 16:-16, 16:-16], photo[:, :, 16:-16, 16:-16])
    tinted = apply(Step("tint", colour), torch.full((1, 3, 4, 4), 0.5))
    torch.testing.assert_close(tinted[0, :, 0, 0], wanted)
    alpha = torch.zeros(1, 1, 4, 4)
    alpha[..., 0] = 1
    behind = edits.over(torch.full((1, 3, 4, 4), 0.2) * alpha, alpha, edits.colour_of(colour, alpha))
    torch.testing.assert_close(behind[0, :, 0, 3], wanted)
    torch.testing.assert_close(behind[0, :, 0, 0], torch.full((3,), 0.2))


def test_the_order_of_the_words_does_not_count(photo):
    steps = [Step("frame", "red"), Step("mirror"), Step("bw")]
    framed = apply_all(steps, photo)
    assert torch.equal(framed, apply_all(steps[::-1], photo))
    torch.testing.assert_close(framed[0, :, 0, 0], torch.tensor(COLOURS["red"]))


def test_edits_of_colour_and_light_leave_the_new_background_as_it_was_asked_for(photo):
    alpha = torch.zeros_like(photo[:, :1])
    alpha[..., 50:80, 50:80] = 1
    figure, before = (photo * alpha, alpha), edits.over(photo * alpha, alpha, edits.colour_of("green", photo))
    for name in ("bw", "brighter", "contrast"):
        got = apply_all([Step("background", "red"), Step(name)], before, figure)
        torch.testing.assert_close(got[0, :, 0, 0], torch.tensor(COLOURS["red"]))
        inside = ..., slice(50, 80), slice(50, 80)
        torch.testing.assert_close(got[inside], apply(Step(name), photo)[inside])
    blurred = apply_all([Step("blur"), Step("background", "red")], before, figure)
    plain = apply_all([Step("background", "red")], before, figure)
    torch.testing.assert_close(blurred, apply(Step("blur"), plain))
    with pytest.raises(ValueError, match="background"):
        apply_all([Step("background", "red"), Step("bw")], before)


def test_a_background_without_its_object_is_an_error(photo):
    with pytest.raises(KeyError):
        apply(Step("background", "red"), photo)


def test_no_edit_looks_like_another_or_like_none(photo):
    """Or the judge's question, to which exact edit an answer is nearest, would have no answer."""
    x = photo[..., :128, :192]
    answers = {None: x} | {s: apply(s, x) for s in tasks.single_steps() if s.name != "background"}
    alike = [
        (a, b, psnr(x, y))
        for (a, x), (b, y) in combinations(answers.items(), 2)
        if x.shape == y.shape and psnr(x, y) > 29
    ]
    assert not alike


def test_side_by_side(photo):
    other = 1 - photo
    both = edits.beside(photo, other, *tasks.beside_size(256, 256))
    assert both.shape == (1, 3, 160, 352)
    assert psnr(both[..., :176], edits.fill(photo, 160, 176)) > 60
    assert psnr(both[..., 176:], edits.fill(other, 160, 176)) > 60


@pytest.mark.parametrize("shape", tasks.SHAPES)
def test_shapes_are_in_the_middle_and_differ(shape):
    mask = edits.shape_mask(shape, 64, 96)
    assert mask.shape == (1, 1, 64, 96)
    assert 0.05 < mask.mean() < 0.5
    torch.testing.assert_close(mask, mask.flip(3), atol=0.02, rtol=0)
    assert not mask[..., 0].any()
    for other in tasks.SHAPES:
        if other != shape:
            assert psnr(mask, edits.shape_mask(other, 64, 96)) < 22
