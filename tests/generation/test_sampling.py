"""Filters of the sampler, compared with transformers' own warpers, and greedy choice."""

from __future__ import annotations

import pytest
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from hunyuan.generation.sampling import Sampling


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(0.6, 50, 0.95), (1.3, 5, 0.5), (1.0, 1000, 0.9999)])
def test_filters_equal_transformers(temperature: float, top_k: int, top_p: float) -> None:
    logits = torch.randn(1, 300, generator=torch.Generator().manual_seed(0)) * 3
    warpers = LogitsProcessorList(
        [TemperatureLogitsWarper(temperature), TopKLogitsWarper(top_k), TopPLogitsWarper(top_p)]
    )
    expected = warpers(torch.zeros(1, 1, dtype=torch.long), logits)[0]
    torch.testing.assert_close(Sampling(True, temperature, top_k, top_p).filter(logits[0]), expected)


def test_switched_off_filters_keep_everything() -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(1))
    assert torch.equal(Sampling(True, 1.0, 0, 1.0).filter(logits), logits)


def test_top_p_zero_keeps_the_best() -> None:
    logits = torch.tensor([0.0, 3.0, 1.0])
    assert torch.isfinite(Sampling(True, 1.0, 0, 0.0).filter(logits)).tolist() == [False, True, False]


def test_greedy_needs_no_random_numbers() -> None:
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    assert Sampling(False).pick(torch.tensor([0.1, 0.9, 0.3]), generator) == 1
    assert torch.equal(generator.get_state(), before)


def test_one_seed_draws_the_same_tokens() -> None:
    logits = torch.zeros(1000)
    draws = [
        [Sampling(True).pick(logits, g) for _ in range(20)]
        for g in (torch.Generator().manual_seed(s) for s in (1, 1, 2))
    ]
    assert draws[0] == draws[1] != draws[2]
