"""Filters of the sampler, compared with transformers' own warpers; draws, compared with the filters; greedy choice."""

from __future__ import annotations

import pytest
import torch
from text_reference import filtered, pick
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from hunyuan.generation.sampling import MAX_TOP_K, Sampling, uniforms


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(0.6, 50, 0.95), (1.3, 5, 0.5), (1.0, 1000, 0.9999)])
def test_filters_equal_transformers(temperature: float, top_k: int, top_p: float) -> None:
    logits = torch.randn(1, 300, generator=torch.Generator().manual_seed(0)) * 3
    warpers = LogitsProcessorList(
        [TemperatureLogitsWarper(temperature), TopKLogitsWarper(top_k), TopPLogitsWarper(top_p)]
    )
    expected = warpers(torch.zeros(1, 1, dtype=torch.long), logits)[0]
    torch.testing.assert_close(filtered(Sampling(True, temperature, top_k, top_p), logits[0]), expected)


def test_switched_off_filters_keep_everything() -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(1))
    assert torch.equal(filtered(Sampling(True, 1.0, 0, 1.0), logits), logits)


def test_top_p_zero_keeps_the_best() -> None:
    logits = torch.tensor([0.0, 3.0, 1.0])
    assert torch.isfinite(filtered(Sampling(True, 1.0, 0, 0.0), logits)).tolist() == [False, True, False]


def test_greedy_needs_no_random_numbers() -> None:
    assert pick(Sampling(False), torch.tensor([0.1, 0.9, 0.3]), torch.empty(0)) == 1


SAMPLINGS = [
    Sampling(True, 0.6, MAX_TOP_K, 0.95),
    Sampling(True, 1.3, 5, 0.5),
    Sampling(True, 1.0, 1, 1.0),
    Sampling(True, 0.7, 0, 0.9),
    Sampling(True, 2.0, MAX_TOP_K + 1, 1.0),
    Sampling(True, 1.0, 0, 1.0),
    Sampling(True, 1.0, 40, 0.0),
]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("spread", [0.5, 4.0])
def test_draws_follow_the_filtered_probabilities(sampling: Sampling, spread: float) -> None:
    """Evenly spaced uniforms must fall on each token in proportion to its probability, to within one of them."""
    generator = torch.Generator().manual_seed(7)
    # bf16 logits: many are equal, as a bf16 head makes them.
    logits = (torch.randn(3000, generator=generator) * spread).bfloat16().float()
    count = 400
    expected = filtered(sampling, logits).softmax(dim=-1).double() * count
    spaced = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    drawn = torch.zeros(3000, dtype=torch.float64)
    for i in range(count):
        drawn[pick(sampling, logits, spaced[i : i + 1])] += 1
    assert (drawn[expected == 0] == 0).all()
    # Where a run of equal logits is cut by top-p, which of them go is open: compare by value.
    values, inverse = logits.unique(return_inverse=True)
    by_value = torch.zeros(2, len(values), dtype=torch.float64)
    by_value[0].index_add_(0, inverse, drawn)
    by_value[1].index_add_(0, inverse, expected)
    assert (by_value[0] - by_value[1]).abs().max() <= 1.01


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_the_ends_of_the_unit_interval_draw_kept_tokens(sampling: Sampling, uniform: float) -> None:
    logits = torch.randn(3000, generator=torch.Generator().manual_seed(1))
    token = pick(sampling, logits, torch.tensor([uniform], dtype=torch.float64))
    assert torch.isfinite(filtered(sampling, logits)[token])
    if uniform:
        assert token == int(logits.argmax())  # candidates are laid out in ascending order


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_forced_token_is_drawn_for_sure(sampling: Sampling) -> None:
    logits = torch.full((3000,), torch.finfo(torch.float32).min)
    logits[77] = 0.0
    assert {pick(sampling, logits, torch.tensor([u], dtype=torch.float64)) for u in (0.0, 0.3, 0.999)} == {77}


def test_a_tiny_vocabulary() -> None:
    assert pick(Sampling(True, 1.0, 50, 0.9), torch.tensor([3.0]), torch.tensor([0.5], dtype=torch.float64)) == 0


def test_one_seed_draws_the_same_tokens() -> None:
    logits = torch.zeros(1000)
    draws = [
        [pick(Sampling(True), logits, u) for u in uniforms(torch.Generator().manual_seed(seed), 20).split(1)]
        for seed in (1, 1, 2)
    ]
    assert draws[0] == draws[1] != draws[2]


def test_the_first_uniforms_do_not_depend_on_how_many_follow() -> None:
    few, many = (uniforms(torch.Generator().manual_seed(3), count) for count in (5, 3000))
    assert len(few) == 5
    assert len(many) == 3000
    assert torch.equal(few, many[:5])
    assert ((many >= 0) & (many < 1)).all()
    assert many.unique().numel() == 3000
