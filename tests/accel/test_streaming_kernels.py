"""What the kernels with explicit layouts are compiled to for Hopper, which needs no GPU; what they compute is tested
interpreted (`kernels_interpreted.py`, `small_batch_interpreted.py`) and compiled (`tests/gpu`)."""

from __future__ import annotations

import re
from typing import Any

import pytest

from hunyuan.accel.experts.streamed import DEFAULT, Units

TURN, FORWARD, BARRIER = "griddepcontrol.wait", "griddepcontrol.launch_dependents", "bar.sync"
WEIGHTS = re.compile(r"ld\.global\.L1::evict_first\S*\.v4")  # a load of 16 bytes that does not stay in the cache
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def ptx(kernel: Any, types: dict[str, str], constants: dict[str, Any], warps: int) -> str:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.experimental.gluon._runtime import GluonASTSource

    names = kernel.arg_names
    signature = {name: types.get(name, "constexpr") for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name].startswith("*")}
    values = {(names.index(name),): value for name, value in constants.items() if name in names}
    source = GluonASTSource(kernel, signature, values, aligned)
    made = triton.compile(source, GPUTarget("cuda", 90, 32), options={"num_warps": warps, "launch_pdl": True})
    assert len(made.asm["cubin"]) > 1000
    return made.asm["ptx"]


@pytest.mark.parametrize(("kind", "loads"), [("u8", 8), ("bf16", 8), ("fp32", 8)])
def test_a_projection_has_all_weights_on_their_way_before_its_turn(kind: str, loads: int) -> None:
    from hunyuan.accel.kernels import projection

    size = {"u8": 1, "bf16": 2, "fp32": 4}[kind]
    cut = projection.ROWS[size]
    pointers = {"weight": f"*{kind}", "scale": "*fp32", "outputs": "i32", "eps": "fp32"}
    types = pointers | dict.fromkeys(("x", "gain", "normed", "residual", "out"), "*bf16")
    constants = {
        "inputs": 4096, "columns": 4096, "rows": cut.rows, "fp8": size == 1, "scaled": size == 1, "norm": True,
        "keep": False, "gated": False, "add": True, "pdl": True, "layout": projection._layout(cut, size),
    }  # fmt: skip
    before, after = ptx(projection._project_kernel, types, constants, cut.warps).split(TURN)
    assert len(WEIGHTS.findall(before)) == loads
    assert not WEIGHTS.search(after)
    assert BARRIER not in before
    assert FORWARD in after


@pytest.mark.parametrize("cuts", [DEFAULT, (Units(8, 8), Units(8, 8))])
def test_experts_have_no_barrier_between_loads(cuts: tuple[Units, Units]) -> None:
    from hunyuan.accel.experts import streamed_kernels as kernels

    types = {"x": "*i64", "h": "*i64", "index": "*i32", "weights": "*fp32", "words": "*i32", "scales": "*i32",
             "factor": "*fp32", "shared": "*bf16", "out": "*bf16"}  # fmt: skip
    for kernel, cut in zip((kernels.gate_and_up, kernels.down), cuts, strict=True):
        second = kernel is kernels.down
        layout = kernels.gl.BlockedLayout([1, cut.units // cut.warps, 4], [32, 1, 1], [1, cut.warps, 1], [2, 0, 1])
        constants = {
            "hidden": 4096, "width": 3072, "topk": 8, "splits": cut.splits, "units": cut.units, "bg": 32,
            "add": cut.splits == 1, "plain": False, "early": True, "pdl": True, "layout": layout,
        }  # fmt: skip
        more = {"x": "*bf16", "out": "*bf16" if cut.splits == 1 else "*fp32"} if second else {"topk": "i32"}
        constants = constants if second else {k: v for k, v in constants.items() if k != "topk"}
        text = ptx(kernel, types | more, constants, cut.warps)
        assert BARRIER not in text
        assert len(WEIGHTS.findall(text.split(TURN)[0])) >= 2
