"""Expert backends on the GPU: each against fp32 arithmetic on the weights' own values, and against each other.

FlashInfer's tiles are tuned for the small shape here at the start; the file that keeps tactics is a temporary one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor, nn

from hunyuan.accel.experts.backends import prepare_experts, tune_experts
from hunyuan.accel.experts.flashinfer import MODE_OF_FORMAT, FlashInferExperts, take_stacks
from hunyuan.accel.experts.humming import humming_layout
from hunyuan.accel.experts.small_batch import SmallBatch, triton_is_here
from hunyuan.accel.experts.tactics import Untuned
from hunyuan.accel.experts.torch_grouped import TorchExperts
from hunyuan.formats.modules import EXPERT_FORMATS
from hunyuan.formats.numbers import FP8
from hunyuan.model.moe import Experts, MoE, experts_loop

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU, and torch sees none"),
    pytest.mark.filterwarnings("default"),  # what FlashInfer warns of is not ours to fix
]
needs_flashinfer = pytest.mark.skipif(find_spec("flashinfer") is None, reason="FlashInfer is not installed")
needs_triton = pytest.mark.skipif(not triton_is_here(), reason="Triton is not installed")

EXPERTS, TOPK, HIDDEN, WIDTH, MOST = 8, 4, 512, 768, 256
LIMIT = {"bf16": 1e-2, "fp8": 8e-2, "mxfp4": 8e-2}
Inputs = tuple[Tensor, Tensor, Tensor]


def made(kind: str, seed: int = 0) -> Experts:
    """Random experts on the GPU."""
    experts = EXPERT_FORMATS[kind](EXPERTS, HIDDEN, WIDTH)
    generator = torch.Generator("cuda").manual_seed(seed)
    for name, rows, columns in (("gate_and_up", 2 * WIDTH, HIDDEN), ("down", HIDDEN, WIDTH)):
        matrix = experts.get_parameter(f"{name}_proj")
        if kind == "mxfp4":
            scale = experts.get_parameter(f"{name}_scale")
            size = EXPERTS, rows, columns
            matrix.data = torch.randint(256, (*size[:2], columns // 2), device="cuda", generator=generator).to(
                torch.uint8
            )
            scale.data = torch.randint(119, 123, (*size[:2], columns // 32), device="cuda", generator=generator).to(
                torch.uint8
            )
            continue
        values = torch.randn(EXPERTS, rows, columns, device="cuda", generator=generator) / columns**0.5
        matrix.data = values.to(FP8 if kind == "fp8" else torch.bfloat16)
        if kind == "fp8":
            experts.get_parameter(f"{name}_scale").data = torch.linspace(0.5, 1.5, EXPERTS, device="cuda")
    return experts.requires_grad_(False)


def inputs(tokens: int, seed: int) -> Inputs:
    generator = torch.Generator("cuda").manual_seed(seed)
    x = torch.randn(tokens, HIDDEN, device="cuda", generator=generator).bfloat16()
    weights, index = torch.randn(tokens, EXPERTS, device="cuda", generator=generator).softmax(-1).topk(TOPK)
    return x, (weights / weights.sum(-1, keepdim=True)).contiguous(), index


def expected(experts: Experts, given: Inputs) -> Tensor:
    x, weights, index = given

    def pair(expert: int) -> tuple[Tensor, Tensor]:
        return tuple(experts.matrix(name, expert, torch.float32) for name in ("gate_and_up", "down"))

    return experts_loop(x.float(), weights, index, pair)


def error(out: Tensor, reference: Tensor) -> float:
    return ((out.float() - reference.float()).norm() / reference.float().norm()).item()


def block(experts: Experts) -> nn.ModuleList:
    moe = MoE(HIDDEN, WIDTH, EXPERTS, TOPK, 0)
    moe.experts = experts
    return nn.ModuleList([moe])


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], FlashInferExperts]:
    """The FlashInfer backend of a format, tuned once."""
    folder, found = tmp_path_factory.mktemp("tactics"), {}

    def of(kind: str) -> FlashInferExperts:
        if kind not in found:
            model = block(made(kind))
            prepare_experts(model, "flashinfer", MOST, folder)
            assert tune_experts(model)
            found[kind] = model[0].experts
        return found[kind]

    return of


# --- FlashInfer


@needs_flashinfer
@pytest.mark.parametrize("tokens", [1, 5, 100, 256, 600])
@pytest.mark.parametrize("kind", ["bf16", "fp8", "mxfp4"])
def test_flashinfer_equals_fp32(tuned, kind, tokens):
    given = inputs(tokens, seed=tokens)
    out = tuned(kind).big(*given)
    assert out.shape == given[0].shape
    assert error(out, expected(made(kind), given)) < LIMIT[kind]
    assert torch.equal(out, tuned(kind).big(*given))


@needs_flashinfer
@pytest.mark.parametrize("kind", ["bf16", "fp8", "mxfp4"])
def test_tuned_entries_are_there_the_next_time(tuned, kind):
    table = tuned(kind).shared.tactics
    again = type(table)(table.cache_dir)
    assert again.find(tuned(kind).shared.key, 100) == table.find(tuned(kind).shared.key, 100)


@needs_flashinfer
def test_untuned_is_refused(tmp_path):
    model = block(made("bf16"))
    prepare_experts(model, "flashinfer", MOST, tmp_path)
    with pytest.raises(Untuned):
        model[0].experts(*inputs(50, seed=1))


@needs_flashinfer
@pytest.mark.parametrize("far", [False, True], ids=["near scales", "scales out of range"])
def test_layout_is_flashinfers_bit_for_bit(far):
    from flashinfer.fused_moe.prepare import preprocess_moe_weights_for_sm90_mixed_gemm_humming

    experts = made("mxfp4")
    for name in ("gate_and_up", "down"):
        packed, scale = (experts.get_parameter(f"{name}_{part}").detach() for part in ("proj", "scale"))
        if far:
            scale[1, ::3] = 104
            scale[2, 5] = 0
        values, offsets, residual = preprocess_moe_weights_for_sm90_mixed_gemm_humming(packed, scale)
        ours = humming_layout(packed, scale)
        assert torch.equal(ours[0], values)
        assert torch.equal(ours[1], offsets)
        assert torch.equal(ours[2], residual * 64)


# --- torch


@pytest.mark.parametrize("tokens", [1, 33, 500])
@pytest.mark.parametrize("kind", ["bf16", "fp8"])
def test_torch_equals_fp32(kind, tokens):
    experts, given = made(kind), inputs(tokens, seed=tokens)
    reference = expected(experts, given)
    backend = TorchExperts(experts)
    out = backend(*given)
    assert error(out, reference) < LIMIT[kind]
    assert torch.equal(out, backend(*given))


@pytest.mark.parametrize("kind", ["bf16", "fp8"])
def test_torch_with_experts_that_nobody_wants(kind):
    experts = made(kind)
    x, weights, _ = inputs(40, seed=2)
    index = torch.tensor([1, 2, 5, 6], device="cuda").expand(40, TOPK).contiguous()
    assert error(TorchExperts(experts)(x, weights, index), expected(experts, (x, weights, index))) < LIMIT[kind]


# --- one token


def small(kind: str, seed: int = 0) -> SmallBatch:
    return SmallBatch(take_stacks(made(kind, seed), MODE_OF_FORMAT[kind]))


@needs_triton
@pytest.mark.parametrize("tokens", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["bf16", "fp8", "mxfp4"])
def test_small_batch_kernels_equal_fp32(kind, tokens):
    given = inputs(tokens, seed=tokens)
    kernels = small(kind)
    out = kernels(*given)
    assert error(out, expected(made(kind), given)) < 1e-2  # weights as stored, activations bf16
    assert torch.equal(out, kernels(*given))


@needs_triton
def test_byte_permutes_equal_plain_decoding():
    given = inputs(2, seed=9)
    kernels = small("mxfp4")
    permuted = kernels(*given)
    kernels.blocks = tuple(replace(cut, plain=True) for cut in kernels.blocks)
    assert error(kernels(*given), expected(made("mxfp4"), given)) < 8e-3
    assert error(permuted, kernels(*given)) < 8e-3


@needs_triton
@needs_flashinfer
@pytest.mark.parametrize("kind", ["bf16", "fp8", "mxfp4"])
def test_small_batch_equals_the_big_path(tuned, kind):
    backend = tuned(kind)
    assert backend.small is not None
    x, weights, index = inputs(9, seed=4)
    big = backend(x, weights, index)
    few = backend(x[:4], weights[:4], index[:4])
    assert error(few, big[:4]) < LIMIT[kind]


# --- graphs and waiting for the host


def backends(tuned: Callable[[str], FlashInferExperts]) -> list[tuple[str, Callable[..., Tensor], int]]:
    found: list[tuple[str, Callable[..., Tensor], int]] = [
        ("torch bf16", TorchExperts(made("bf16")), 20),
        ("torch fp8", TorchExperts(made("fp8")), 20),
    ]
    if triton_is_here():
        found += [(f"one token {kind}", small(kind), 1) for kind in LIMIT]
    if find_spec("flashinfer") is not None:
        found += [(f"flashinfer {kind}", tuned(kind).big, 20) for kind in LIMIT]
    return found


def test_calls_live_in_a_cuda_graph_and_follow_their_inputs(tuned):
    for name, call, tokens in backends(tuned):
        given, other = inputs(tokens, seed=5), inputs(tokens, seed=6)
        fixed = copy.deepcopy(given)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            call(*fixed)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = call(*fixed)
        for values in (given, other):
            for place, value in zip(fixed, values, strict=True):
                place.copy_(value)
            graph.replay()
            assert torch.equal(out, call(*values)), name


def test_nothing_waits_for_the_host(tuned):
    for name, call, tokens in backends(tuned):
        given = inputs(tokens, seed=7)
        call(*given)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            call(*given)
        except RuntimeError as waited:
            pytest.fail(f"{name}: {waited}")
        finally:
            torch.cuda.set_sync_debug_mode("default")
