"""Exchanging the transformer's operations; the fast ones run interpreted, in a process of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from small_model import model_config, noise
from small_transformer import prefilled, rope_of, small_transformer

from hunyuan.accel.kernels.segment_attention import flashinfer_attend, sdpa_attend
from hunyuan.model.attention import Segment, attend, split_segments
from hunyuan.model.network import HunyuanImage3
from hunyuan.model.operations import PLAIN, Operations, use_operations
from hunyuan.model.transformer import SelfAttention
from scripts.support.route_replay import recorded_routes, replayed_routes

CPU, BF16 = torch.device("cpu"), torch.bfloat16


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu has the compiled kernels")
@pytest.mark.slow
def test_triton_kernels_interpreted():
    pytest.importorskip("triton")
    checks = Path(__file__).with_name("kernels_interpreted.py")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(checks)]
    result = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout[-4000:]


@pytest.mark.slow
def test_what_the_engine_calls_needs_no_gluon():
    """Triton calls it experimental; only kernels that are not in use yet are written in it."""
    pytest.importorskip("triton")
    seen = "print([m for m in sys.modules if m.startswith('triton.experimental.gluon')])"
    code = f"import sys, hunyuan.accel.hopper, hunyuan.accel.experts.small_batch_kernels; {seen}"
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(("weight", "size"), [("*u8", 1), ("*bf16", 2), ("*fp32", 4)])
@pytest.mark.slow
def test_several_vectors_are_added_up_like_one(weight, size, monkeypatch, tmp_path):
    """Compiled for Hopper, which needs no GPU: the same sums in the same order, between the same threads."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from hunyuan.accel.kernels import gemv

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel, tile, found = gemv._gemv_kernel, gemv.TILES[size], []
    types = {"x": "*bf16", "weight": weight, "scale": "*fp32", "out": "*bf16", "outputs": "i32", "vectors": "i32"}
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    aligned = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in list(types)[:5]}
    for several in (False, True):
        values = {"inputs": 4096, "scaled": size == 1, "fp8": size == 1, "several": several}
        values |= {"rows": tile.rows, "columns": tile.columns}
        constants = {(kernel.arg_names.index(name),): value for name, value in values.items()}
        source = ASTSource(kernel, signature, constants, aligned)
        made = triton.compile(source, GPUTarget("cuda", 90, 32), options={"num_warps": tile.warps})
        layouts = sorted(set(re.findall(r"#ttg\.blocked<.*?>", made.asm["ttgir"])))
        sums = re.findall(r"(?:fma\.rn|add|mul)\.f32|shfl\.sync\S*", made.asm["ptx"])
        found.append((layouts, sums))
    assert found[0] == found[1]
    assert len(found[0][1]) > 30


@pytest.mark.parametrize(("apart", "laned"), [(True, True), (False, True), (True, False)])
@pytest.mark.slow
def test_kernels_of_several_texts_compile_for_hopper(apart, laned, monkeypatch, tmp_path):
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from hunyuan.accel.kernels.decode_attention import _part_kernel
    from hunyuan.accel.kernels.qkv import _rope_norm_store_kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    whole = ("start", "tokens", "count", "key_row", "key_token", "value_row", "value_token")
    types = dict.fromkeys(("qkv", "q_weight", "k_weight", "q", "keys", "values"), "*bf16") | dict.fromkeys(whole, "i32")
    types |= dict.fromkeys(("cos", "sin", "sums", "peaks", "masses"), "*fp32") | {"eps": "fp32", "scale": "fp32"}
    types |= dict.fromkeys(("start_at", "lanes", "position"), "*i32")
    values = {"apart": apart, "laned": laned, "kv_heads": 8, "group": 4, "half": 64, "head_dim": 128, "padded": 16}
    values |= {"from_device": True, "norm": True, "parts": 32, "wide": False, "pdl": False}
    for kernel, block, warps in ((_rope_norm_store_kernel, 1, 1), (_part_kernel, 64, 4)):
        signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
        known = {**values, "block": block}
        constants = {(kernel.arg_names.index(name),): known[name] for name in kernel.arg_names if name in known}
        source = ASTSource(kernel, signature, constants)
        made = triton.compile(source, GPUTarget("cuda", 90, 32), options={"num_warps": warps})
        assert len(made.asm["cubin"]) > 1000


def test_every_part_of_a_model_takes_the_new_set():
    model, other = HunyuanImage3(model_config()), Operations()
    users = [m for m in model.modules() if isinstance(getattr(m, "operations", None), Operations)]
    assert all(m.operations is PLAIN for m in users)
    use_operations(model, other)
    assert all(m.operations is other for m in users)
    assert HunyuanImage3.operations is PLAIN
    kinds = {type(m).__name__ for m in users}
    assert kinds == {"HunyuanImage3", "DecoderLayer", "RMSNorm", "SelfAttention", "MoE", "GatedMlp"}


def test_eager_decode_is_the_forward_of_one_token():
    model = small_transformer()
    kv, x = prefilled(model)
    whole = model(x, rope_of(9, 10), kv, split_segments(9, 10, []))
    kv.keys[0][:, 9:] = 0
    decoded = model.decode(x, rope_of(9, 10), kv, torch.tensor([9], dtype=torch.int32))
    assert torch.equal(decoded, whole)


def test_routes_are_recorded_and_replayed():
    kernels = Operations()
    first, router = noise(5, 16), noise(8, 16, seed=1)
    with recorded_routes(kernels) as routes:
        expected = kernels.route(first, router, 2)
    assert torch.equal(routes[0][1], expected[1])
    with replayed_routes(kernels, routes):
        assert torch.equal(kernels.route(noise(5, 16, seed=9), router, 2)[1], expected[1])
    with pytest.raises(ValueError, match="not asked for"), replayed_routes(kernels, routes):
        pass
    with pytest.raises(ValueError, match="4 tokens"), replayed_routes(kernels, routes):
        kernels.route(first[:4], router, 2)
    assert "route" not in vars(kernels)


@pytest.mark.parametrize("segments", [split_segments(0, 12, [(3, 9)]), split_segments(9, 12, [])])
def test_fallback_for_segments(segments):
    tokens = segments[-1].stop - segments[0].start
    q, keys, values = noise(2, tokens, 4, 16), noise(2, 12, 2, 16, seed=1), noise(2, 12, 2, 16, seed=2)
    torch.testing.assert_close(sdpa_attend(q, keys, values, segments), attend(q, keys, values, segments))


def test_flashinfer_gets_one_row_and_segment_at_a_time(monkeypatch):
    """A stand-in with the signature of the module's `run` in FlashInfer 0.7.2."""
    seen = []

    def run(q, k, v, tmp, out, lse, mode, layout, window, mask, alibi, cap, scale, sq, sk, sv, rscale, rtheta):
        assert (lse, window, mask, alibi, cap, layout) == (None, -1, None, None, 0.0, 4)
        assert scale == 128**-0.5
        seen.append((len(q), len(k), mode))
        causal = Segment(len(k) - len(q), len(k), causal=mode == 1)
        out.copy_(attend(q[None], k[None], v[None], [causal])[0])

    prefill, utils = ModuleType("flashinfer.prefill"), ModuleType("flashinfer.utils")
    bound = ("fa3", BF16, BF16, BF16, 128, 128, 0, False, False, False)
    prefill.get_single_prefill_module = lambda *args: SimpleNamespace(run=run) if args == bound else None
    utils.MaskMode = SimpleNamespace(CAUSAL=SimpleNamespace(value=1), NON_CAUSAL=SimpleNamespace(value=0))
    utils.TensorLayout = {"NHD": SimpleNamespace(value=4)}
    monkeypatch.setitem(sys.modules, "flashinfer.prefill", prefill)
    monkeypatch.setitem(sys.modules, "flashinfer.utils", utils)
    monkeypatch.setitem(sys.modules, "flashinfer", ModuleType("flashinfer"))
    attention = flashinfer_attend()
    q, keys, values = (
        noise(2, 10, 4, 128).to(BF16),
        noise(2, 20, 2, 128).to(BF16),
        noise(2, 20, 2, 128, seed=2).to(BF16),
    )
    segments = split_segments(2, 12, [(3, 9)])
    torch.testing.assert_close(
        attention(q, keys, values, segments), attend(q, keys, values, segments), rtol=0.02, atol=0.01
    )
    assert seen == [(1, 3, 0)] * 2 + [(6, 9, 0)] * 2 + [(3, 12, 1)] * 2
    attention(q.float(), keys.float(), values.float(), segments)
    assert len(seen) == 6


def test_attention_without_norms_has_none():
    assert SelfAttention(model_config(use_qk_norm=False)).norms() is None
