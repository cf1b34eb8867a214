"""Our own engine: how settings and hardware decide, and what it refuses before it reads the weights."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from hunyuan.checkpoint.folder import read_config
from hunyuan.checkpoint.full_size import full_size_config
from hunyuan.checkpoint.load import copy_for_painting, load_model
from hunyuan.checkpoint.tiny import write_tiny_checkpoint
from hunyuan.engines import native
from hunyuan.engines.native import NativeEngine, choose_dtype
from hunyuan.errors import CheckpointError, HunyuanError, OutOfMemory, SettingsError
from hunyuan.formats.config import CheckpointConfig
from hunyuan.formats.fp8_attention import Fp8AttentionOperations
from hunyuan.model.moe import Experts
from hunyuan.model.operations import PLAIN, Operations
from hunyuan.plan.choice import Choice, Gpu, choose
from hunyuan.plan.memory import GIB
from hunyuan.requests import EditRequest
from hunyuan.settings import Settings

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "out")


@pytest.fixture
def broken(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint for a test to damage."""
    return shutil.copytree(tiny, tmp_path / "broken")


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "load_model", lambda *_: pytest.fail("the weights were read first"))


def with_gpu(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)


def refused(folder: Path, error: type[HunyuanError] = CheckpointError, **settings: Any) -> str:
    with pytest.raises(error) as caught:
        NativeEngine.load(folder, Settings(device="cpu", **settings))
    return str(caught.value)


# --- backends


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("flashinfer", "it needs a GPU and the device is cpu; possible: eager"),
        ("torch", "it needs a GPU and the device is cpu"),
    ],
)
@pytest.mark.usefixtures("no_weights")
def test_a_backend_that_cannot_be_is_refused_before_the_weights_are_read(tiny, setting, words):
    message = refused(tiny, SettingsError, moe_impl=setting)
    assert message.startswith(f"moe_impl={setting} is impossible here")
    assert words in message


@pytest.mark.parametrize("settings", [{}, {"weights": "bf16"}, {"moe_impl": "eager"}, {"moe_impl": "auto"}])
def test_a_cpu_takes_the_plain_loop_and_no_buffers(tiny, settings):
    engine = NativeEngine.load(tiny, Settings(device="cpu", **settings))
    assert engine.workspace is None
    assert isinstance(engine.checkpoint.model.model.layers[0].mlp.experts, Experts)


@pytest.mark.parametrize(("weights", "kind"), [("4bit", "mxfp4"), ("fp8", "fp8")])
@pytest.mark.slow
def test_weights_are_quantized_while_loading_where_asked_for(tiny, weights, kind):
    engine = NativeEngine.load(tiny, Settings(device="cpu", weights=weights, dense="fp8"))
    config = engine.checkpoint.model.config
    assert (config.expert_formats, config.dense_format) == ((kind,) * 2, "fp8")
    result = engine.run(
        EditRequest("a boat", resolution="1:1", max_new_tokens=3), seed=0, steps=1, on_progress=None, cancel=None
    )
    assert result.size == (256, 256)


@pytest.mark.parametrize(("router", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_router_computes_as_the_setting_says(tiny, router, dtype):
    engine = NativeEngine.load(tiny, Settings(device="cpu", router=router))
    model = engine.checkpoint.model
    moe = model.model.layers[0].mlp
    assert moe.operations is model.operations
    assert moe.operations.router_dtype == dtype
    assert moe.gate.wg.weight.dtype == torch.float32  # as it is stored, in either case
    assert (model.operations is PLAIN) == (router == "fp32")
    assert PLAIN.router_dtype == torch.float32
    routes: list[torch.Tensor] = []
    moe.experts.register_forward_pre_hook(lambda _module, args: routes.extend(args[2:]))
    x = torch.randn(1, 400, 64, generator=torch.Generator().manual_seed(0))
    moe(x)
    (index,) = routes
    expected = Operations(dtype).route(x[0], moe.gate.wg.weight, moe.topk)[1]
    other = Operations(torch.float32 if router == "bf16" else torch.bfloat16).route(x[0], moe.gate.wg.weight, moe.topk)
    assert torch.equal(index, expected)
    assert not torch.equal(index, other[1])


def test_attention_computes_as_the_setting_says(tiny):
    """Only where the image is painted: the text before it, and the keys that it sees, stay as they are."""
    request = EditRequest("a boat", resolution="1:1", max_new_tokens=3)
    results, kinds = [], []
    for attention in ("bf16", "fp8", "fp8"):
        engine = NativeEngine.load(tiny, Settings(device="cpu", attention=attention))
        kinds.append(type(engine.checkpoint.model.model.layers[0].self_attn.operations))
        results.append(engine.run(request, seed=0, steps=2, on_progress=None, cancel=None))
    assert kinds == [Operations, Fp8AttentionOperations, Fp8AttentionOperations]
    exact, ours, again = (result.image.tobytes() for result in results)
    assert ours == again
    assert ours != exact
    assert results[0].cot_text == results[1].cot_text


# --- device and dtype


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU, so HUNYUAN_DEVICE=cuda is fine here")
def test_engine_on_this_machine_refuses_cuda(tmp_path):
    with pytest.raises(SettingsError, match="HUNYUAN_DEVICE=cuda"):
        NativeEngine.load(tmp_path, Settings(device="cuda"))


@pytest.mark.parametrize(
    ("setting", "device", "dtype"),
    [
        ("auto", CUDA, torch.bfloat16),
        ("auto", CPU, torch.float32),
        ("bfloat16", CPU, torch.bfloat16),
        ("bfloat16", CUDA, torch.bfloat16),
        ("float32", CUDA, torch.float32),
        ("float32", CPU, torch.float32),
    ],
)
def test_dtype(setting, device, dtype):
    assert choose_dtype(Settings(dtype=setting), device) == dtype


@pytest.mark.parametrize(("dtype", "allowed"), [("float32", False), ("bfloat16", True)])
def test_float32_on_a_gpu_is_no_tf32(monkeypatch, tmp_path, dtype, allowed):
    with_gpu(monkeypatch, True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with pytest.raises(CheckpointError):  # the folder is empty: nothing reaches the device
        NativeEngine.load(tmp_path, Settings(device="cuda", dtype=dtype))
    assert torch.backends.cudnn.allow_tf32 is allowed


# --- loading


@pytest.mark.parametrize(("setting", "dtype"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_engine_is_loaded_as_the_settings_say(tiny, caplog, setting, dtype):
    caplog.set_level(logging.INFO, logger="hunyuan")
    engine = NativeEngine.load(tiny, Settings(device="cpu", dtype=setting))
    assert (engine.checkpoint.model.device, engine.checkpoint.model.dtype) == (CPU, dtype)
    assert any(message.startswith(f"device cpu, dtype {dtype}, weights bf16") for message in caplog.messages)
    assert any(message.startswith("mixture of experts: eager (not flashinfer") for message in caplog.messages)


@pytest.mark.parametrize(("setting", "on_cpu"), [("auto", False), ("cpu", True)])
def test_noise_device(tiny, setting, on_cpu):
    assert NativeEngine.load(tiny, Settings(device="cpu", noise_device=setting)).noise_on_cpu is on_cpu


@pytest.mark.usefixtures("no_weights")
def test_missing_default_preset_names_file_and_constant(broken):
    path = broken / "system_prompt.py"
    path.write_text(path.read_text().replace("unified_system_prompt_en", "another_name"))
    message = refused(broken)
    assert "system_prompt.py" in message
    assert message.endswith("has no constant unified_system_prompt_en")


@pytest.mark.usefixtures("no_weights")
def test_missing_prompt_file_names_file_and_constant(broken):
    (broken / "system_prompt.py").unlink()
    message = refused(broken)
    assert "system_prompt.py" in message
    assert message.endswith("en_unified is read from it")


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json"])
def test_missing_small_file_is_named_before_the_weights_are_read(broken, name):
    (broken / name).unlink()
    assert name in refused(broken)


def test_prompt_file_is_not_executed(broken):
    path = broken / "system_prompt.py"
    path.write_text(path.read_text() + "\nraise SystemExit('executed')\n")
    NativeEngine.load(broken, Settings(device="cpu"))


# --- two copies


def two_gpus(asked: str) -> Choice:
    """The real model on two H100."""
    config = CheckpointConfig.from_dict(full_size_config(experts="bf16"))
    return choose(config, asked, "bf16", [Gpu("H100", int(79.6 * GIB))] * 2)


@pytest.mark.parametrize(("asked", "copies"), [("auto", False), ("fp8", False), ("4bit", True)])
def test_a_second_copy_is_made_where_the_plan_has_one(monkeypatch, caplog, asked, copies):
    caplog.set_level(logging.INFO, logger="hunyuan")
    made, waited = [], []
    monkeypatch.setattr(native, "copy_for_painting", lambda *args: made.append(args))
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    choice, model, second = two_gpus(asked), object(), torch.device("cuda", 1)
    native.second_copy(model, choice)
    assert made == [(model, choice.config, second)] * copies
    assert waited == [second] * copies
    assert len(caplog.messages) == copies
    placement = native.place(choice, CUDA)
    assert placement.is_split == (not copies)
    assert len(placement.layers) == 32


def test_an_engine_with_a_second_copy_prepares_and_uses_it(tiny, caplog):
    caplog.set_level(logging.INFO, logger="hunyuan")
    config = read_config(tiny)
    model = load_model(tiny, config, CPU, torch.float32)
    second = copy_for_painting(model, config, CPU)
    settings = Settings(device="cpu", router="bf16")
    engine = NativeEngine.assemble(model, native.read_small_files(tiny, config), "eager", settings, second=second)
    assert engine.checkpoint.second is second
    assert second.operations.router_dtype == model.operations.router_dtype == torch.bfloat16
    assert "guidance: the guided row on cpu, the unguided one on cpu" in caplog.messages
    ran: list[int] = []
    second.model.layers[0].register_forward_pre_hook(lambda _module, args: ran.append(len(args[0])))
    request = EditRequest("a boat", resolution="1:1", bot_task="image")
    engine.run(request, seed=0, steps=2, on_progress=None, cancel=None)
    assert ran == [1, 1, 1]  # what differs before the image, and two steps


# --- running


def run(monkeypatch: pytest.MonkeyPatch, golden_editor: Any, failure: Exception) -> Any:
    def fail(_job: object) -> None:
        raise failure

    monkeypatch.setattr(native.EditJob, "run", fail)
    return golden_editor.engine.run(EditRequest("a boat"), seed=0, steps=1, on_progress=None, cancel=None)


def test_device_out_of_memory_becomes_our_error(monkeypatch, golden_editor):
    with pytest.raises(OutOfMemory, match="smaller resolution") as caught:
        run(monkeypatch, golden_editor, torch.cuda.OutOfMemoryError("CUDA out of memory"))
    assert caught.value.status == 503
    assert isinstance(caught.value.__cause__, torch.cuda.OutOfMemoryError)


def test_other_failures_pass_through(monkeypatch, golden_editor):
    with pytest.raises(RuntimeError, match="shapes") as caught:
        run(monkeypatch, golden_editor, RuntimeError("shapes do not match"))
    assert not isinstance(caught.value, OutOfMemory)


@pytest.mark.parametrize(("batch", "rows"), [(1, 0), (4, 4)])
def test_the_plan_reserves_rows_for_texts_together(batch: int, rows: int) -> None:
    config = CheckpointConfig.from_dict(full_size_config(32, "bf16", "bf16"))
    gpus = [Gpu("H100", int(79.6 * GIB))]
    choice = native.choose_weights(config, Settings(text_batch=batch), gpus, torch.bfloat16)
    assert choice.plan is not None
    assert (choice.weights, choice.plan.work.texts) == ("4bit", rows)
