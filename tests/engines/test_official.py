"""The official engine against small remote-code checkpoints that behave like the official one."""

from __future__ import annotations

import copy
import gc
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from official_checkpoint import GENERATION_CONFIG, write_checkpoint
from PIL import Image

from hunyuan.engines import official_loading
from hunyuan.engines.official import OfficialEngine, official_size
from hunyuan.errors import (
    Cancelled,
    CheckpointError,
    DeadlineExceeded,
    InferenceFailed,
    InvalidImage,
    InvalidRequest,
    OutOfMemory,
    SettingsError,
)
from hunyuan.requests import CancelToken, EditRequest, EditResult
from hunyuan.settings import Settings

CPU = {"device": "cpu"}


@pytest.fixture(scope="module", autouse=True)
def _own_module_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Remote code is copied to, and imported from, a folder of this test run."""
    cache = str(tmp_path_factory.mktemp("hf_modules"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", cache)
        patch.setattr(sys, "path", [*sys.path])
        _forget_remote_modules()
        yield
        _forget_remote_modules()


def _forget_remote_modules() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> OfficialEngine:
    folder = write_checkpoint(tmp_path_factory.mktemp("shared") / "checkpoint")
    return OfficialEngine.load(folder, Settings(**CPU))


@pytest.fixture
def engine(shared: OfficialEngine) -> Iterator[OfficialEngine]:
    """The shared engine; every test proves on the way out that its requests left nothing behind."""
    model = shared.model
    parts = [model, model.model, model.cached_rope, model.image_processor]
    before = [_attributes(part) for part in parts]
    config = copy.deepcopy(model.generation_config.to_dict())
    yield shared
    assert model.generation_config.to_dict() == config
    assert [_attributes(part) for part in parts] == before
    assert not model._forward_pre_hooks
    assert not model._forward_hooks


def _attributes(part: Any) -> dict[str, int]:
    return {name: id(value) for name, value in vars(part).items()}


def run(engine: OfficialEngine, *, seed: int = 7, steps: int = 3, **fields: Any) -> EditResult:
    return engine.run(EditRequest(**{"prompt": "make it blue", **fields}), seed=seed, steps=steps)


def facts(result: EditResult) -> dict[str, Any]:
    return result.image.info["facts"]


def same(one: EditResult, other: EditResult) -> bool:
    return one.cot_text == other.cot_text and one.image.tobytes() == other.image.tobytes()


# --- a plain request ---


def test_an_edit_gives_the_picture_the_text_and_what_was_used(engine: OfficialEngine, tmp_path: Path) -> None:
    path = tmp_path / "input.png"
    Image.new("RGBA", (32, 16)).save(path)
    result = run(engine, images=[path, str(path), Image.new("L", (16, 16))])
    assert result.image.mode == "RGB"
    assert result.size == result.image.size == (64, 128)
    assert (result.seed, result.steps, result.tokens) == (7, 3, 7)
    assert result.cot_text is not None
    assert result.cot_text.startswith("<think>")
    assert facts(result)["images"] == ["RGB", "RGB", "RGB"]
    assert facts(result)["align"] is True
    assert facts(result)["system"] == ("en_unified", None)


def test_fields_pass_through(engine: OfficialEngine) -> None:
    fields = {"use_system_prompt": "custom", "system_prompt": "be brief", "infer_align_image_size": False}
    result = run(engine, bot_task="think", resolution="96x64", max_new_tokens=4, **fields)
    assert facts(result)["system"] == ("custom", "be brief")
    assert facts(result)["task"] == "think"
    assert facts(result)["align"] is False
    assert result.tokens == 4


def test_the_authors_arguments_reach_the_model(engine: OfficialEngine) -> None:
    config = engine.model.config
    assert (config.moe_impl, config.moe_drop_tokens) == ("eager", True)
    assert config._attn_implementation == "sdpa"
    assert engine.model.dtype == torch.float32
    assert engine.model._tokenizer is not None


# --- generation_config ---


@pytest.mark.trap(1)
def test_steps_take_effect_for_one_request(engine: OfficialEngine) -> None:
    assert facts(run(engine, steps=4))["steps"] == 4
    assert facts(run(engine, steps=2))["steps"] == 2
    assert engine.model.generation_config.diff_infer_steps == 50


@pytest.mark.trap(1)
def test_guidance_takes_effect_and_defaults_to_the_checkpoints(engine: OfficialEngine) -> None:
    assert facts(run(engine, guidance_scale=4.0))["guidance"] == 4.0
    assert facts(run(engine))["guidance"] == GENERATION_CONFIG["diff_guidance_scale"]


@pytest.mark.trap(1)
def test_flow_shift_takes_effect_though_the_pipeline_freezes_it(engine: OfficialEngine) -> None:
    assert facts(run(engine))["shift"] == 3.0
    assert facts(run(engine, flow_shift=7.0))["shift"] == 7.0
    assert facts(run(engine))["shift"] == 3.0


def test_a_pipeline_that_was_there_before_is_neither_used_nor_lost(engine: OfficialEngine) -> None:
    pipeline = engine.model.pipeline
    assert facts(run(engine, flow_shift=7.0))["shift"] == 7.0
    assert engine.model._pipeline is pipeline
    engine.model._pipeline = None


@pytest.mark.parametrize("bot_task", ["think_recaption", "image"])
def test_sampling_fields_take_effect_and_never_raise(engine: OfficialEngine, bot_task: Any) -> None:
    result = run(engine, bot_task=bot_task, do_sample=False, temperature=0.9, top_k=5, top_p=0.5)
    if bot_task == "image":  # the ratio path, where the official code raises on do_sample as an argument
        assert facts(result)["ratio_path"] == ["do_sample"]
    else:
        assert facts(result)["sampling"] == (False, 0.9, 5, 0.5)
        assert facts(run(engine))["sampling"] == (True, 0.6, 1024, 0.95)


def test_drop_think_takes_effect(engine: OfficialEngine) -> None:
    dropped = run(engine, drop_think=True)
    assert dropped.cot_text is not None
    assert "<think>" not in dropped.cot_text
    assert facts(dropped)["system_after"] == "en_recaption"
    assert "<think>" in str(run(engine).cot_text)


@pytest.mark.parametrize("prompt", ["out of memory", "fail"])
def test_the_config_is_restored_after_an_error(engine: OfficialEngine, prompt: str) -> None:
    before = engine.model.generation_config
    with pytest.raises((OutOfMemory, InferenceFailed)):
        run(engine, prompt=prompt, guidance_scale=4.0, flow_shift=7.0, do_sample=False)
    assert engine.model.generation_config is before


# --- seeds ---


@pytest.mark.trap(2)
def test_one_seed_decides_everything(engine: OfficialEngine) -> None:
    one = run(engine, seed=5)
    torch.manual_seed(99)
    random.seed(99)
    two = run(engine, seed=5)
    assert same(one, two)
    assert facts(one)["seed"] == 5
    assert facts(one) == facts(two)  # the text stage's posterior among them
    other = run(engine, seed=6)
    for key in ("text_posterior", "text", "state"):
        assert facts(other)[key] != facts(one)[key]


def test_a_seed_of_63_bits(engine: OfficialEngine) -> None:
    assert run(engine, seed=2**63 - 1).seed == 2**63 - 1


@pytest.mark.parametrize("prompt", ["make it blue", "fail"])
def test_the_process_wide_generators_go_on_undisturbed(engine: OfficialEngine, prompt: str) -> None:
    def draw() -> tuple[float, float]:
        return random.random(), float(torch.rand(1))

    random.seed(1)
    torch.manual_seed(1)
    expected = draw()
    random.seed(1)
    torch.manual_seed(1)
    if prompt == "fail":
        with pytest.raises(InferenceFailed):
            run(engine, prompt=prompt)
    else:
        run(engine)
    assert draw() == expected


# --- sizes ---


@pytest.mark.trap(5)
@pytest.mark.parametrize(
    ("resolution", "official"), [("auto", "auto"), ("1280x720", "720x1280"), ("16:9", "16:9"), ("512x512", "512x512")]
)
def test_size_strings(resolution: str, official: str) -> None:
    assert official_size(resolution) == official


@pytest.mark.trap(5)
@pytest.mark.parametrize(("resolution", "size"), [("auto", (64, 128)), ("96x64", (96, 64)), ("4:3", (64, 48))])
def test_width_comes_first(engine: OfficialEngine, resolution: str, size: tuple[int, int]) -> None:
    assert run(engine, resolution=resolution).size == size


@pytest.mark.trap(3)
@pytest.mark.parametrize(
    ("images", "size"),
    [([], (96, 96)), ([Image.new("RGB", (40, 20))], (128, 64)), ([Image.new("RGB", (20, 40))], (64, 128))],
)
def test_without_a_ratio_token_the_first_image_decides(
    engine: OfficialEngine, images: list[Image.Image], size: tuple[int, int]
) -> None:
    result = run(engine, images=images, max_new_tokens=3)
    assert result.size == size
    assert result.tokens == 3  # the text was not decoded a second time
    full, cut = str(run(engine, images=images).cot_text), str(result.cot_text)
    assert full.startswith(cut.split("</think>", maxsplit=1)[0])


def test_the_fallback_reads_files_with_their_exif_rotation(engine: OfficialEngine, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    assert run(engine, images=[tmp_path / "turned.jpg"], max_new_tokens=3).size == (64, 128)


def test_without_the_official_method_running_out_is_a_failure(engine: OfficialEngine) -> None:
    official = type(engine.model)._get_ratio_index_from_token
    del type(engine.model)._get_ratio_index_from_token
    try:
        with pytest.raises(InferenceFailed, match="AttributeError"):
            run(engine, max_new_tokens=3)
    finally:
        type(engine.model)._get_ratio_index_from_token = official


# --- a text that is given ---


def test_a_given_text_replaces_the_text_stage(engine: OfficialEngine) -> None:
    result = run(engine, cot_text="<recaption>mine</recaption>", resolution="96x64")
    assert result.cot_text == "<recaption>mine</recaption>"
    assert facts(result)["text"] == "<recaption>mine</recaption>"
    assert result.tokens == 0
    assert result.timings["prefill"] == result.timings["think"] == 0
    assert run(engine, cot_text="mine").tokens == 1  # the ratio


@pytest.mark.parametrize(
    ("bot_task", "system_prompt", "expected"),
    [
        ("think", None, "en_think_recaption"),
        ("recaption", None, "en_recaption"),
        ("think_recaption", "mine", "custom"),
        ("think_recaption", None, "None"),
        ("image", None, "dynamic"),
    ],
)
def test_dynamic_system_prompt_with_a_given_text(
    engine: OfficialEngine, bot_task: Any, system_prompt: str | None, expected: str
) -> None:
    fields = {"use_system_prompt": "dynamic", "system_prompt": system_prompt}
    result = run(engine, cot_text="mine", bot_task=bot_task, **fields)
    assert facts(result)["system"] == (expected, system_prompt)
    assert facts(result)["task"] == "image"


def test_dynamic_system_prompt_without_one_is_the_official_codes_own(engine: OfficialEngine) -> None:
    assert facts(run(engine, use_system_prompt="dynamic"))["system"] == ("dynamic", None)


# --- nothing of a request stays ---


@pytest.mark.trap(16)
def test_requests_do_not_see_each_other(engine: OfficialEngine) -> None:
    plain: dict[str, Any] = {"resolution": "96x64"}
    busy: dict[str, Any] = {"step_cache": "taylor", "flow_shift": 7.0, "guidance_scale": 4.0, "drop_think": True}
    alone = [facts(run(engine, **plain)), facts(run(engine, **busy))]
    assert facts(run(engine, **busy)) == alone[1]
    assert facts(run(engine, **plain)) == alone[0]
    assert alone[0]["leftover"] == (None, False, False)
    assert alone[0]["pictures"] == 1


@pytest.mark.trap(16)
def test_the_taylor_cache_of_one_request_is_not_the_next_ones(engine: OfficialEngine) -> None:
    one, two = run(engine, step_cache="taylor"), run(engine, step_cache="taylor")
    assert facts(one)["state"] == facts(two)["state"]
    assert facts(one)["state"] != facts(run(engine))["state"]
    assert not hasattr(engine.model.model, "counter")


@pytest.mark.parametrize("prompt", ["out of memory", "fail"])
def test_a_failed_request_leaves_nothing(engine: OfficialEngine, prompt: str) -> None:
    with pytest.raises((OutOfMemory, InferenceFailed)):
        run(engine, prompt=prompt)
    assert facts(run(engine))["leftover"] == (None, False, False)


# --- cancelling, progress, timings ---


def test_progress_and_timings(engine: OfficialEngine) -> None:
    seen: list[tuple[str, int, int]] = []
    started = time.perf_counter()
    result = engine.run(
        EditRequest(prompt="p", max_new_tokens=50), seed=1, steps=2, on_progress=lambda *event: seen.append(event)
    )
    elapsed = time.perf_counter() - started
    assert seen == [
        *[("prefill", 0, 1), ("prefill", 1, 1)],
        *[("think", done, 50) for done in range(2, 8)],
        *[("denoise", 1, 2), ("denoise", 2, 2)],
        *[("vae", 0, 1), ("vae", 1, 1)],
    ]
    assert list(result.timings) == ["prepare", "prefill", "think", "first_step", "denoise", "vae", "total"]
    assert all(seconds > 0 for seconds in result.timings.values())
    parts = sum(seconds for name, seconds in result.timings.items() if name != "total")
    assert parts == pytest.approx(result.timings["total"])
    assert result.timings["total"] <= elapsed


@pytest.mark.parametrize("event", [("prefill", 1, 1), ("think", 3, 2048), ("denoise", 1, 3)])
def test_cancelling_stops_before_the_next_token_or_step(engine: OfficialEngine, event: tuple[str, int, int]) -> None:
    token, seen = CancelToken(), []

    def on_progress(*now: Any) -> None:
        seen.append(now)
        if now == event:
            token.cancel()

    with pytest.raises(Cancelled):
        engine.run(EditRequest(prompt="p"), seed=1, steps=3, on_progress=on_progress, cancel=token)
    assert seen[-1] == event


def test_a_passed_deadline_stops_before_anything_starts(engine: OfficialEngine) -> None:
    seen: list[Any] = []
    with pytest.raises(DeadlineExceeded):
        engine.run(
            EditRequest(prompt="fail"),  # had it started
            seed=1,
            steps=3,
            on_progress=lambda *event: seen.append(event),
            cancel=CancelToken(deadline=time.monotonic() - 1),
        )
    assert not seen


def test_a_deadline_during_the_steps(engine: OfficialEngine) -> None:
    def on_progress(stage: str, done: int, total: int) -> None:
        if stage == "denoise":
            token.deadline = time.monotonic()

    token = CancelToken()
    with pytest.raises(DeadlineExceeded):
        engine.run(EditRequest(prompt="p"), seed=1, steps=3, on_progress=on_progress, cancel=token)


# --- errors ---


def test_out_of_memory_has_its_own_error(engine: OfficialEngine) -> None:
    with pytest.raises(OutOfMemory) as caught:
        run(engine, prompt="out of memory")
    cause = caught.value.__cause__
    assert isinstance(cause, torch.OutOfMemoryError)
    frame = cause.__traceback__
    while frame is not None:  # nothing of the request is kept alive by the error
        assert frame.tb_frame.f_code.co_name != "generate_image" or not frame.tb_frame.f_locals
        frame = frame.tb_next


def test_other_failures_tell_the_type_but_not_the_prompt(engine: OfficialEngine) -> None:
    with pytest.raises(InferenceFailed, match="KeyError") as caught:
        run(engine, prompt="fail: a secret")
    assert "secret" not in str(caught.value)
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_picture_that_cannot_be_read(engine: OfficialEngine, tmp_path: Path) -> None:
    with pytest.raises(InvalidImage):
        run(engine, images=[tmp_path / "missing.png"])


def test_requests_the_official_code_would_choke_on(engine: OfficialEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidRequest, match="step_cache"):
        run(engine, step_cache="other")
    with pytest.raises(InvalidRequest, match="guidance_scale"):
        run(engine, guidance_scale=1.0)
    monkeypatch.setattr(engine.model.config, "cfg_distilled", True)
    assert facts(run(engine, guidance_scale=1.0))["guidance"] == 1.0


# --- loading ---


@pytest.mark.trap(11)
def test_a_dot_in_the_folder_name(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "HunyuanImage-3.0-Instruct.v1")
    engine = OfficialEngine.load(folder, Settings(**CPU))
    assert run(engine).size == (64, 128)
    assert Path(engine.model.config._name_or_path).name.isidentifier()
    assert type(engine.model).__module__.split(".")[1].startswith("checkpoint_")


def test_two_checkpoints_of_one_name_do_not_mix(tmp_path: Path) -> None:
    folders = [write_checkpoint(tmp_path / flavour / "same", flavour=flavour) for flavour in ("sweet", "sour")]
    engines = [OfficialEngine.load(folder, Settings(**CPU)) for folder in folders]
    assert [facts(run(engine))["flavour"] for engine in engines] == ["sweet", "sour"]


def test_code_that_was_replaced_is_read_again(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "c", flavour="old")
    assert facts(run(OfficialEngine.load(folder, Settings(**CPU))))["flavour"] == "old"
    (folder / "flavour.py").write_text('FLAVOUR = "new"\n')
    assert facts(run(OfficialEngine.load(folder, Settings(**CPU))))["flavour"] == "new"


def test_the_private_folder_is_removed_and_the_checkpoint_is_not(tmp_path: Path) -> None:
    cache = tmp_path / "not" / "there" / "yet"
    folder = write_checkpoint(tmp_path / "c")
    engine = OfficialEngine.load(folder, Settings(cache_dir=cache, **CPU))
    assert len(list(cache.iterdir())) == 1
    del engine
    gc.collect()
    assert not list(cache.iterdir())
    assert (folder / "model.safetensors").is_file()


def test_a_failed_load_leaves_no_private_folder(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "c")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="FileNotFoundError"):
        OfficialEngine.load(folder, Settings(cache_dir=tmp_path / "cache", **CPU))
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.trap(12)
@pytest.mark.parametrize("version", ["5.0.0", "4.56.2", "4.570.1"])
def test_another_transformers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(official_loading.transformers, "__version__", version)
    with pytest.raises(SettingsError, match=rf"4\.57\.x.*{version}"):
        OfficialEngine.load(write_checkpoint(tmp_path / "c"), Settings(**CPU))


def test_accelerate_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match="accelerate"):
        OfficialEngine.load(write_checkpoint(tmp_path / "c"), Settings(**CPU))


def test_a_package_the_remote_code_needs(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "c")
    (folder / "flavour.py").write_text("import a_package_nobody_has\nFLAVOUR = 1\n")
    with pytest.raises(SettingsError, match="a_package_nobody_has"):
        OfficialEngine.load(folder, Settings(**CPU))


@pytest.mark.parametrize(
    "name",
    ["config.json", "generation_config.json", "modeling_hunyuan_image_3.py", "configuration_hunyuan_image_3.py"],
)
def test_missing_files_are_named(tmp_path: Path, name: str) -> None:
    folder = write_checkpoint(tmp_path / "c")
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        OfficialEngine.load(folder, Settings(**CPU))


def test_a_config_without_auto_map(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "c", auto_map={})
    with pytest.raises(CheckpointError, match=r"auto_map\.AutoModelForCausalLM"):
        OfficialEngine.load(folder, Settings(**CPU))
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="no valid JSON"):
        OfficialEngine.load(folder, Settings(**CPU))


@pytest.mark.parametrize(
    ("settings", "variable"),
    [
        ({"weights": "fp8"}, "HUNYUAN_WEIGHTS"),
        ({"dense": "fp8"}, "HUNYUAN_DENSE"),
        ({"attention": "fp8"}, "HUNYUAN_ATTENTION"),
        ({"router": "bf16"}, "HUNYUAN_ROUTER"),
        ({"moe_impl": "torch"}, "HUNYUAN_MOE_IMPL"),
        ({"moe_impl": "flashinfer"}, "HUNYUAN_MOE_IMPL"),
    ],
)
def test_settings_it_cannot_honour(tmp_path: Path, settings: dict[str, Any], variable: str) -> None:
    with pytest.raises(SettingsError, match=variable):
        OfficialEngine.load(write_checkpoint(tmp_path / "c"), Settings(**CPU, **settings))


def test_cuda_is_refused_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingsError, match="HUNYUAN_DEVICE"):
        OfficialEngine.load(write_checkpoint(tmp_path / "c"), Settings(device="cuda"))


@pytest.mark.parametrize(
    ("settings", "moe_impl", "dtype"),
    [({}, "flashinfer", "auto"), ({"moe_impl": "eager", "dtype": "bfloat16"}, "eager", torch.bfloat16)],
)
def test_the_arguments_on_cuda(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], moe_impl: str, dtype: Any
) -> None:
    asked: dict[str, Any] = {}

    def from_pretrained(folder: str, **arguments: Any) -> Any:
        asked.update(arguments)
        raise torch.OutOfMemoryError("too big")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(official_loading.transformers.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    with pytest.raises(OutOfMemory):
        OfficialEngine.load(write_checkpoint(tmp_path / "c"), Settings(**settings))
    assert asked == {
        "attn_implementation": "sdpa",
        "moe_impl": moe_impl,
        "moe_drop_tokens": True,
        "device_map": "auto",
        "torch_dtype": dtype,
        "trust_remote_code": True,
    }


def test_noise_on_the_cpu_is_refused_on_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(SettingsError, match="HUNYUAN_NOISE_DEVICE"):
        OfficialEngine.load(write_checkpoint(tmp_path / "c"), Settings(noise_device="cpu"))


def test_a_request_is_not_changed(engine: OfficialEngine) -> None:
    request = EditRequest(prompt="p", images=[Image.new("RGB", (16, 16))])
    before = replace(request)
    engine.run(request, seed=1, steps=2)
    assert request == before
