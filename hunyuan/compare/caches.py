"""Step caches of any strength, by name and options: what a request cannot ask for, and a comparison can.

Knows the caches' settings; no editor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor

from hunyuan.generation.spectrum import SpectrumCache, SpectrumSettings
from hunyuan.generation.step_cache import StepCache, TaylorCache, TaylorSettings

CACHES: dict[str, tuple[Callable[..., StepCache], type[Any]]] = {
    "taylor": (TaylorCache, TaylorSettings),
    "spectrum": (SpectrumCache, SpectrumSettings),
}


class CountingCache:
    """Another cache that counts the steps which ran in full."""

    def __init__(self, cache: StepCache) -> None:
        self.cache, self.full_steps = cache, 0

    def needs_full(self, step: int) -> bool:
        return self.cache.needs_full(step)

    def record(self, step: int, hidden: Tensor) -> None:
        self.full_steps += 1
        self.cache.record(step, hidden)

    def forecast(self) -> Tensor:
        return self.cache.forecast()


def make_cache(name: str, options: Mapping[str, str]) -> Callable[[int], StepCache]:
    """What makes a cache for a number of steps. Raises `ValueError`: an option that it has not, or no number."""
    make, settings = CACHES[name]
    known = {field.name: int if isinstance(field.default, int) else float for field in fields(settings)}
    unknown = [key for key in options if key not in known]
    if unknown:
        raise ValueError(f"{name} has no option {', '.join(unknown)}; it has {', '.join(known)}")
    chosen = settings(**{key: known[key](value) for key, value in options.items()})
    return lambda steps: make(steps, chosen)
