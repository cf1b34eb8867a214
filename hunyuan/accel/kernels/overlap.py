"""Launches that overlap: a kernel may begin while the one before it ends (programmatic dependent launch).

Every kernel launched so keeps to one order: it reads weights, which nobody writes; takes its turn; then reads what
others wrote, and writes. Once it has its turn, the launch before is complete, and by the same rule all before that. A
kernel begins only once every program of the launch before has taken its turn, so what the second launch before it wrote
may be read early. Captured by a CUDA graph, such launches keep their overlap. Importing this file needs Triton.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hunyuan.accel.kernels.launch import INTERPRETED


def turns(pdl: bool) -> dict[str, bool]:
    """What a launch needs that may begin while the one before ends; nothing of the kind in the interpreter."""
    return {"pdl": True, "launch_pdl": True} if pdl and not INTERPRETED else {"pdl": False}


@triton.jit
def take_turn(pdl: tl.constexpr):
    """Waits for the launch before, and lets the next one begin. In Gluon: `explicit.take_turn`."""
    if pdl:
        gdc_wait()
        gdc_launch_dependents()
