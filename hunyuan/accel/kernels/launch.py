"""What every launch of a Triton kernel needs: its tensors' GPU as the current one. Knows no kernel; needs no Triton."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

# Triton reads the same variable. Its interpreter multiplies matrices of bf16 wrongly: kernels then widen them first.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def on_device_of(x: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current GPU: makes it x's. On the CPU, where kernels are interpreted, nothing."""
    if not x.is_cuda or x.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(x.device)
