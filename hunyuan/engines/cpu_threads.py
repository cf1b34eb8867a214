"""How many threads PyTorch takes on a CPU while a model computes.

A small model's operations are over in less than a millisecond, and between two of them all threads wait for the last
one. OpenMP's threads spin while they wait. Where anything else runs on the same cores, the last one is a thread whose
core has been taken from it for many milliseconds, thousands of times per edit: with two threads an edit of the demo
took 2 s or 58 s. One thread waits for nobody. Knows sizes and PyTorch's switch; nothing of models.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

SMALL_HIDDEN = 512
"""Up to this hidden size one thread is enough (docs/measurements.md)."""

_CHOSEN = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@contextmanager
def threads_for(hidden: int, device: torch.device) -> Iterator[None]:
    """One thread inside, for a small model on a CPU and where the environment chooses none; the old number afterwards.

    PyTorch's number is the process's: what other threads compute meanwhile has one thread too.

    Args:
        hidden: the model's hidden size.
    """
    if device.type != "cpu" or hidden > SMALL_HIDDEN or any(os.environ.get(name) for name in _CHOSEN):
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
