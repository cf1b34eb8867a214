"""The 4-bit layout that two kinds of kernels share, and the one-token kernels as far as they go without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from moe_samples import BF16, mxfp4
from torch import Tensor

from hunyuan.accel.experts import humming, small_batch
from hunyuan.formats.numbers import E2M1_VALUES, FP8, dequantize_mxfp4
from scripts.benchmarks import bench_moe

# --- the 4-bit layout


@pytest.mark.parametrize(("rows", "columns"), [(128, 128), (256, 384)])
def test_layout_keeps_every_value(rows, columns):
    packed, scale = mxfp4(3, rows, columns)
    values, offsets, factor = humming.humming_layout(packed, scale)
    assert values.shape == packed.shape
    assert offsets.shape == (3, rows // 64, columns // 128, 16, 16)
    assert torch.equal(humming.plain_layout(values, offsets, factor), dequantize_mxfp4(packed, scale))


def test_word_is_where_the_kernels_look_for_it():
    """One nonzero weight at a time: row 16 g + 8 s + r, column 64 p + 32 m + 16 h + 4 q + i."""
    rows, columns = 128, 128
    for row, column in [(0, 0), (8, 1), (23, 66), (127, 127), (71, 50)]:
        packed = torch.zeros(1, rows, columns // 2, dtype=torch.uint8)
        packed[0, row, column // 2] = 0xD << (4 * (column % 2))  # minus three
        words = humming.interleave_values(packed).view(torch.int32)[0]  # [rows, columns / 8]
        (found,) = words.nonzero().tolist()
        group, s, r = row // 16, row // 8 % 2, row % 8
        half, quad, i = column // 16 % 2, column // 4 % 4, column % 4
        assert found == [16 * group + 8 * half + r, column // 32 * 4 + quad]
        sign = 8 * i + (3 if s else 7)
        assert words[tuple(found)].item() & 0xFFFFFFFF == 5 << (16 * s + 4 * i) | 1 << sign


def test_layout_in_place_equals_the_copy():
    packed, scale = mxfp4(5, 128, 256)
    expected = humming.humming_layout(packed, scale)
    memory = packed.data_ptr(), scale.data_ptr()
    found = humming.humming_layout_in_place(packed, scale)
    assert all(torch.equal(ours, copy) for ours, copy in zip(found, expected, strict=True))
    assert (found[0].data_ptr(), found[1].data_ptr()) == memory


def test_scales_far_below_the_largest_lose_bits_and_no_others_do():
    packed, scale = mxfp4(2, 128, 128)
    scale[0], scale[0, 5], scale[0, 6] = 120, 120 - 12 - 1, 0
    scale[0, 0, 0] = 121
    got = humming.plain_layout(*humming.humming_layout(packed, scale))
    expected = dequantize_mxfp4(packed, scale)
    differs = (got != expected).any(-1)
    assert differs[0].nonzero().flatten().tolist() in ([5, 6], [5])
    assert not differs[1].any()
    smallest_step = 0.5 * 2.0 ** (121 - 11 - 127)
    assert (got - expected).abs().max() <= smallest_step / 2


# --- one token


@pytest.mark.slow
def test_small_batch_kernels_in_the_interpreter_and_no_early_imports():
    pytest.importorskip("triton")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name("small_batch_interpreted.py"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    imported, errors = json.loads(done.stdout)
    assert imported == []
    assert len(errors) == 9
    assert all(value < 8e-3 for value, _ in errors.values()), errors
    assert all(same for _, same in errors.values()), errors


def _bf16_pair(bits: int) -> Tensor:
    return torch.tensor([bits & 0xFFFF, bits >> 16 & 0xFFFF]).to(torch.uint16).view(BF16).float()


def _permuted(a: int, b: int, selector: int) -> int:
    both = a & 0xFFFFFFFF | (b & 0xFFFFFFFF) << 32
    picks = [selector >> 4 * i & 0xF for i in range(4)]
    assert all(pick < 8 for pick in picks), "the eighth bit would repeat a sign"
    return sum((both >> 8 * pick & 0xFF) << 8 * i for i, pick in enumerate(picks))


def run_ptx(text: str, operands: dict[str, int]) -> dict[str, Any]:
    """The few instructions that the decoding uses, on 32-bit numbers; results of `add.f32` are floats."""
    values: dict[str, Any] = dict(operands)

    def read(name: str) -> int:
        return values[name] if name in values else int(name, 0)

    for line in text.split(";"):
        code, *names = line.replace("{", "").replace(",", " ").split() or [""]
        if code in ("", ".reg", "}"):
            continue
        target, *sources = names
        a, *rest = map(read, sources)
        match code:
            case "and.b32":
                values[target] = a & rest[0]
            case "or.b32":
                values[target] = a | rest[0]
            case "shr.u32":
                values[target] = a >> rest[0]
            case "shl.b32":
                values[target] = a << rest[0] & 0xFFFFFFFF
            case "mov.b32":
                values[target] = a
            case "prmt.b32":
                values[target] = _permuted(a, rest[0], rest[1] & 0xFFFF)
            case "fma.rn.bf16x2":
                exact = _bf16_pair(a).double() * _bf16_pair(rest[0]) + _bf16_pair(rest[1])
                low, high = exact.to(BF16).view(torch.uint16).tolist()
                values[target] = low | high << 16
            case "add.f32":
                values[target] = torch.tensor([a, rest[0]]).to(torch.uint32).view(torch.float32).sum().item()
            case _:
                raise AssertionError(f"unknown instruction {code}")
    return values


def test_byte_permutes_mean_the_documented_numbers():
    """The inline assembly, which the interpreter cannot run, instruction by instruction."""
    kernels = pytest.importorskip("hunyuan.accel.experts.small_batch_kernels")
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        words = torch.randint(2**32, (2,), generator=generator).tolist()
        x = torch.randn(8, generator=generator).to(BF16)
        pairs = x.view(torch.uint16).tolist()
        packed = [pairs[i] | pairs[i + 1] << 16 for i in (0, 2, 4, 6)]
        operands = dict(zip(("$2", "$3", "$4", "$5", "$6", "$7"), (*words, *packed), strict=True))
        found = run_ptx(kernels.TWO_WORDS.value, operands)
        for s, name in ((0, "$0"), (1, "$1")):
            bits = [(words[k // 4], 16 * s + 4 * (k % 4), 8 * (k % 4) + (3 if s else 7)) for k in range(8)]
            weights = [E2M1_VALUES[word >> at & 7] * (-1 if word >> sign & 1 else 1) for word, at, sign in bits]
            terms = torch.tensor(weights) * x.float()
            assert abs(found[name] - terms.sum().item()) <= 0.02 * terms.abs().sum().item()


@pytest.mark.parametrize("kind", [torch.uint8, BF16, FP8])
@pytest.mark.slow
def test_small_batch_kernels_compile_for_hopper(kind, monkeypatch, tmp_path):
    """As far as machine code, which needs no GPU: what the interpreter does not run, such as the byte permutes."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from hunyuan.accel.experts import small_batch_kernels as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    first, second = small_batch.default_blocks(kind)
    sizes = {"hidden": 4096, "width": 3072}
    if kind == torch.uint8:
        jobs = [
            (kernels.gate_and_up_mxfp4, first, {"units": first.rows, "bg": first.columns // 32}),
            (kernels.down_mxfp4, second, {"units": second.rows, "bg": second.columns // 32}),
        ]
    else:
        scaled = {"scaled": kind == FP8}
        jobs = [
            (kernels.gate_and_up_dense, first, {"rows": first.rows, "bk": first.columns, **scaled}),
            (kernels.down_dense, second, {"rows": second.rows, "bk": second.columns, **scaled}),
        ]
    bf16, packed = "*bf16", "*i64" if kind == torch.uint8 else "*bf16"
    types = {
        "together": "i32",
        "x": packed,
        "h": packed,
        "index": "*i64",
        "weights": "*fp32",
        "words": "*i32",
        "scales": "*i32",
    }
    types |= {"matrix": "*fp8e4nv" if kind == FP8 else bf16, "factor": "*fp32", "scale": "*fp32", "out": bf16}
    for kernel, cut, more in jobs:
        values = {**sizes, **more, "topk": 8, "splits": cut.splits, "unroll": cut.unroll, "plain": False}
        constants = {name: values[name] for name in kernel.arg_names if name in values}
        signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
        source = ASTSource(kernel, signature, {(kernel.arg_names.index(k),): v for k, v in constants.items()})
        made = triton.compile(source, GPUTarget("cuda", 90, 32), options={"num_warps": cut.warps})
        assert ("fma.rn.bf16x2" in made.asm["ptx"]) == (kind == torch.uint8)
        assert len(made.asm["cubin"]) > 1000


@pytest.mark.parametrize("kind", [torch.uint8, BF16, FP8])
def test_blocks_divide_the_real_sizes(kind):
    for blocks in (small_batch.default_blocks(kind), *map(list, bench_moe.candidate_blocks(kind))):
        for cut in blocks:
            assert small_batch._dividing(cut.rows, 1536 if kind == torch.uint8 else 3072) == cut.rows
            assert cut.rows & (cut.rows - 1) == 0
            assert 8 % cut.splits == 0


def test_small_batch_refuses_odd_sizes_and_other_dtypes():
    with pytest.raises(ValueError, match="expert width 192"):
        small_batch.SmallBatch(small_batch.Stacks(torch.zeros(2, 384, 128), torch.zeros(2, 128, 192)))
    small = small_batch.SmallBatch(small_batch.Stacks(torch.zeros(2, 512, 128), torch.zeros(2, 128, 256)))
    with pytest.raises(TypeError, match="float32"):
        small(torch.zeros(1, 128), torch.ones(1, 1), torch.zeros(1, 1))
