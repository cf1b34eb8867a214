"""Attention in fp8 in its plain form: how far from the exact one, and which calls take it."""

from __future__ import annotations

import pytest
import torch
from small_model import noise

from hunyuan.formats.fp8_attention import Fp8AttentionOperations, attend_block, quantize_heads
from hunyuan.formats.numbers import FP8
from hunyuan.model.attention import Segment, attend, split_segments

KEYS, DIM = 700, 64


def tensors(tokens: int = 40, bias: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q of four heads, keys with a common part of size `bias`, and values, of two heads."""
    q, keys = noise(2, tokens, 4, DIM), noise(2, KEYS, 2, DIM, seed=1) + bias * noise(1, 1, 2, DIM, seed=3)
    return q, keys, noise(2, KEYS, 2, DIM, seed=2)


def error(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return float((ours.double() - exact.double()).norm() / exact.double().norm())


@pytest.mark.parametrize("center", [False, True])
def test_each_head_has_a_scale_that_its_largest_value_takes(center):
    x = noise(2, 30, 3, DIM) * torch.tensor([1e-3, 1.0, 1e3])[:, None] + center * 100 * noise(1, 1, 3, DIM, seed=1)
    values, scale = quantize_heads(x, center)
    left = x - x.mean(1, keepdim=True) if center else x
    assert (values.dtype, values.shape, scale.shape) == (FP8, x.shape, (2, 3))
    assert (values.float().abs().amax((1, 3)) == 448).all()
    torch.testing.assert_close(scale, left.abs().amax((1, 3)) / 448)
    for head in range(3):
        assert error(values[:, :, head].float() * scale[:, None, head, None], left[:, :, head]) < 0.035


def test_heads_of_zeros_stay_zeros():
    values, scale = quantize_heads(torch.zeros(1, 5, 2, 16), center=True)
    assert (values.float() == 0).all()
    assert (scale > 0).all()


@pytest.mark.parametrize("bias", [0.0, 30.0])
def test_a_block_is_near_the_exact_one_whatever_its_keys_have_in_common(bias):
    """Three bits of mantissa in four places; keys shifted by one vector give the same softmax."""
    q, keys, values = tensors(bias=bias)
    out = torch.empty_like(q)
    attend_block(q, keys, values, out)
    exact = attend(q.double(), keys.double(), values.double(), [Segment(KEYS - 40, KEYS, causal=False)])
    assert 1e-3 < error(out, exact) < 8e-2


def test_long_blocks_go_in_pieces_that_change_nothing(monkeypatch):
    q, keys, values = tensors()
    whole, pieces = torch.empty_like(q), torch.empty_like(q)
    attend_block(q, keys, values, whole)
    monkeypatch.setattr("hunyuan.formats.fp8_attention._QUERIES", 7)
    attend_block(q, keys, values, pieces)
    torch.testing.assert_close(pieces, whole)


def test_a_denoising_step_takes_it_for_the_image_alone():
    """Three special tokens, then the image; what lies behind in the buffers is not looked at."""
    q, keys, values = tensors()
    image = Segment(603, 640, causal=False)
    segments = [Segment(600, 603, causal=True), image]
    keys[:, 640:], values[:, 640:] = float("nan"), float("nan")
    out, exact = Fp8AttentionOperations().attend(q, keys, values, segments), attend(q, keys, values, segments)
    expected = torch.empty_like(q[:, 3:])
    attend_block(q[:, 3:], keys[:, :640], values[:, :640], expected)
    assert torch.equal(out[:, :3], exact[:, :3])
    assert torch.equal(out[:, 3:], expected)
    alone = Fp8AttentionOperations().attend(q[:, 3:], keys, values, [image])
    assert torch.equal(alone, expected)


@pytest.mark.parametrize("segments", [split_segments(660, 700, []), split_segments(660, 700, [(670, 690)])])
def test_other_calls_end_with_text_and_stay_as_they_are(segments):
    q, keys, values = tensors()
    assert torch.equal(Fp8AttentionOperations().attend(q, keys, values, segments), attend(q, keys, values, segments))
