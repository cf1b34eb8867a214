"""Makes two runs choose the same experts, so that what else differs between them can be measured.

A router is a step function: a difference in the last bit can send a token to another expert. Tests and benchmarks
record the choices of one set of operations and replay them in another. Not used by the engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from hunyuan.model.operations import Operations

Choice = tuple[Tensor, Tensor]


@contextmanager
def recorded_routes(kernels: Operations) -> Iterator[list[Choice]]:
    """Within, every `(weights, index)` that `kernels.route` returns is appended to the list, in order."""
    routes: list[Choice] = []
    original = kernels.route

    def route(x: Tensor, router: Tensor, topk: int) -> Choice:
        routes.append(original(x, router, topk))
        return routes[-1]

    with _replaced(kernels, route):
        yield routes


@contextmanager
def replayed_routes(kernels: Operations, routes: list[Choice]) -> Iterator[None]:
    """Within, `kernels.route` returns `routes` in order; all of them must be asked for.

    Raises:
        ValueError: the runs differ in how often they route, or in how many tokens.
    """
    left = list(routes)

    def route(x: Tensor, _router: Tensor, topk: int) -> Choice:
        if not left or left[0][0].shape != (len(x), topk):
            raise ValueError(f"no recorded choice of {topk} experts for {len(x)} tokens is next")
        weights, index = left.pop(0)
        return weights.to(x.device), index.to(x.device)

    with _replaced(kernels, route):
        yield
    if left:
        raise ValueError(f"{len(left)} recorded choices were not asked for")


@contextmanager
def _replaced(kernels: Operations, route: object) -> Iterator[None]:
    vars(kernels)["route"] = route
    try:
        yield
    finally:
        del vars(kernels)["route"]
