"""Gluon, Triton's dialect in which a kernel says which thread holds which element.

Kernels that stream weights need explicit layouts: left to itself, Triton moves the vector from one layout to another
through shared memory, with a barrier at every step, and no more than a few loads are then under way. Gluon has no
interpreter, but without its layouts it is Triton: where kernels are interpreted, `gl` is Triton's language and layouts
are nothing. Importing this file needs Triton, and Gluon, which Triton calls experimental: only kernels that are written
in it do so.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

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


@jit
def take_turn(pdl: tl.constexpr):
    """As `overlap.take_turn`."""
    if pdl:
        gl.inline_asm_elementwise("griddepcontrol.wait; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1)
        gl.inline_asm_elementwise(
            "griddepcontrol.launch_dependents; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1
        )
