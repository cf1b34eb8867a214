"""Which experts' backend is chosen, on machines that are only pretended; and what a missing kernel does."""

from __future__ import annotations

import logging
import sys
from contextlib import contextmanager, nullcontext
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from hunyuan.accel import flashinfer_modules, prepare
from hunyuan.accel.captured_decoding import CapturedCompany
from hunyuan.accel.flashinfer_modules import PREFILL_FP8
from hunyuan.accel.prepare import (
    HOPPER,
    NO_LATE_COMPILING,
    choose_impl,
    missing_text,
    refuse_missing_fp8_attention,
)
from hunyuan.checkpoint.full_size import full_size_config
from hunyuan.errors import SettingsError
from hunyuan.formats.config import CheckpointConfig
from hunyuan.formats.fp8_attention import Fp8AttentionOperations
from hunyuan.model.operations import Operations

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BF16 = torch.bfloat16
AMPERE = (8, 0)
LACKS = "FlashInfer lacks the compiled fused_moe_90, trtllm_utils: run `hunyuan kernels`"


def config(experts: str | list[str] = "mxfp4", **changes: Any) -> CheckpointConfig:
    return CheckpointConfig.from_dict(full_size_config(layers=2, experts=experts) | changes)


def machine(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int] = HOPPER,
    flashinfer: bool = True,
    missing: tuple[str, ...] = (),
    no_compiling: str | None = None,
    triton: bool = True,
) -> None:
    monkeypatch.setattr(prepare, "triton_is_here", lambda: triton)
    monkeypatch.setattr(prepare, "capability", lambda device: capability if device.type == "cuda" else (0, 0))
    monkeypatch.setattr(prepare, "flashinfer_is_here", lambda: flashinfer)
    monkeypatch.setattr(prepare, "missing_modules", lambda *names: [*missing])
    monkeypatch.delenv(NO_LATE_COMPILING, raising=False)
    if no_compiling is not None:
        monkeypatch.setenv(NO_LATE_COMPILING, no_compiling)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


# --- choosing


@pytest.mark.parametrize("setting", ["auto", "eager"])
def test_a_cpu_takes_the_plain_loop_without_a_warning(caplog, setting):
    assert choose_impl(config(), CPU, torch.float32, setting) == "eager"
    assert warnings(caplog) == []


def test_a_fast_backend_on_a_cpu_is_refused():
    with pytest.raises(SettingsError, match="moe_impl=flashinfer is impossible here: it needs a GPU"):
        choose_impl(config(), CPU, torch.float32, "flashinfer")


def test_the_choice_is_logged_with_its_reason(caplog, monkeypatch):
    caplog.set_level(logging.INFO, logger="hunyuan")
    machine(monkeypatch, flashinfer=False)
    assert choose_impl(config("bf16"), CUDA, BF16, "auto") == "torch"
    reason = "not flashinfer: FlashInfer is not installed with its compiled kernels"
    assert caplog.messages == [f"mixture of experts: torch ({reason})"]


@pytest.mark.parametrize("experts", ["bf16", "fp8", "mxfp4", ["mxfp4", "fp8"]])
@pytest.mark.parametrize("no_compiling", [None, "1"])
def test_a_complete_hopper_takes_flashinfer(monkeypatch, caplog, experts, no_compiling):
    machine(monkeypatch, no_compiling=no_compiling)
    assert choose_impl(config(experts), CUDA, BF16, "auto") == "flashinfer"
    assert missing_text() == ""
    assert warnings(caplog) == []


@pytest.mark.parametrize(
    ("experts", "impl"), [("bf16", "torch"), ("fp8", "torch"), ("mxfp4", "eager"), (["fp8", "mxfp4"], "eager")]
)
@pytest.mark.parametrize(
    "lacking",
    [{"capability": AMPERE}, {"flashinfer": False}, {"missing": ("fused_moe_90",)}],
    ids=["another GPU", "no FlashInfer", "not compiled"],
)
def test_without_flashinfer_the_format_that_the_fewest_compute_decides(monkeypatch, lacking, experts, impl):
    machine(monkeypatch, **lacking)
    assert choose_impl(config(experts), CUDA, BF16, "auto") == impl


def test_a_model_without_experts_needs_no_backend(monkeypatch):
    machine(monkeypatch)
    assert choose_impl(config("bf16", num_experts=1), CUDA, BF16, "auto") == "eager"


# --- the plain loop on a GPU is worth a warning


@pytest.mark.parametrize(
    ("flashinfer", "missing", "end"),
    [(False, ("fused_moe_90",), "a fast backend"), (True, ("fused_moe_90", "trtllm_utils"), f"; {LACKS}")],
)
def test_the_plain_loop_on_a_gpu_is_warned_about(monkeypatch, caplog, flashinfer, missing, end):
    machine(monkeypatch, flashinfer=flashinfer, missing=missing)
    assert choose_impl(config(), CUDA, BF16, "auto") == "eager"
    (message,) = warnings(caplog)
    assert message.startswith("mixture of experts: the plain loop, tens of times slower")
    assert message.endswith(end)


def test_a_slower_backend_for_want_of_kernels_is_warned_about(monkeypatch, caplog):
    machine(monkeypatch, missing=("fused_moe_90", "trtllm_utils"))
    assert choose_impl(config("fp8"), CUDA, BF16, "auto") == "torch"
    assert warnings(caplog) == [f"mixture of experts: torch, slower than flashinfer; {LACKS}"]


def test_the_plain_loop_that_was_asked_for_is_not(monkeypatch, caplog):
    machine(monkeypatch)
    assert choose_impl(config(), CUDA, BF16, "eager") == "eager"
    assert warnings(caplog) == []


# --- missing kernels


def test_asking_for_flashinfer_without_its_kernels_names_them(monkeypatch):
    machine(monkeypatch, missing=("fused_moe_90", "trtllm_utils"))
    with pytest.raises(SettingsError) as caught:
        choose_impl(config(), CUDA, BF16, "flashinfer")
    assert str(caught.value).endswith(f"; {LACKS}")


@pytest.mark.trap(10)
@pytest.mark.parametrize("setting", ["auto", "flashinfer"])
@pytest.mark.parametrize("experts", ["bf16", "mxfp4"])
def test_where_nothing_is_compiled_later_a_missing_kernel_is_an_error_at_the_start(monkeypatch, setting, experts):
    machine(monkeypatch, missing=("fused_moe_90", "trtllm_utils"), no_compiling="1")
    with pytest.raises(SettingsError) as caught:
        choose_impl(config(experts), CUDA, BF16, setting)
    assert str(caught.value).startswith(f"{NO_LATE_COMPILING} is set; {LACKS}")


@pytest.mark.parametrize(
    ("changes", "device", "dtype", "setting", "impl"),
    [
        ({"no_compiling": ""}, CUDA, BF16, "auto", "torch"),
        ({"capability": AMPERE}, CUDA, BF16, "auto", "torch"),
        ({"flashinfer": False}, CUDA, BF16, "auto", "torch"),
        ({}, CUDA, torch.float32, "auto", "eager"),
        ({}, CPU, torch.float32, "auto", "eager"),
        ({}, CUDA, BF16, "torch", "torch"),
        ({}, CUDA, BF16, "eager", "eager"),
    ],
    ids=["empty variable", "another GPU", "no FlashInfer", "float32", "a CPU", "torch by name", "eager by name"],
)
def test_a_missing_kernel_that_nothing_would_call_is_no_error(monkeypatch, changes, device, dtype, setting, impl):
    machine(monkeypatch, **{"missing": ("fused_moe_90",), "no_compiling": "1"} | changes)
    assert choose_impl(config("bf16"), device, dtype, setting) == impl


# --- attention in fp8


def test_fp8_attention_without_its_kernel_is_an_error_on_hopper(monkeypatch):
    """Its plain form would compute the same, too slowly for anybody to want it."""
    machine(monkeypatch, missing=(PREFILL_FP8,))
    with pytest.raises(SettingsError, match=r"HUNYUAN_ATTENTION=fp8 .*q_e4m3.*: run `hunyuan kernels`"):
        refuse_missing_fp8_attention(config(), CUDA, BF16)
    machine(monkeypatch)
    refuse_missing_fp8_attention(config(), CUDA, BF16)


def test_a_hopper_gpu_without_triton_computes_no_fp8_attention(monkeypatch):
    """All modules are compiled, but our operations, which call them, cannot be."""
    machine(monkeypatch, triton=False)
    with pytest.raises(SettingsError, match="HUNYUAN_ATTENTION=fp8 needs Triton"):
        refuse_missing_fp8_attention(config(), CUDA, BF16)
    model = SimpleNamespace(config=config(), device=CUDA, dtype=BF16, operations=Fp8AttentionOperations())
    with pytest.raises(SettingsError, match="HUNYUAN_ATTENTION=fp8 needs Triton"):
        prepare._use_fast_kernels(model, hopper=False)
    model.operations = Operations()
    prepare._use_fast_kernels(model, hopper=False)


@pytest.mark.parametrize(
    ("changes", "device", "dtype", "head_dim"),
    [
        ({"capability": (8, 0)}, CUDA, BF16, 128),
        ({}, CUDA, torch.float32, 128),
        ({}, CPU, BF16, 128),
        ({}, CUDA, BF16, 64),
    ],
    ids=["another GPU", "float32", "a CPU", "other heads"],
)
def test_where_there_is_no_such_kernel_the_plain_form_serves(monkeypatch, changes, device, dtype, head_dim):
    machine(monkeypatch, **{"missing": (PREFILL_FP8,)} | changes)
    refuse_missing_fp8_attention(config(attention_head_dim=head_dim), device, dtype)


def test_bf16_attention_asks_for_no_fp8_kernel(monkeypatch, tmp_path):
    monkeypatch.setattr(flashinfer_modules, "aot_folder", lambda: tmp_path)
    assert PREFILL_FP8 not in flashinfer_modules.missing_modules()
    assert PREFILL_FP8 in flashinfer_modules.missing_modules(flashinfer_modules.BUILT_MODULES)


@pytest.mark.trap(10)
def test_only_a_library_in_its_place_counts_as_compiled(monkeypatch, tmp_path):
    monkeypatch.setattr(flashinfer_modules, "aot_folder", lambda: tmp_path)
    assert flashinfer_modules.missing_modules() == list(flashinfer_modules.ENGINE_MODULES)
    for name in flashinfer_modules.ENGINE_MODULES:
        library = flashinfer_modules.library(name, tmp_path)
        library.parent.mkdir()
        library.touch()
    assert flashinfer_modules.missing_modules() == []
    flashinfer_modules.library(flashinfer_modules.PREFILL, tmp_path).unlink()
    assert flashinfer_modules.missing_modules() == [flashinfer_modules.PREFILL]


def test_without_flashinfer_everything_is_missing(monkeypatch):
    monkeypatch.setattr(flashinfer_modules, "aot_folder", lambda: None)
    assert flashinfer_modules.missing_modules() == list(flashinfer_modules.ENGINE_MODULES)


# --- two copies


class Copy:
    """What of a network the preparation looks at, on a GPU that is only a name."""

    dtype, model = BF16, "backbone"

    def __init__(self, index: int) -> None:
        self.device = torch.device("cuda", index)


@pytest.mark.parametrize("copies", [1, 2])
def test_each_copy_is_prepared_with_its_own_gpu_current(monkeypatch, copies):
    machine(monkeypatch)
    done: list[Any] = []
    place = [torch.device("cpu")]

    @contextmanager
    def current(device):
        before, place[0] = place[0], device
        yield
        place[0] = before

    def noted(name):
        return lambda copy, *_, **__: done.append((name, copy.device.index, place[0]))

    first, *rest = [Copy(index) for index in range(copies)]
    second = rest[0] if rest else None
    monkeypatch.setattr(prepare, "current", current)
    monkeypatch.setattr(prepare, "triton_is_here", lambda: True)
    monkeypatch.setattr(prepare.COMPILED, "start", lambda: None)
    for name in ("_use_fast_kernels", "prepare_experts", "tune_experts"):
        monkeypatch.setattr(prepare, name, noted(name))
    monkeypatch.setattr(prepare, "use_fast_vae", lambda model: done.append(("vae", model.device.index)))
    monkeypatch.setattr(prepare, "connect", lambda backbone, placement: done.append(("connect", placement)))
    monkeypatch.setattr(prepare.Workspace, "create", lambda *args: args)
    made = prepare.prepare(first, "placement", "flashinfer", 100, 200, None, second)
    each = [
        (name, copy.device.index, copy.device)
        for copy in (first, *rest)
        for name in ("_use_fast_kernels", "prepare_experts", "tune_experts")
    ]
    assert done == [("vae", 0), *each, ("connect", "placement")]
    assert made == (first, 100, prepare.CapturedDecoder, second, None)


@pytest.mark.parametrize(
    ("capability", "fused", "made"), [(HOPPER, True, "a maker"), (HOPPER, False, None), (AMPERE, True, None)]
)
def test_fused_launches_are_asked_for(monkeypatch, capability, fused, made):
    machine(monkeypatch, capability=capability)
    for name in ("current", "_use_fast_kernels", "prepare_experts", "tune_experts", "use_fast_vae", "connect"):
        monkeypatch.setattr(prepare, name, lambda *_, **__: nullcontext())
    monkeypatch.setattr(prepare.COMPILED, "start", lambda: None)
    monkeypatch.setattr(prepare, "fused_step_maker", lambda *_: "a maker")
    monkeypatch.setattr(prepare.Workspace, "create", lambda *args: args)
    assert prepare.prepare(Copy(0), "placement", "flashinfer", 100, 200, None, None, fused)[-1] == made


def test_where_launches_are_fused_one_token_goes_through_the_separate_ones_too(monkeypatch, golden_editor):
    """A prompt's few last tokens need their kernels, and nothing else at start would compile them."""
    model, steps, seen = golden_editor.engine.checkpoint.model, object(), []
    monkeypatch.setattr(prepare, "layer_devices", lambda _: [model.device])
    stand_in = ModuleType("hunyuan.accel.fused_decoding")
    stand_in.fused_steps = lambda _: steps
    monkeypatch.setitem(sys.modules, "hunyuan.accel.fused_decoding", stand_in)
    decode = model.model.decode
    monkeypatch.setattr(model.model, "decode", lambda x, *rest: (seen.append(tuple(x.shape)), decode(x, *rest))[1])
    assert prepare.fused_step_maker(model, "torch") is None
    assert seen == []
    assert prepare.fused_step_maker(model, "flashinfer") is steps
    assert seen == [(1, 1, model.config.hidden_size)]


@pytest.mark.parametrize("impl", ["flashinfer", "torch", "eager"])
def test_texts_together_gain_only_with_our_kernels_and_that_is_said(monkeypatch, caplog, impl):
    caplog.set_level(logging.INFO, logger="hunyuan")
    made, few = [], []
    operations = Operations()
    operations.name = "hopper"
    monkeypatch.setattr(operations, "for_a_few", lambda tokens: few.append(tokens) or nullcontext())
    monkeypatch.setattr(prepare, "layer_devices", lambda model: [CPU, CPU])
    monkeypatch.setattr(prepare, "text_company", lambda model, *sizes: made.append(sizes))
    prepare.prepare_company(SimpleNamespace(operations=operations), impl, 4, 100)
    fast = impl == "flashinfer"
    assert made == [(4, 100, CapturedCompany if fast else None)]
    assert few == [4] * fast
    assert ("HUNYUAN_TEXT_BATCH=4 gains nothing here" in caplog.text) != fast
    assert "up to 4 texts are decoded together, of up to 100 tokens each" in caplog.text


def test_a_model_over_several_gpus_decodes_each_text_alone(monkeypatch, caplog):
    devices = [torch.device("cuda", 0), torch.device("cuda", 1)]
    monkeypatch.setattr(prepare, "layer_devices", lambda model: devices)
    assert prepare.prepare_company(SimpleNamespace(), "flashinfer", 4, 100) is None
    assert "HUNYUAN_TEXT_BATCH=4 is for a model on one device" in caplog.text
