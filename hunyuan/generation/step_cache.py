"""Step caching: forecasting the backbone's output at some denoising steps (docs/model.md, section 19).

The backbone's output changes slowly from step to step. Its low and its high frequencies along the token axis
are each continued by a Taylor series whose derivatives are finite differences between the steps that ran in
full. Knows numbers, not the network. One request owns one cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import factorial
from typing import Protocol

import torch
from torch import Tensor

LOW_BAND = 0.1  # of the highest frequency


@dataclass(frozen=True)
class TaylorSettings:
    """When to run in full and how far the series go; the defaults are the authors' script's.

    Attributes:
        interval: at least every so many steps one runs in full.
        first_steps, last_steps: so many steps at the start and the end always run in full.
        low_order, high_order: highest derivative used for each band.
    """

    interval: int = 5
    first_steps: int = 3
    last_steps: int = 1
    low_order: int = 2
    high_order: int = 2


class StepCache(Protocol):
    """What the image stage asks a forecaster at each step, in order."""

    def needs_full(self, step: int) -> bool: ...

    def record(self, step: int, hidden: Tensor) -> None: ...

    def forecast(self) -> Tensor: ...


class TaylorCache:
    """The history of one request's image stage, of `steps` steps."""

    def __init__(self, steps: int, settings: TaylorSettings | None = None) -> None:
        self.steps, self.settings = steps, settings or TaylorSettings()
        self._derivatives: tuple[list[Tensor], list[Tensor]] = ([], [])  # (low, high), by order
        self._last_full = 0
        self._counter = 0

    def needs_full(self, step: int) -> bool:
        s = self.settings
        edge = step < max(1, s.first_steps) or step >= self.steps - s.last_steps
        return edge or self._counter == s.interval - 1 or not self._derivatives[0]

    def record(self, step: int, hidden: Tensor) -> None:
        """Takes the output of a step that ran in full: `[rows, tokens, hidden]`.

        Of the first steps only the last one is kept: differences between the earlier ones are too large to
        continue from.
        """
        distance, self._last_full, self._counter = step - self._last_full, step, 0
        if step < self.settings.first_steps - 1:
            return
        orders = (self.settings.low_order, self.settings.high_order)
        self._derivatives = tuple(  # type: ignore[assignment]
            derivatives(band, old, distance, order)
            for band, old, order in zip(split_bands(hidden), self._derivatives, orders, strict=True)
        )

    def forecast(self) -> Tensor:
        """The output at the next step, `[rows, tokens, hidden]`, without running it."""
        self._counter += 1
        low = self._derivatives[0][0]
        total = torch.zeros_like(low, dtype=torch.float32)
        for band in self._derivatives:
            for order, derivative in enumerate(band):
                total.add_(derivative, alpha=self._counter**order / factorial(order))
        return total.to(low.dtype)


def split_bands(hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Low and high frequencies along the token axis of `[rows, tokens, hidden]`; they add up to it.

    Real input has a symmetric spectrum: half of it is enough, which at full size saves most of a gigabyte.
    """
    tokens, full = hidden.shape[1], hidden.float()
    spectrum = torch.fft.rfft(full, dim=1)  # complex64 [rows, tokens // 2 + 1, hidden]
    frequency = torch.fft.rfftfreq(tokens, device=hidden.device)
    spectrum *= (frequency <= LOW_BAND * frequency.max())[:, None]
    low = torch.fft.irfft(spectrum, n=tokens, dim=1)
    return low.to(hidden.dtype), (full - low).to(hidden.dtype)


def derivatives(value: Tensor, old: list[Tensor], distance: int, order: int) -> list[Tensor]:
    """Derivatives 0 to `order` from a new value and the last derivatives, `distance` steps ago.

    Orders that the history cannot give yet are absent.
    """
    new = [value]
    for i in range(min(order, len(old))):
        new.append((new[i] - old[i]) / distance)
    return new
