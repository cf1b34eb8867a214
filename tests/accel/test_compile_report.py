"""What is said about kernels that are compiled; whether any is compiled in a request is for tests/gpu."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from hunyuan.accel.compile_report import CompileWatch


def note(watch: CompileWatch, name: str, microseconds: int = 0, cache_hit: bool = False) -> None:
    """As Triton calls its listener."""
    times: Any = SimpleNamespace(total=microseconds)
    watch.note(src=None, metadata={"name": name}, metadata_group={}, times=times, cache_hit=cache_hit)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="hunyuan.accel.compile_report")
    return caplog


def test_what_was_compiled_is_said_once(said: pytest.LogCaptureFixture) -> None:
    watch = CompileWatch()
    note(watch, "_a_kernel", 1_500_000)
    note(watch, "_b_kernel", 600_000)
    note(watch, "_c_kernel", cache_hit=True)
    watch.report("in an edit")
    watch.report("in an edit")
    assert said.messages == ["in an edit: 2 kernels compiled in 2.1 s, 1 read from the cache: _a_kernel, _b_kernel"]


def test_nothing_new_is_not_said(said: pytest.LogCaptureFixture) -> None:
    CompileWatch().report("in an edit")
    assert said.messages == []


@pytest.mark.slow
def test_triton_tells_the_watch(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """With the installed Triton: a kernel compiled for Hopper, without a GPU."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from hunyuan.accel.kernels.rows import _swiglu_kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton.knobs.compilation, "listener", None)
    watch = CompileWatch()
    watch.start()
    signature = {"x": "*bf16", "out": "*bf16", "width": "constexpr", "block": "constexpr"}
    source = ASTSource(_swiglu_kernel, signature, {"width": 128, "block": 128})
    for _ in range(2):
        triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert (watch.names, watch.from_cache) == (["_swiglu_kernel"], 1)
    assert watch.seconds > 0


def test_sizes_that_a_request_chooses_make_no_new_kernels() -> None:
    """Triton compiles another kernel for an integer that is divisible by 16 than for one that is not."""
    triton = pytest.importorskip("triton")
    from hunyuan.accel.kernels import decode_attention, gemv, qkv, routing, rows
    from hunyuan.accel.vae import frame_kernels

    chosen = {"places", "width", "depth", "tokens", "start", "count"}
    found = set()
    for module in (gemv, frame_kernels, decode_attention, qkv, routing, rows):
        for name, kernel in vars(module).items():
            if isinstance(kernel, triton.JITFunction):
                for parameter in kernel.params:
                    if parameter.name in chosen and not parameter.is_constexpr:
                        found.add(parameter.name)
                        assert parameter.do_not_specialize, f"{name}: {parameter.name}"
    assert found == chosen
