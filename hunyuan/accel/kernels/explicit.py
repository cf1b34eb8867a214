"""Gluon, Triton's dialect in which a kernel says which thread holds which element; and overlapping launches.

Kernels that stream weights need explicit layouts: left to itself, Triton moves the vector from one layout to another
through shared memory, with a barrier at every step, and no more than a few loads are then under way. Gluon has no
interpreter, but without its layouts it is Triton: where kernels are interpreted, `gl` is Triton's language and layouts
are nothing.

**Programmatic dependent launch.** A kernel launched with `launch_pdl=True` may begin while the one before it ends.
Every such kernel keeps to one order: it reads weights, which nobody writes; calls `take_turn`; then reads what others
wrote, and writes. When `take_turn` returns, the launch before is complete, and by the same rule all before that. A
kernel begins only once every program of the launch before has taken its turn, so what the second launch before it wrote
may be read early. Captured by a CUDA graph, such launches keep their overlap. Importing this file needs Triton.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hunyuan.accel.kernels.launch import INTERPRETED

gl: Any
jit: Any


class _Interpreted:
    """The names of Gluon that the kernels use, as Triton has them. Looked up at each call: its interpreter patches."""

    def __getattr__(self, name: str) -> Any:
        return getattr(tl, name)

    @staticmethod
    def arange(start: int, stop: int, layout: None) -> Any:
        return tl.arange(start, stop)

    @staticmethod
    def zeros(shape: list[int], dtype: tl.dtype, layout: None) -> Any:
        return tl.zeros(shape, dtype)

    @staticmethod
    def BlockedLayout(*_shape: object) -> None:  # noqa: N802
        return None

    @staticmethod
    def SliceLayout(_dim: int, _parent: None) -> None:  # noqa: N802
        return None


if INTERPRETED:
    gl, jit = _Interpreted(), triton.jit
else:
    from triton.experimental import gluon
    from triton.experimental.gluon import language

    gl, jit = language, gluon.jit


def turns(pdl: bool) -> dict[str, bool]:
    """What a launch needs that may begin while the one before ends; nothing of the kind in the interpreter."""
    return {"pdl": True, "launch_pdl": True} if pdl and not INTERPRETED else {"pdl": False}


@jit
def take_turn(pdl: tl.constexpr):
    """Waits for the launch before, and lets the next one begin."""
    if pdl:
        gl.inline_asm_elementwise("griddepcontrol.wait; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1)
        gl.inline_asm_elementwise(
            "griddepcontrol.launch_dependents; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1
        )


@triton.jit
def take_turn_in_triton(pdl: tl.constexpr):
    """The same for a kernel in plain Triton."""
    if pdl:
        gdc_wait()
        gdc_launch_dependents()
