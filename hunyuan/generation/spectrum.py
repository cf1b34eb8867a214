"""Step caching by Spectrum: the backbone's output over time as a short Chebyshev series (docs/model.md, section 19).

Each element of the output is a function of the step. Its values at the steps that ran in full are fitted by the
polynomials T_0 to T_4 under a small penalty, and the fit is mixed with the straight line through the last two of them:
the line knows best what comes next, the series what comes later (arXiv 2603.01623). Full steps become rarer with time.

A forecast is a fixed combination of the full steps' outputs, whose factors the host works out; on the device it is a
sum of seven tensors. Kept are the sums that the fit needs, not the outputs: memory does not grow with the steps. Knows
numbers, not the network. One request owns one cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class SpectrumSettings:
    """When to run in full and how the forecast is made.

    Attributes:
        degree: of the highest Chebyshev polynomial.
        penalty: of the ridge regression, added to the normal equations' diagonal.
        first_steps: so many steps at the start always run in full.
        window: after them, every `window`-th step runs in full, rounded down,
        growth: and the window grows by this at each.
        near, far: the series' weight in the first forecast of a window and in its last; the rest is the line's.
    """

    degree: int = 4
    penalty: float = 0.1
    first_steps: int = 5
    window: float = 2.0
    growth: float = 0.75
    near: float = 0.5
    far: float = 0.8


class SpectrumCache:
    """The history of one request's image stage, of `steps` steps."""

    def __init__(self, steps: int, settings: SpectrumSettings | None = None) -> None:
        self.steps, self.settings = steps, settings or SpectrumSettings()
        self._window = self.settings.window
        self._step = -1  # the last one that ran or was forecast
        self._full: list[int] = []
        self._moments: list[Tensor] = []  # per polynomial, its values times the outputs, summed: fp32, like one output
        self._last: list[Tensor] = []  # the last one or two outputs

    def needs_full(self, step: int) -> bool:
        if step < max(2, self.settings.first_steps):
            return True
        return step - self._full[-1] >= max(1, floor(self._window))

    def record(self, step: int, hidden: Tensor) -> None:
        """Takes the output of a step that ran in full: `[rows, tokens, hidden]`."""
        if step >= max(2, self.settings.first_steps):
            self._window += self.settings.growth
        self._step = step
        self._full.append(step)
        self._last = [*self._last[-1:], hidden]
        values = chebyshev(self._time(step), self.settings.degree)
        if not self._moments:
            self._moments = [hidden.float() * value for value in values]
            return
        for moment, value in zip(self._moments, values, strict=True):
            moment.add_(hidden, alpha=value)

    def forecast(self) -> Tensor:
        """The output at the next step, `[rows, tokens, hidden]`, without running it."""
        self._step += 1
        weight = self._weight(self._step)
        slope = (self._step - self._full[-1]) / (self._full[-1] - self._full[-2])
        before, last = self._last
        total = (last.float() * (1 + slope) - before.float() * slope) * (1 - weight)
        for moment, factor in zip(self._moments, self._factors(self._step), strict=True):
            total.add_(moment, alpha=weight * factor)
        return total.to(last.dtype)

    def _time(self, step: int) -> float:
        """Steps 0 to `steps` as -1 to 1, where the polynomials are defined."""
        return 2 * step / self.steps - 1

    def _weight(self, step: int) -> float:
        """Of the series: the further ahead within the window, the larger."""
        ahead, most = step - self._full[-1], max(1, floor(self._window) - 1)
        near, far = self.settings.near, self.settings.far
        return near if most == 1 else near + (far - near) * (ahead - 1) / (most - 1)

    def _factors(self, step: int) -> list[float]:
        """What the moments are multiplied by for the fit's value at `step`, in fp64 on the host."""
        degree = self.settings.degree
        design = np.array([chebyshev(self._time(s), degree) for s in self._full])  # [full steps, polynomials]
        normal = design.T @ design + self.settings.penalty * np.eye(degree + 1)
        wanted: NDArray[np.float64] = np.array(chebyshev(self._time(step), degree))
        return [float(factor) for factor in np.linalg.solve(normal, wanted)]


def chebyshev(time: float, degree: int) -> list[float]:
    """T_0 to T_degree at `time` in -1..1, by T_n = 2 t T_(n-1) - T_(n-2)."""
    values = [1.0, time]
    while len(values) <= degree:
        values.append(2 * time * values[-1] - values[-2])
    return values[: degree + 1]
