"""Forecasting by Spectrum: when a step runs in full, and that the forecast is the formulas' own."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from hunyuan.generation.spectrum import SpectrumCache, SpectrumSettings, chebyshev


def outputs(steps: int) -> list[Tensor]:
    """Smooth random curves, one per element, with some noise: `[2, 3, 4]` per step."""
    generator = torch.Generator().manual_seed(0)
    phase, speed = torch.rand(2, 2, 3, 4, generator=generator) * 3
    return [
        torch.sin(speed * step / steps + phase) + 0.01 * torch.randn(2, 3, 4, generator=generator)
        for step in range(steps)
    ]


def plain_forecast(history: dict[int, Tensor], step: int, steps: int, weight: float, s: SpectrumSettings) -> Tensor:
    """The same from the whole history, step by step of the formulas.

    Args:
        history: outputs of all steps that ran in full, by step.
        weight: of the series against the line.

    Returns:
        fp64, shaped like one output.
    """
    full = sorted(history)
    outputs = torch.stack([history[i].double().flatten() for i in full])  # [full steps, elements]
    design = torch.tensor([chebyshev(2 * i / steps - 1, s.degree) for i in full], dtype=torch.float64)
    normal = design.T @ design + s.penalty * torch.eye(s.degree + 1, dtype=torch.float64)
    coefficients = torch.linalg.solve(normal, design.T @ outputs)  # [polynomials, elements]
    series = torch.tensor(chebyshev(2 * step / steps - 1, s.degree), dtype=torch.float64) @ coefficients
    line = outputs[-1] + (outputs[-1] - outputs[-2]) * (step - full[-1]) / (full[-1] - full[-2])
    return (weight * series + (1 - weight) * line).view_as(history[full[0]])


def full_steps(steps: int, settings: SpectrumSettings | None = None) -> list[int]:
    cache, full = SpectrumCache(steps, settings), []
    for step, value in enumerate(outputs(steps)):
        if cache.needs_full(step):
            full.append(step)
            cache.record(step, value)
        else:
            cache.forecast()
    return full


@pytest.mark.parametrize(
    ("steps", "settings", "expected"),
    [
        (28, SpectrumSettings(), [0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 25]),
        (8, SpectrumSettings(), [0, 1, 2, 3, 4, 6]),
        (3, SpectrumSettings(), [0, 1, 2]),
        (6, SpectrumSettings(first_steps=0, window=1, growth=0), [0, 1, 2, 3, 4, 5]),
        (9, SpectrumSettings(first_steps=2, window=3, growth=0), [0, 1, 4, 7]),
    ],
)
def test_which_steps_run_in_full(steps: int, settings: SpectrumSettings, expected: list[int]) -> None:
    assert full_steps(steps, settings) == expected


def test_full_steps_become_rarer() -> None:
    full = full_steps(50)
    gaps = [after - before for before, after in pairwise(full[4:])]
    assert gaps == sorted(gaps)
    assert len(full) == 14  # of 50


def test_the_forecast_is_that_of_the_formulas_on_the_whole_history() -> None:
    steps, settings = 28, SpectrumSettings()
    cache, history, worst = SpectrumCache(steps, settings), {}, 0.0
    for step, value in enumerate(outputs(steps)):
        if cache.needs_full(step):
            history[step] = value
            cache.record(step, value)
            continue
        weight = cache._weight(step)
        expected = plain_forecast(history, step, steps, weight, settings)
        got = cache.forecast()
        assert got.dtype == value.dtype
        worst = max(worst, float((got - expected).abs().max()))
    assert 0 < worst < 1e-5


def test_the_series_counts_more_the_further_ahead() -> None:
    cache = SpectrumCache(50)
    weights: dict[int, list[float]] = {}
    for step, value in enumerate(outputs(50)):
        if cache.needs_full(step):
            cache.record(step, value)
        else:
            weights.setdefault(cache._full[-1], []).append(cache._weight(step))
            cache.forecast()
    whole = [window for window in weights.values() if len(window) > 1][:-1]
    assert whole
    for window in whole:
        assert (window[0], window[-1]) == pytest.approx((0.5, 0.8))
        assert window == sorted(window)


def test_smooth_curves_are_followed_better_than_by_repeating_the_last_step() -> None:
    cache, missed, repeated, last = SpectrumCache(28), [], [], torch.empty(0)
    ramp = torch.linspace(0.5, 2, 24).view(2, 3, 4)
    for step in range(28):
        value = torch.cos(ramp * step / 28)
        if cache.needs_full(step):
            cache.record(step, last := value)
        else:
            missed.append(float((cache.forecast() - value).abs().mean()))
            repeated.append(float((last - value).abs().mean()))
    assert sum(missed) < sum(repeated) / 1.5


def test_memory_does_not_grow_with_the_steps() -> None:
    cache = SpectrumCache(28)
    for step, value in enumerate(outputs(28)):
        if cache.needs_full(step):
            cache.record(step, value)
        else:
            cache.forecast()
    assert len(cache._moments) == 5
    assert len(cache._last) == 2


def test_half_precision_outputs_stay_in_their_type() -> None:
    cache = SpectrumCache(28)
    for step in range(5):
        cache.record(step, torch.full((1, 2, 2), 1.0 + step / 100, dtype=torch.bfloat16))
    assert cache.forecast().dtype == torch.bfloat16


def test_chebyshev_polynomials() -> None:
    assert chebyshev(0.5, 4) == pytest.approx([1, 0.5, -0.5, -1, -0.5])
    assert chebyshev(-1.0, 1) == [1.0, -1.0]
