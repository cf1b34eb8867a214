"""Choosing and preparing expert backends, what FlashInfer is told, and tuning: with a stand-in for FlashInfer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from moe_samples import BF16, EXPERTS, HIDDEN, TOPK, WIDTH, choices, error, filled
from small_model import noise
from torch import Tensor
from torch.nn.functional import linear, silu

from hunyuan.accel.experts import humming, torch_grouped, tuning
from hunyuan.accel.experts.backends import BackendError, Shapes, prepare_experts, resolve_impl, tune_experts
from hunyuan.accel.experts.flashinfer import power_of_two_above, quantize_tokens
from hunyuan.accel.experts.small_batch import MAX_TOKENS
from hunyuan.accel.experts.tactics import Tactics, Untuned
from hunyuan.accel.experts.tuning import NoTileWorks
from hunyuan.formats.numbers import FP8
from hunyuan.model.moe import MoE, experts_loop

CPU, CUDA = torch.device("cpu"), torch.device("cuda")

# --- which backend

REAL = [Shapes(64, 4096, 3072)]


def resolve(requested: str, kind: str = "mxfp4", shapes: list[Shapes] = REAL, **changes: Any) -> tuple[str, str]:
    given = {"device": CUDA, "dtype": BF16, "flashinfer": True, "capability": (9, 0), **changes}
    return resolve_impl(requested, given.pop("device"), given.pop("dtype"), kind, shapes, **given)


def test_auto_takes_the_fastest_that_works_and_says_why():
    assert resolve("auto") == ("flashinfer", "the fastest for mxfp4 on this GPU")
    impl, reason = resolve("auto", "fp8", flashinfer=False)
    assert (impl, reason) == ("torch", "not flashinfer: FlashInfer is not installed with its compiled kernels")
    impl, reason = resolve("auto", flashinfer=False)
    assert impl == "eager"
    assert "no grouped product for 4-bit" in reason
    assert resolve("auto", "bf16", device=CPU)[0] == "eager"
    assert resolve("auto", "bf16", dtype=torch.float32)[0] == "eager"
    assert resolve("auto", "bf16", [Shapes(8, 64, 24)])[0] == "torch"
    assert resolve("auto", "fp8", [Shapes(8, 64, 24)])[0] == "eager"
    assert resolve("auto", "bf16", capability=(8, 0))[0] == "torch"


@pytest.mark.parametrize(
    ("requested", "kind", "changes", "message"),
    [
        ("flashinfer", "bf16", {"device": CPU}, "needs a GPU and the device is cpu; possible: eager"),
        ("flashinfer", "bf16", {"flashinfer": False}, "compiled kernels; possible: torch, eager"),
        ("flashinfer", "mxfp4", {"shapes": [Shapes(8, 128, 96)]}, "width 96 must be multiples of 128"),
        ("flashinfer", "bf16", {"dtype": torch.float32}, "computes in bfloat16, not float32"),
        ("flashinfer", "bf16", {"capability": (10, 0)}, "this GPU has 10.0"),
        ("torch", "mxfp4", {}, "no grouped product for 4-bit weights; possible: flashinfer, eager"),
        ("torch", "bf16", {"device": CPU}, "the device is cpu"),
        ("torch", "fp8", {"shapes": [Shapes(8, 128, 24)]}, "must be multiples of 16"),
        ("fastest", "bf16", {}, "not one of auto, flashinfer, torch, eager"),
    ],
)
def test_impossible_choices_are_refused(requested, kind, changes, message):
    with pytest.raises(BackendError, match=message):
        resolve(requested, kind, **changes)


def test_what_was_asked_for_is_taken():
    assert resolve("eager") == ("eager", "as asked for")
    assert resolve("torch", "bf16") == ("torch", "as asked for")


# --- replacing the experts of a model


def model_of(kind: str, layers: int = 2) -> torch.nn.ModuleList:
    blocks = [MoE(HIDDEN, WIDTH, EXPERTS, TOPK, 0) for _ in range(layers)]
    for block in blocks:
        block.experts = filled(kind)
        block.gate.wg.weight.data = noise(EXPERTS, HIDDEN)
    return torch.nn.ModuleList(blocks).requires_grad_(False)


def test_eager_changes_nothing():
    model = model_of("bf16")
    before = [block.experts for block in model]
    assert prepare_experts(model, "eager", 100) is None
    assert [block.experts for block in model] == before


@pytest.mark.parametrize("kind", ["bf16", "fp8"])
def test_torch_backend_replaces_every_layer(kind):
    model, reference = model_of(kind), model_of(kind)
    assert prepare_experts(model, "torch", 100) is None
    assert all(isinstance(block.experts, torch_grouped.TorchExperts) for block in model)
    x = noise(1, 20, HIDDEN).to(BF16)
    assert error(model[1](x), reference[1](x)) < (1e-2 if kind == "bf16" else 8e-2)


class FakeFlashInfer:
    """Computes what FlashInfer is told to, in fp32, from its own tensors; remembers the calls."""

    compiled: Callable[[int, int], bool] = staticmethod(lambda first, second: True)

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.sizes: list[tuple[tuple[int, ...], dict[str, Any]]] = []

    def cutlass_fused_moe_workspace_size(self, *sizes: int, **kinds: Any) -> int:
        self.sizes.append((sizes, kinds))
        return 77

    def cutlass_fused_moe(
        self, x: Tensor, index: Tensor, weights: Tensor, w1: Tensor, w2: Tensor, dtype: torch.dtype, **told: Any
    ) -> None:
        self.calls.append({"tokens": len(x), **told})
        if not self.compiled(*told["profile_ids"]):
            raise RuntimeError("tile not in the build")
        assert (index.dtype, weights.dtype, dtype) == (torch.int32, torch.float32, BF16)
        scales = told["quant_scales"]
        out = told["output"]
        if x.dtype == FP8:
            out.copy_(self._fp8(x, index, weights, w1, w2, scales))
            return
        if told.get("use_wfp4afp8_humming"):
            assert [s.dtype for s in scales] == [torch.int32, *[torch.float32] * 2, torch.int32, torch.float32]
            assert scales[0].shape == (EXPERTS, 2 * WIDTH // 64, HIDDEN // 128, 16, 4)
            w1 = humming.plain_layout(w1, scales[0].view(torch.uint8), scales[1])
            w2 = humming.plain_layout(w2, scales[3].view(torch.uint8), scales[4])
        out.copy_(experts_loop(x.float(), weights, index, lambda e: (w1[e].float(), w2[e].float())))

    def _fp8(self, x: Tensor, index: Tensor, weights: Tensor, w1: Tensor, w2: Tensor, scales: list[Tensor]) -> Tensor:
        assert [s.ndim for s in scales] == [1, 1, 1, 0]
        out = torch.zeros(x.shape)
        for t, k in torch.cartesian_prod(torch.arange(len(x)), torch.arange(TOPK)).tolist():
            e = int(index[t, k])
            up, gate = (linear(x[t].float(), w1[e].float()) * scales[0][e]).chunk(2)
            inner = up * silu(gate) * scales[1][e]
            assert inner.abs().max() <= 448, "the bound does not hold"
            out[t] += weights[t, k] * linear(inner.to(FP8).float(), w2[e].float()) * scales[2][e]
        return out


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeFlashInfer:
    made = FakeFlashInfer()
    package, part = ModuleType("flashinfer"), ModuleType("flashinfer.fused_moe")
    package.__version__ = "9.9"
    for name in ("cutlass_fused_moe", "cutlass_fused_moe_workspace_size"):
        setattr(part, name, getattr(made, name))
    package.fused_moe = part
    monkeypatch.setitem(sys.modules, "flashinfer", package)
    monkeypatch.setitem(sys.modules, "flashinfer.fused_moe", part)
    gpu = SimpleNamespace(major=9, minor=0, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return made


def prepared(kind: str, max_tokens: int = 100, cache_dir: Path | None = None) -> tuple[torch.nn.ModuleList, Tactics]:
    model = model_of(kind)
    table = prepare_experts(model, "flashinfer", max_tokens, cache_dir, small_batch=False)
    assert table is not None
    return model, table


@pytest.mark.parametrize(("kind", "limit"), [("bf16", 1e-2), ("fp8", 8e-2), ("mxfp4", 1e-2)])
def test_flashinfer_is_told_what_the_weights_mean(fake, kind, limit):
    reference = filled(kind)
    model, table = prepared(kind)
    backend = model[0].experts
    table.remember(backend.shared.key, 16, (3, 200))
    x, weights, index = choices(9)
    out = backend(x, weights, index)
    assert out.dtype == BF16
    assert error(out, reference(x.float(), weights, index)) < limit
    (call,) = fake.calls
    assert call["profile_ids"] == [3, 200]
    assert call["workspace_buffer"].numel() == 77
    for expert in (0, EXPERTS - 1):
        ours = backend.stacks.dequantized(expert)
        assert torch.equal(ours[0], reference.matrix("gate_and_up", expert, torch.float32))
        assert torch.equal(ours[1], reference.matrix("down", expert, torch.float32))


def test_layers_share_one_workspace_and_keep_the_loaded_memory(fake):
    model = model_of("mxfp4", layers=3)
    memory = [block.experts.gate_and_up_proj.data_ptr() for block in model]
    prepare_experts(model, "flashinfer", 100)
    assert len(fake.sizes) == 1
    sizes, kinds = fake.sizes[0]
    assert sizes == (100, HIDDEN, WIDTH, EXPERTS, TOPK)
    assert (kinds["x_dtype"], kinds["weight_dtype"], kinds["use_wfp4afp8_humming"]) == (BF16, torch.uint8, True)
    assert len({block.experts.shared.workspace.data_ptr() for block in model}) == 1
    assert [block.experts.gate_and_up.data_ptr() for block in model] == memory


def test_long_inputs_go_in_pieces(fake):
    model, table = prepared("bf16", max_tokens=8)
    backend = model[0].experts
    table.remember(backend.shared.key, 8, (1, 60))
    table.remember(backend.shared.key, 3, (2, 61))
    x, weights, index = choices(19)
    out = backend(x, weights, index)
    assert [(call["tokens"], call["profile_ids"]) for call in fake.calls] == [(8, [1, 60]), (8, [1, 60]), (3, [2, 61])]
    assert error(out, filled("bf16")(x.float(), weights, index)) < 1e-2


def test_untuned_backend_refuses(fake):
    model, _ = prepared("bf16")
    with pytest.raises(Untuned, match=r"9.9/sm_90x132/bf16/6x2x128x256"):
        model[0].experts(*choices(5))
    assert fake.calls == []


def test_few_tokens_go_to_our_own_kernels(fake):
    model = model_of("bf16")
    prepare_experts(model, "flashinfer", 100)
    backend = model[0].experts
    if backend.small is None:
        pytest.skip("Triton is not installed")
    backend.small = lambda x, weights, index: x + 1
    x, weights, index = choices(MAX_TOKENS)
    assert torch.equal(backend(x, weights, index), x + 1)
    with pytest.raises(Untuned):
        backend(*choices(MAX_TOKENS + 1))


# --- tuning


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, fake: FakeFlashInfer) -> FakeFlashInfer:
    """A pair's time is read off its numbers: 30 and 92 are the best."""

    def milliseconds(call: Callable[[], None]) -> float:
        call()
        first, second = fake.calls[-1]["profile_ids"]
        return 1 + abs(first - 30) + abs(second - 92)

    monkeypatch.setattr(tuning, "milliseconds", milliseconds)
    fake.compiled = lambda first, second: first in (18, 30, 32, 34) and second in (88, 92, 96)
    return fake


def test_tuning_finds_the_best_compiled_pair_and_remembers_it(clock, tmp_path, caplog):
    caplog.set_level("INFO")
    model, table = prepared("bf16", cache_dir=tmp_path)
    key = model[0].experts.shared.key
    lines = tune_experts(model, (16,))
    assert len(lines) == 1, "layers of one kind are tuned once"
    assert "16 tokens: [30, 92], 1.000 ms" in lines[0]
    assert lines[0] in caplog.text
    assert table.find(key, 16) == (30, 92)
    assert Tactics(tmp_path).find(key, 16) == (30, 92)
    assert tune_experts(model, (16,)) == []


def test_usual_buckets_end_at_the_workspace(clock):
    model, table = prepared("bf16", max_tokens=20)
    tune_experts(model)
    assert sorted(table.entries[model[0].experts.shared.key.text()]) == [1, 16, 20]


def test_each_device_has_its_own_workspace(fake):
    model = model_of("bf16", layers=4)
    for block in model[2:]:
        block.experts.to("meta")
    prepare_experts(model, "flashinfer", 100, None, small_batch=False)
    spaces = [block.experts.shared.workspace for block in model]
    assert [space.device.type for space in spaces] == ["cpu", "cpu", "meta", "meta"]
    assert spaces[0] is spaces[1]
    assert spaces[2] is spaces[3]


def test_entry_that_does_not_run_is_measured_anew(clock):
    model, table = prepared("bf16")
    table.remember(model[0].experts.shared.key, 16, (11, 113))
    assert "[30, 92]" in tune_experts(model, (16,))[0]


def test_wrong_results_do_not_win(clock, monkeypatch):
    compute = clock.cutlass_fused_moe

    def broken(*arguments: Any, **told: Any) -> None:
        compute(*arguments, **told)
        if told["profile_ids"][0] == 30:
            told["output"].mul_(1.5)

    monkeypatch.setattr(sys.modules["flashinfer.fused_moe"], "cutlass_fused_moe", broken)
    model, table = prepared("bf16")
    tune_experts(model, (16,))
    assert table.find(model[0].experts.shared.key, 16) == (32, 92)


def test_no_tile_at_all_is_an_error(clock):
    clock.compiled = lambda first, second: False
    model, _ = prepared("bf16")
    with pytest.raises(NoTileWorks, match=r"9.9/sm_90x132/bf16"):
        tune_experts(model, (16,))


def test_other_backends_need_no_tuning():
    assert tune_experts(model_of("bf16")) == []


# --- fp8 activations


def test_power_of_two_above():
    x = torch.tensor([0.0, 1.0, 1.5, 2.0, 0.3, 2.0**-20, 448.1])
    assert power_of_two_above(x).tolist() == [1.0, 1.0, 2.0, 2.0, 0.5, 2.0**-20, 512.0]


def test_tokens_are_quantized_with_one_scale():
    x = noise(50, HIDDEN).to(BF16) * 37
    quantized, scale, squared = quantize_tokens(x)
    values = quantized.float() * scale
    assert error(values, x) < 3e-2
    assert quantized.float().abs().max() > 200
    assert (values.norm(dim=1) ** 2).max() <= squared
    zero, scale, _ = quantize_tokens(torch.zeros(2, HIDDEN, dtype=BF16))
    assert zero.float().abs().max() == 0
    assert scale == 1


def test_the_far_bound_costs_little_precision_at_the_real_width():
    """The bound grows with the hidden size, so the real one is tried, with few rows."""
    torch.manual_seed(0)
    hidden, width = 4096, 256
    matrix = torch.randn(2 * width, hidden) / hidden**0.5
    x = torch.randn(64, hidden)
    up, gate = linear(x, matrix).chunk(2, dim=-1)
    inner = up * silu(gate)
    norms = matrix.norm(dim=1).chunk(2)
    bound = (x.norm(dim=1).max() * 1.07) ** 2 * (norms[0] * norms[1]).max()
    assert bound > 100 * inner.abs().max()
    scale = 448 / bound
    assert error((inner * scale).to(FP8).float() / scale, inner) < 4e-2
