"""MXFP4 and fp8: the best code for every value, checked against brute force; the kernel's limits; errors."""

from __future__ import annotations

import pytest
import torch
from small_model import noise
from torch import Tensor

from hunyuan.formats import numbers
from hunyuan.formats.numbers import (
    E2M1_VALUES,
    MXFP4_OCTAVES,
    dequantize_fp8,
    dequantize_mxfp4,
    fp8_squared_error,
    quantize_fp8,
    quantize_fp8_rows,
    quantize_mxfp4,
    quantize_mxfp4_measured,
)


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted.float()).norm() / wanted.float().norm())


def best_error(block: Tensor, exponents: range) -> float:
    """The least squared error of 32 values over all given scales, each value at its nearest grid point."""
    grid = torch.tensor([*E2M1_VALUES, *(-v for v in E2M1_VALUES)], dtype=torch.float64)
    errors = []
    for exponent in exponents:
        points = grid * 2.0**exponent
        errors.append(float((block.double()[:, None] - points).abs().amin(1).square().sum()))
    return min(errors)


def heavy_tailed(*shape: int, seed: int = 0) -> Tensor:
    return noise(*shape, seed=seed) / noise(*shape, seed=seed + 1).abs().clamp(min=0.05)


@pytest.mark.parametrize("make", [noise, heavy_tailed])
def test_no_scale_and_no_code_would_be_better(make):
    weight = make(8, 128, seed=3) * 0.02
    values, scale, error = quantize_mxfp4_measured(weight)
    found = dequantize_mxfp4(values, scale)
    for block, chosen in zip(weight.view(-1, 32), found.view(-1, 32), strict=True):
        assert float((block - chosen).double().square().sum()) == pytest.approx(best_error(block, range(-20, 20)))
    assert float(error) == pytest.approx(float((weight - found).double().square().sum()))


def test_error_on_gaussian_weights():
    weight = noise(256, 4096).bfloat16()
    assert relative(dequantize_mxfp4(*quantize_mxfp4(weight)), weight) < 0.112
    assert relative(dequantize_fp8(*quantize_fp8(weight)), weight) < 0.027


def test_codes_are_read_back_as_they_are():
    """A matrix of grid values quantizes to itself: all codes, both halves of a byte, many scales."""
    values = torch.tensor([*E2M1_VALUES, *(-v for v in E2M1_VALUES)])[noise(6, 96).mul(1e4).long() % 16]
    values[:, ::32] = 6.0
    weight = (values.view(6, 3, 32) * 2.0 ** torch.arange(-5, 1).view(6, 1, 1)).view(6, 96)
    packed, scale = quantize_mxfp4(weight)
    assert torch.equal(dequantize_mxfp4(packed, scale), weight)
    assert packed.shape == (6, 48)
    assert scale.tolist() == [[122 + row] * 3 for row in range(6)]


def test_layout_of_a_block():
    weight = torch.zeros(1, 32)
    weight[0, :4] = torch.tensor([0.5, -6.0, 1.5, -1.0])
    packed, scale = quantize_mxfp4(weight)
    assert packed[0].tolist() == [0x1 | 0xF << 4, 0x3 | 0xA << 4] + [0] * 14
    assert scale.tolist() == [[127]]


@pytest.mark.parametrize("make", [noise, heavy_tailed])
def test_there_is_no_minus_zero(make):
    packed, _ = quantize_mxfp4(make(64, 256))
    assert not bool(((packed & 0xF) == 8).any())
    assert not bool(((packed >> 4) == 8).any())


def test_scales_of_a_matrix_stay_within_what_the_kernel_takes():
    """Each matrix has its own largest scale; what lies far below is rounded on a coarser grid or to zero."""
    weight = noise(2, 64, 64) * 2.0 ** torch.arange(0, -64, -1).view(1, 64, 1)
    weight[1] *= 2.0**-30
    packed, scale = quantize_mxfp4(weight)
    spans = scale.int().amax((1, 2)) - scale.int().amin((1, 2))
    assert bool((spans <= MXFP4_OCTAVES).all())
    assert bool((spans >= MXFP4_OCTAVES - 1).all())
    assert int(scale[0].max()) - int(scale[1].max()) == pytest.approx(30, abs=1)
    found = dequantize_mxfp4(packed, scale)
    assert relative(found[0], weight[0]) < 0.13
    assert relative(found[1], weight[1]) < 0.13
    assert not bool(found[0, 20:].any())
    alone = dequantize_mxfp4(*quantize_mxfp4(weight[1]))
    assert torch.equal(found[1], alone)


def test_pieces_do_not_matter(monkeypatch):
    weight = noise(3, 40, 96).bfloat16()
    whole = quantize_mxfp4(weight), quantize_fp8(weight), quantize_fp8_rows(weight[0])
    monkeypatch.setattr(numbers, "_CPU_CHUNK", 7 * 96)
    again = quantize_mxfp4(weight), quantize_fp8(weight), quantize_fp8_rows(weight[0])
    for (values, scale), (others, other_scale) in zip(whole, again, strict=True):
        assert torch.equal(values.view(torch.uint8), others.view(torch.uint8))
        assert torch.equal(scale, other_scale)


def test_zeros_and_the_smallest_values():
    for weight in (torch.zeros(2, 64), torch.full((2, 64), 1e-40)):
        assert not bool(dequantize_mxfp4(*quantize_mxfp4(weight)).any())
        assert not bool(dequantize_fp8(*quantize_fp8(weight)).any())
    weight = torch.zeros(4, 64)
    weight[2, 40] = -3.0
    assert torch.equal(dequantize_mxfp4(*quantize_mxfp4(weight)), weight)
    assert torch.equal(dequantize_fp8(*quantize_fp8(weight)), weight)


@pytest.mark.parametrize("bad", [float("inf"), float("nan"), 1e35])
def test_what_has_no_code_is_refused(bad):
    weight = noise(4, 64)
    weight[3, 3] = bad
    with pytest.raises(ValueError, match="not a finite number"):
        quantize_mxfp4(weight)
    if bad != 1e35:
        for quantize in (quantize_fp8, quantize_fp8_rows):
            with pytest.raises(ValueError, match="not a finite number"):
                quantize(weight)


def test_columns_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="a multiple of 32 columns, got 48"):
        quantize_mxfp4(noise(4, 48))


def test_fp8_uses_its_whole_range_and_knows_its_error():
    weight = noise(3, 16, 48) * torch.tensor([1.0, 1e-3, 50.0]).view(3, 1, 1)
    values, scale = quantize_fp8(weight)
    assert scale.shape == (3,)
    assert values.float().abs().amax((1, 2)).tolist() == [448.0] * 3
    found = dequantize_fp8(values, scale[:, None, None])
    error = float(fp8_squared_error(weight, values, scale[:, None, None]))
    assert error == pytest.approx(float((found - weight).double().square().sum()))
    rows, row_scale = quantize_fp8_rows(weight[1])
    assert rows.float().abs().amax(1).tolist() == [448.0] * 16
    assert relative(dequantize_fp8(rows, row_scale[:, None]), weight[1]) < 0.03
