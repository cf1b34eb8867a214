"""A decode step as a CUDA graph: captured once, replayed for every token of every request.

Knows how to capture; what a step does is `hunyuan.generation.decoding.DecodeStep`'s.
"""

from __future__ import annotations

import torch

from hunyuan.generation.decoding import DecodeStep, TextDecoder

LOOK_EVERY = 8
"""Tokens between two looks of the host: each look waits for the device."""
_WARM_UP_STEPS = 3


class CapturedDecoder(TextDecoder):
    """Replays the step from a CUDA graph; where there is no CUDA, runs it.

    Capturing happens here and writes keys and values at the first positions, so it must come before any request.
    """

    def __init__(self, step: DecodeStep, look_every: int = LOOK_EVERY) -> None:
        super().__init__(step, look_every)
        self.graph = self._capture() if step.device.type == "cuda" else None

    @torch.inference_mode()
    def _capture(self) -> torch.cuda.CUDAGraph:
        device = self.step.device
        with torch.cuda.device(device):
            current, side = torch.cuda.current_stream(), torch.cuda.Stream()
            side.wait_stream(current)
            with torch.cuda.stream(side):  # lazy set-up of kernels and libraries cannot be captured
                for _ in range(min(_WARM_UP_STEPS, self.step.capacity)):
                    self.step.advance()
            current.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            self.step.count.zero_()
            self.step.position.zero_()
            # Other threads (metrics, health) may touch the device meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.step.advance()
        return graph

    def launch(self) -> None:
        if self.graph is None:
            self.step.advance()
        else:
            self.graph.replay()
