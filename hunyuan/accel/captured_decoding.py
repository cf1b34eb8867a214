"""A decode step as a CUDA graph: captured once, replayed for every token of every request.

Knows how to capture; what a step does is `hunyuan.generation.decoding.DecodeStep`'s, or of several texts
`hunyuan.generation.company.LaneSteps`'.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from hunyuan.generation.company import LaneSteps, TextCompany
from hunyuan.generation.decoding import DecodeStep, TextDecoder
from hunyuan.generation.kv_cache import KVCache

LOOK_EVERY = 8
"""Tokens between two looks of the host: each look waits for the device."""
_WARM_UP_STEPS = 3


def captured(
    step: Callable[[], None],
    reset: Callable[[], None],
    device: torch.device,
    warm_up: int = _WARM_UP_STEPS,
    beside: torch.cuda.CUDAGraph | None = None,
) -> torch.cuda.CUDAGraph:
    """A graph of `step`, which runs `warm_up` times before; `reset` comes between.

    Its memory is that of `beside`: the two are never replayed at once.
    """
    with torch.cuda.device(device):
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):  # lazy set-up of kernels and libraries cannot be captured
            for _ in range(warm_up):
                step()
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        reset()
        # Other threads (metrics, health) may touch the device meanwhile.
        pool = None if beside is None else beside.pool()
        with torch.cuda.graph(graph, pool, capture_error_mode="thread_local"):
            step()
    return graph


class CapturedDecoder(TextDecoder):
    """Replays the step from a CUDA graph; where there is no CUDA, runs it.

    Capturing happens here and writes keys and values at the first positions, so it must come before any request.
    """

    def __init__(self, step: DecodeStep, look_every: int = LOOK_EVERY) -> None:
        super().__init__(step, look_every)
        self.graph = self._capture() if step.device.type == "cuda" else None

    @torch.inference_mode()
    def _capture(self) -> torch.cuda.CUDAGraph:
        step = self.step

        def reset() -> None:
            step.count.zero_()
            step.position.zero_()

        return captured(step.advance, reset, step.device, min(_WARM_UP_STEPS, step.capacity))

    def launch(self) -> None:
        if self.graph is None:
            self.step.advance()
        else:
            self.graph.replay()


class CapturedCompany(TextCompany):
    """Replays a graph for each number of texts; where there is no CUDA, runs the steps.

    As with `CapturedDecoder`, capturing must come before any request.
    """

    def __init__(self, steps: LaneSteps, rows: KVCache, look_every: int = LOOK_EVERY) -> None:
        super().__init__(steps, rows, look_every)
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}
        if steps.device.type == "cuda":
            for count in range(1, steps.lanes + 1):
                self.graphs[count] = self._capture(count)

    @torch.inference_mode()
    def _capture(self, count: int) -> torch.cuda.CUDAGraph:
        steps = self.steps

        def reset() -> None:
            steps.position.zero_()
            steps.row.copy_(torch.arange(steps.lanes))  # as it will be: no two lanes write to one row
            for step in steps.steps:
                step.count.zero_()

        reset()
        return captured(lambda: steps.advance(count), reset, steps.device, beside=self.graphs.get(1))

    def launch(self, count: int) -> None:
        if count in self.graphs:
            self.graphs[count].replay()
        else:
            self.steps.advance(count)
