"""MXFP4 values chosen for the output: in the format, better than plain rounding, no worse where nothing is to gain."""

from __future__ import annotations

import pytest
import torch
from small_model import noise
from torch import Tensor

from hunyuan.formats.compensate import compensate_mxfp4, damp, output_error
from hunyuan.formats.numbers import MXFP4_OCTAVES, dequantize_mxfp4, quantize_mxfp4


def correlated(tokens: int, columns: int, seed: int) -> Tensor:
    """Inputs that live mostly in a quarter of their dimensions, two columns far larger than the rest."""
    mixing = noise(columns // 4, columns, seed=1)
    x = noise(tokens, columns // 4, seed=seed) @ mixing + 0.3 * noise(tokens, columns, seed=seed + 1)
    x[:, ::50] *= 10
    return x


def relative(found: Tensor, weight: Tensor, x: Tensor) -> float:
    return float((x @ (found - weight).T).norm() / (x @ weight.T).norm())


@pytest.fixture(scope="module")
def case() -> tuple[Tensor, Tensor, Tensor]:
    """A weight, inputs to choose by and inputs to measure by."""
    return noise(48, 96), correlated(2000, 96, seed=2), correlated(2000, 96, seed=4)


def test_the_output_is_nearer_than_with_plain_rounding_on_inputs_it_has_not_seen(case):
    weight, seen, unseen = case
    found = dequantize_mxfp4(*compensate_mxfp4(weight[None], (seen.T @ seen)[None]))[0]
    plain = dequantize_mxfp4(*quantize_mxfp4(weight))
    assert relative(found, weight, unseen) < 0.6 * relative(plain, weight, unseen)


def test_sweeps_only_help(case):
    weight, seen, _ = case
    moments = damp((seen.T @ seen)[None], 0.1)
    errors = []
    for sweeps in (0, 1, 3):
        found = dequantize_mxfp4(*compensate_mxfp4(weight[None], moments, 1e-9, sweeps))
        errors.append(float(output_error(found - weight, moments)))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 1.05 * errors[2]


def test_independent_inputs_leave_what_rounding_makes():
    weight = noise(40, 64)
    found = dequantize_mxfp4(*compensate_mxfp4(weight[None], torch.eye(64)[None]))[0]
    plain = dequantize_mxfp4(*quantize_mxfp4(weight))
    assert float((found - weight).norm()) == pytest.approx(float((plain - weight).norm()), rel=0.005)


def test_matrices_of_a_stack_do_not_touch_each_other(case):
    weight, seen, unseen = case
    weights = torch.stack([weight, noise(48, 96, seed=9) * 100])
    moments = torch.stack([seen.T @ seen, unseen.T @ unseen])
    together = compensate_mxfp4(weights, moments)
    for n in range(2):
        alone = compensate_mxfp4(weights[n : n + 1], moments[n : n + 1])
        assert all(torch.equal(a[n], b[0]) for a, b in zip(together, alone, strict=True))


def test_what_is_stored_keeps_to_the_format(case):
    _, seen, _ = case
    weight = noise(48, 96) * torch.logspace(-9, 3, 96)  # far more octaves than are allowed
    packed, scale = compensate_mxfp4(weight[None], (seen.T @ seen)[None])
    assert packed.dtype == scale.dtype == torch.uint8
    assert (packed.shape, scale.shape) == ((1, 48, 48), (1, 48, 3))
    assert int(scale.max()) - int(scale.min()) <= MXFP4_OCTAVES
    assert not bool(((packed & 15) == 8).any() | ((packed >> 4) == 8).any())


def test_inputs_that_were_never_seen_and_zeros():
    packed, scale = compensate_mxfp4(torch.zeros(1, 4, 32), torch.zeros(1, 32, 32))
    assert not packed.any()
    weight = noise(1, 4, 32)
    found = dequantize_mxfp4(*compensate_mxfp4(weight, torch.zeros(1, 32, 32)))
    assert float((found - weight).norm() / weight.norm()) < 0.16
    assert scale.shape == (1, 4, 1)


def test_a_rank_of_one_has_a_root():
    x = noise(1, 64) * 1e6
    weight = noise(1, 8, 64)
    found = dequantize_mxfp4(*compensate_mxfp4(weight, (x.T @ x)[None]))[0]
    assert relative(found, weight[0], x) < 0.02


@pytest.mark.parametrize(
    ("weight", "moments", "message"),
    [
        (torch.ones(1, 2, 33), torch.eye(33)[None], "multiple of 32"),
        (torch.ones(1, 2, 32), torch.eye(64)[None], "of shape"),
        (torch.ones(1, 2, 32), torch.full((1, 32, 32), torch.nan), "finite"),
        (torch.full((1, 2, 32), torch.inf), torch.eye(32)[None], "not a finite number"),
    ],
)
def test_what_cannot_be_quantized_is_said(weight, moments, message):
    with pytest.raises(ValueError, match=message):
        compensate_mxfp4(weight, moments)
