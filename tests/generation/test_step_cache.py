"""Forecasting steps: when a step runs in full, and what a forecast is."""

from __future__ import annotations

import pytest
import torch

from hunyuan.generation.step_cache import TaylorCache, TaylorSettings, derivatives, split_bands


def full_steps(steps: int, settings: TaylorSettings) -> list[int]:
    cache, full = TaylorCache(steps, settings), []
    for step in range(steps):
        if cache.needs_full(step):
            full.append(step)
            cache.record(step, torch.full((1, 8, 2), float(step)))
        else:
            cache.forecast()
    return full


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (TaylorSettings(interval=3, first_steps=3, last_steps=1), [0, 1, 2, 5, 8, 11]),
        (TaylorSettings(interval=5, first_steps=3, last_steps=1), [0, 1, 2, 7, 11]),
        (TaylorSettings(interval=4, first_steps=0, last_steps=0), [0, 4, 8]),
        (TaylorSettings(interval=1, first_steps=0, last_steps=0), list(range(12))),
        (TaylorSettings(interval=100, first_steps=2, last_steps=3), [0, 1, 9, 10, 11]),
    ],
)
def test_which_steps_run_in_full(settings: TaylorSettings, expected: list[int]) -> None:
    assert full_steps(12, settings) == expected


def test_bands_add_up_and_separate_slow_from_fast() -> None:
    hidden = torch.randn(2, 257, 6, generator=torch.Generator().manual_seed(0))
    low, high = split_bands(hidden)
    torch.testing.assert_close(low + high, hidden)
    ramp = torch.arange(64)[None, :, None]
    slow, fast = torch.cos(ramp / 64 * 2 * torch.pi * 2), torch.cos(ramp / 64 * 2 * torch.pi * 20)
    low, high = split_bands(slow + fast)
    torch.testing.assert_close(low, slow, atol=1e-5, rtol=0)
    torch.testing.assert_close(high, fast, atol=1e-5, rtol=0)


def test_a_straight_line_is_continued_exactly() -> None:
    settings = TaylorSettings(interval=4, first_steps=2, last_steps=0, low_order=1, high_order=1)
    base, slope = torch.randn(2, 1, 16, 3, generator=torch.Generator().manual_seed(1))
    cache = TaylorCache(20, settings)
    for step in range(20):
        value = base + slope * step
        if cache.needs_full(step):
            cache.record(step, value)
        elif step > 6:  # two full steps have been recorded by then
            torch.testing.assert_close(cache.forecast(), value, atol=1e-4, rtol=1e-4)
        else:
            cache.forecast()


def test_higher_orders_fill_one_a_full_step() -> None:
    zero = torch.zeros(1)
    assert len(derivatives(zero, [], 1, 2)) == 1
    assert len(derivatives(zero, [zero], 1, 2)) == 2
    assert len(derivatives(zero, [zero] * 3, 1, 2)) == 3
    assert derivatives(torch.tensor([7.0]), [torch.tensor([1.0])], 3, 2)[1].item() == 2.0
