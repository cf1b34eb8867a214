"""The editor: which requests it takes, what it fills in, which engine and checkpoint it loads, whole small edits."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hunyuan import Editor, EditRequest, Settings
from hunyuan.checkpoint import builtin, identity
from hunyuan.checkpoint.tiny import write_tiny_checkpoint
from hunyuan.checkpoint.tiny_config import TinyShape
from hunyuan.demo import ABOUT
from hunyuan.editor import MAX_SEED
from hunyuan.engines.native import NativeEngine
from hunyuan.engines.official import OfficialEngine
from hunyuan.errors import CheckpointError, InvalidImage, InvalidPrompt, InvalidRequest, SettingsError
from hunyuan.model.vae import Posterior
from hunyuan.requests import CancelToken, EditResult
from hunyuan.validation import validate

PICTURE = Image.new("RGB", (64, 64), (200, 100, 50))
SETTINGS = Settings(prompt_max_chars=50)


class RecordingEngine:
    """Computes nothing and remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def run(self, request: EditRequest, **settled: Any) -> EditResult:
        self.calls.append({"request": request, **settled})
        timings = {"prefill": 0.125, "total": 2.5}
        return EditResult(
            PICTURE, "<think>a secret</think>", settled["seed"], PICTURE.size, settled["steps"], 7, timings
        )


@pytest.fixture
def engine() -> RecordingEngine:
    return RecordingEngine()


@pytest.fixture
def editor(engine: RecordingEngine) -> Editor:
    return Editor(engine, SETTINGS, "name", default_steps=11)


@pytest.fixture
def quick(golden_editor: Editor, monkeypatch: pytest.MonkeyPatch) -> Editor:
    """The golden checkpoint with something quick in the place of the autoencoder, most of a tiny edit's time."""
    model = golden_editor.engine.checkpoint.model

    def encode(pixels: torch.Tensor) -> Posterior:
        mean = torch.nn.functional.avg_pool2d(pixels, 16)[:, :1, None].expand(-1, 8, -1, -1, -1)
        return Posterior(mean, torch.zeros_like(mean))

    def decode(latents: torch.Tensor) -> torch.Tensor:
        return torch.tanh(latents[:, :3]).repeat_interleave(16, dim=-1).repeat_interleave(16, dim=-2)

    monkeypatch.setattr(model, "encode_image", encode)
    monkeypatch.setattr(model, "decode_image", decode)
    return golden_editor


def edit(**changes: Any) -> EditRequest:
    base: dict[str, Any] = {"seed": 3, "steps": 1, "bot_task": "image", "resolution": "256x256"}
    return EditRequest(**{"prompt": "Make the sky orange", **base, **changes})


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and one.tobytes() == other.tobytes()


# --- texts of several edits together


class SharingRecorder(RecordingEngine):
    """Gives back what it was asked to begin."""

    text_places = 3

    def begin(self, request: EditRequest, **settled: Any) -> Any:
        return {"request": request, **settled}

    def finish(self, job: Any) -> EditResult:
        return super().run(job["request"], seed=job["seed"], steps=job["steps"])


def test_an_edit_that_is_begun_is_checked_and_filled_in_like_any_other() -> None:
    editor = Editor(SharingRecorder(), SETTINGS, "name", default_steps=11)
    assert editor.text_places == 3
    token = CancelToken()
    begun: Any = editor.begin(EditRequest("x"), cancel=token)
    assert begun["steps"] == 11
    assert 0 <= begun["seed"] <= MAX_SEED
    assert begun["cancel"] is token
    result = editor.finish(begun)
    assert (result.seed, result.steps) == (begun["seed"], 11)
    with pytest.raises(InvalidPrompt):
        editor.begin(EditRequest("x" * 51))


def test_an_engine_that_decodes_each_text_alone_begins_none(editor: Editor) -> None:
    assert editor.text_places == 0
    with pytest.raises(RuntimeError, match="each text alone"):
        editor.begin(EditRequest("x"))


def test_the_official_engine_refuses_to_decode_texts_together(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "tiny")
    with pytest.raises(SettingsError, match="HUNYUAN_TEXT_BATCH: the official engine"):
        Editor.load(Settings(model_id=folder, engine="official", text_batch=2))


@pytest.mark.slow
def test_texts_together_give_the_pictures_that_each_has_alone(golden: Path) -> None:
    """As the service runs them, on a CPU."""
    settings = Settings(model_id=golden / "checkpoint", device="cpu", text_batch=2)
    editor = Editor.load(settings)
    assert editor.text_places == 2
    requests = [EditRequest(f"A {n} boat", seed=n, steps=1, max_new_tokens=12, resolution="1:1") for n in range(2)]
    begun = [editor.begin(request) for request in requests]
    assert editor.text_places == 0
    assert all(text.thinking for text in begun)
    together = [editor.finish(text) for text in begun]
    assert editor.text_places == 2
    for result, request in zip(together, requests, strict=True):
        alone = editor.run(request)
        assert same(result.image, alone.image)
        assert result.cot_text == alone.cot_text


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, "seed: got -1; allowed is a whole number from 0 to 9223372036854775807"),
        ({"seed": 2**63}, "seed: got 9223372036854775808; allowed is a whole number from 0 to 9223372036854775807"),
        ({"seed": True}, "seed: got True; allowed is a whole number from 0 to 9223372036854775807"),
        ({"seed": 1.0}, "seed: got 1.0; allowed is a whole number from 0 to 9223372036854775807"),
        ({"seed": "1"}, "seed: got '1'; allowed is a whole number from 0 to 9223372036854775807"),
        ({"steps": 0}, "steps: got 0; allowed is a whole number from 1 to 100"),
        ({"steps": -5}, "steps: got -5; allowed is a whole number from 1 to 100"),
        ({"steps": 101}, "steps: got 101; allowed is a whole number from 1 to 100"),
        ({"steps": True}, "steps: got True; allowed is a whole number from 1 to 100"),
        ({"steps": 8.0}, "steps: got 8.0; allowed is a whole number from 1 to 100"),
        ({"max_new_tokens": 0}, "max_new_tokens: got 0; allowed is a whole number from 1 to 1048576"),
        ({"max_new_tokens": 2**20 + 1}, "max_new_tokens: got 1048577; allowed is a whole number from 1 to 1048576"),
        ({"max_new_tokens": 10.5}, "max_new_tokens: got 10.5; allowed is a whole number from 1 to 1048576"),
        ({"top_k": -1}, "top_k: got -1; allowed is a whole number from 0 to 2147483648"),
        ({"top_k": False}, "top_k: got False; allowed is a whole number from 0 to 2147483648"),
        ({"guidance_scale": -0.1}, "guidance_scale: got -0.1; allowed is a number from 0 to 100"),
        ({"guidance_scale": 100.5}, "guidance_scale: got 100.5; allowed is a number from 0 to 100"),
        ({"guidance_scale": True}, "guidance_scale: got True; allowed is a number from 0 to 100"),
        ({"guidance_scale": "5"}, "guidance_scale: got '5'; allowed is a number from 0 to 100"),
        ({"guidance_scale": float("nan")}, "guidance_scale: got nan; allowed is a number from 0 to 100"),
        ({"guidance_scale": float("inf")}, "guidance_scale: got inf; allowed is a number from 0 to 100"),
        ({"flow_shift": 0}, "flow_shift: got 0; allowed is a number from 0.01 to 100"),
        ({"flow_shift": float("nan")}, "flow_shift: got nan; allowed is a number from 0.01 to 100"),
        ({"temperature": 0.0}, "temperature: got 0.0; allowed is a number from 0.01 to 100"),
        ({"temperature": -1}, "temperature: got -1; allowed is a number from 0.01 to 100"),
        ({"top_p": 1.01}, "top_p: got 1.01; allowed is a number from 0.0 to 1.0"),
        ({"top_p": -0.5}, "top_p: got -0.5; allowed is a number from 0.0 to 1.0"),
        ({"bot_task": "auto"}, "bot_task: got 'auto'; allowed are image, think, recaption, think_recaption"),
        ({"bot_task": None}, "bot_task: got None; allowed are image, think, recaption, think_recaption"),
        (
            {"use_system_prompt": "none"},
            "use_system_prompt: got 'none'; allowed are None, en_unified, en_vanilla, en_recaption, "
            "en_think_recaption, dynamic, custom",
        ),
        ({"step_cache": "tea"}, "step_cache: got 'tea'; allowed are taylor, spectrum"),
        ({"resolution": "big"}, "resolution: got 'big'; allowed are auto, WIDTHxHEIGHT (1024x768) and W:H (4:3)"),
        ({"resolution": "900x100"}, "resolution: got 900x100, a ratio of 9.0:1; at most 8:1 is allowed"),
    ],
)
def test_a_field_out_of_bounds_names_itself_what_came_and_what_is_allowed(
    editor: Editor, engine: RecordingEngine, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        editor.run(EditRequest("a", **changes))
    assert str(caught.value) == message
    assert caught.value.field == next(iter(changes))
    assert (caught.value.status, caught.value.code) == (400, "invalid_field")
    assert engine.calls == []


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "it is blank; allowed are 1 to 50 characters, not only blanks"),
        (" \n\t\u3000", "it is blank; allowed are 1 to 50 characters, not only blanks"),
        (None, "got NoneType; allowed are 1 to 50 characters, not only blanks"),
        (b"bytes", "got bytes; allowed are 1 to 50 characters, not only blanks"),
        ("x" * 51, "it has 51 characters; allowed are 1 to 50 characters, not only blanks"),
    ],
)
def test_a_prompt_out_of_bounds(editor: Editor, prompt: Any, message: str) -> None:
    with pytest.raises(InvalidPrompt) as caught:
        editor.run(EditRequest(prompt))
    assert str(caught.value) == f"prompt: {message}"
    assert (caught.value.field, caught.value.code) == ("prompt", "invalid_prompt")


def test_more_than_three_images_are_refused(editor: Editor) -> None:
    with pytest.raises(InvalidImage, match=r"^images: got 4 images; 0 to 3 are allowed$") as caught:
        editor.run(EditRequest("a", images=[PICTURE] * 4))
    assert caught.value.code == "invalid_image"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prompt": "x" * 50},
        {"prompt": "ä" * 50},
        {"images": [PICTURE] * 3},
        {"images": (PICTURE, "path", Path("path"))},
        {"seed": 0},
        {"seed": 2**63 - 1},
        {"steps": 1},
        {"steps": 100},
        {"max_new_tokens": 1},
        {"top_k": 0},
        {"guidance_scale": 0},
        {"guidance_scale": 100},
        {"flow_shift": 0.01},
        {"temperature": 0.01},
        {"top_p": 0.0},
        {"top_p": 1},
        {"resolution": "16:9"},
        {"cot_text": ""},
        *({"bot_task": task} for task in ("image", "think", "recaption", "think_recaption")),
        *({"use_system_prompt": c} for c in ("None", "en_unified", "en_vanilla", "dynamic", "custom")),
    ],
)
def test_the_bounds_themselves_are_fine(changes: dict[str, Any]) -> None:
    validate(EditRequest(**{"prompt": "a", **changes}), SETTINGS)


def test_the_default_bound_of_a_prompt_is_4000_characters() -> None:
    validate(EditRequest("x" * 4000), Settings())
    with pytest.raises(InvalidPrompt, match="it has 4,001 characters; allowed are 1 to 4,000"):
        validate(EditRequest("x" * 4001), Settings())


# --- what is filled in


def test_a_request_goes_to_the_engine_as_it_is(editor: Editor, engine: RecordingEngine) -> None:
    request, cancel = edit(images=[PICTURE], seed=5, steps=4), CancelToken()
    before = replace(request)

    def on_progress(stage: str, done: int, total: int) -> None: ...

    def on_text(piece: str) -> None: ...

    def on_preview(done: int, picture: Image.Image) -> None: ...

    result = editor.run(request, on_progress, cancel, on_text, on_preview)
    callbacks = {"on_progress": on_progress, "cancel": cancel, "on_text": on_text, "on_preview": on_preview}
    assert engine.calls == [{"request": request, "seed": 5, "steps": 4, **callbacks}]
    assert engine.calls[0]["request"] is request
    assert request == before
    assert (result.seed, result.steps) == (5, 4)


def test_seed_zero_is_a_seed(editor: Editor) -> None:
    assert editor.run(EditRequest("a", seed=0)).seed == 0


@pytest.mark.trap(2)
def test_a_seed_that_is_not_given_is_drawn_and_told(editor: Editor, engine: RecordingEngine) -> None:
    told = [editor.run(EditRequest("a")).seed for _ in range(40)]
    assert told == [call["seed"] for call in engine.calls]
    assert len(set(told)) == 40
    assert all(0 <= seed <= MAX_SEED for seed in told)
    assert max(told) > 2**60  # all 63 bits are used; each seed is below that with a chance of one in eight
    assert engine.calls[0]["request"].seed is None  # the caller's request stays as it was


@pytest.mark.trap(1)
def test_steps_of_a_request_win_over_the_default(editor: Editor, engine: RecordingEngine) -> None:
    assert editor.run(EditRequest("a", steps=8)).steps == 8
    assert editor.run(EditRequest("a")).steps == 11
    assert [call["steps"] for call in engine.calls] == [8, 11]


def test_defaults_of_a_request_are_the_public_ones() -> None:
    names = [field.name for field in fields(EditRequest)]
    values = vars(EditRequest("a"))
    assert names[:5] == ["prompt", "images", "seed", "steps", "resolution"]
    given = {name: value for name, value in values.items() if value is not None}
    assert given == {
        "prompt": "a",
        "images": (),
        "resolution": "auto",
        "bot_task": "think_recaption",
        "use_system_prompt": "en_unified",
        "infer_align_image_size": True,
        "max_new_tokens": 2048,
        "previews": 0,
    }


# --- generate_image


def test_generate_image_hands_everything_on(editor: Editor, engine: RecordingEngine) -> None:
    image = editor.generate_image(
        "a",
        ["one.png", PICTURE],
        seed=9,
        image_size="4:3",
        use_system_prompt="dynamic",
        bot_task="recaption",
        infer_align_image_size=False,
        diff_infer_steps=3,
    )
    assert image is PICTURE
    assert engine.calls[0]["request"] == EditRequest(
        "a",
        images=["one.png", PICTURE],
        seed=9,
        steps=3,
        resolution="4:3",
        use_system_prompt="dynamic",
        bot_task="recaption",
        infer_align_image_size=False,
    )
    assert (engine.calls[0]["seed"], engine.calls[0]["steps"]) == (9, 3)


def test_generate_image_has_the_defaults_of_a_request(editor: Editor, engine: RecordingEngine) -> None:
    editor.generate_image("a")
    assert engine.calls[0]["request"] == EditRequest("a")
    assert engine.calls[0]["steps"] == 11


def test_generate_image_refuses_what_run_refuses(editor: Editor) -> None:
    with pytest.raises(InvalidRequest, match=r"^steps: got 0"):
        editor.generate_image("a", diff_infer_steps=0)


def test_verbose_logs_times_under_the_requests_id(editor: Editor, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        editor.generate_image("a hidden wish", verbose=1, request_id="id-17")
        editor.generate_image("a hidden wish", verbose=2)
    lines = [record.getMessage() for record in caplog.records if record.name == "hunyuan.editor"]
    assert lines == [
        "request id-17: size (64, 64), 7 tokens, prefill 0.125 s, total 2.500 s",
        "request -: size (64, 64), 7 tokens, prefill 0.125 s, total 2.500 s",
    ]
    assert "hidden" not in caplog.text
    assert "secret" not in caplog.text  # nor what the model thought about it


def test_without_verbose_nothing_is_logged(editor: Editor, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        editor.generate_image("a", request_id="id-17")
    assert caplog.records == []


def test_a_real_edit_logs_neither_prompt_nor_thought(quick: Editor, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        result = quick.run(edit(prompt="zebra", bot_task="recaption", max_new_tokens=4, do_sample=False))
        quick.generate_image("zebra", image_size="256x256", bot_task="image", seed=1, diff_infer_steps=1, verbose=2)
    assert result.cot_text is not None
    assert "size (256, 256), 0 tokens, prepare" in caplog.text
    assert "zebra" not in caplog.text
    assert result.cot_text.removeprefix("<recaption>").strip() not in caplog.text


# --- loading


@pytest.fixture(scope="module")
def distil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("distil") / "Tiny-Distil", TinyShape(distil=True))


def test_a_checkpoint_has_its_folders_name_and_28_steps(golden_editor: Editor) -> None:
    assert golden_editor.model_name == "checkpoint"
    assert golden_editor.notice is None
    assert golden_editor.default_steps == 28  # not generation_config's 50
    assert isinstance(golden_editor.engine, NativeEngine)


def test_the_name_is_the_folders_own_whatever_path_led_to_it(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NativeEngine, "load", classmethod(lambda cls, folder, settings: RecordingEngine()))
    (tmp_path / "link").symlink_to(golden / "checkpoint")
    assert Editor.load(Settings(model_id=tmp_path / "link")).model_name == "checkpoint"
    monkeypatch.chdir(golden / "checkpoint")
    assert Editor.load(Settings(model_id=Path())).model_name == "checkpoint"


@pytest.mark.trap(13)
def test_a_distil_checkpoint_takes_8_steps(distil: Path) -> None:
    assert Editor.load(Settings(model_id=distil, device="cpu")).default_steps == 8


@pytest.mark.parametrize(("own", "steps"), [(12, 12), (50, 28), (0, 28), ("9", 28)])
def test_a_checkpoint_that_wants_fewer_steps_than_28_takes_them(golden: Path, tmp_path: Path, own, steps) -> None:
    shutil.copytree(golden / "checkpoint", tmp_path / "c")
    path = tmp_path / "c" / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"diff_infer_steps": own}))
    assert Editor.load(Settings(model_id=tmp_path / "c", device="cpu")).default_steps == steps


@pytest.mark.parametrize("value", ["5", "100"])
def test_the_default_steps_of_the_settings_win(
    distil: Path, golden: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setattr(NativeEngine, "load", classmethod(lambda cls, folder, settings: RecordingEngine()))
    monkeypatch.setenv("HUNYUAN_DEFAULT_STEPS", value)
    for folder in (distil, golden / "checkpoint"):
        editor = Editor.load(Settings(model_id=folder))
        assert editor.default_steps == editor.run(EditRequest("a")).steps == int(value)


@pytest.mark.parametrize(("value", "warned"), [(None, False), ("8", False), ("28", True)])
def test_a_distil_checkpoint_with_more_steps_by_settings_is_warned_about(
    distil: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, value: str | None, warned: bool
) -> None:
    monkeypatch.setattr(NativeEngine, "load", classmethod(lambda cls, folder, settings: RecordingEngine()))
    with caplog.at_level(logging.INFO, "hunyuan.editor"):
        Editor.load(Settings(model_id=distil, default_steps=value))
    lines = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    text = "HUNYUAN_DEFAULT_STEPS=28 with a Distil checkpoint, which is made for 8 steps; leave the setting out"
    assert [line.startswith(text) for line in lines] == [True] * warned


def test_one_line_at_start_names_the_checkpoint(
    distil: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(NativeEngine, "load", classmethod(lambda cls, folder, settings: RecordingEngine()))
    prints = identity.look(distil).fingerprints
    monkeypatch.setattr(identity, "PUBLISHED", {identity.DISTIL: prints})
    with caplog.at_level(logging.INFO, "hunyuan.editor"):
        Editor.load(Settings(model_id=distil))
        assert caplog.messages == [
            f"checkpoint: {identity.DISTIL} by its fingerprints, 355 tensors, 2 layers, not quantized (BF16)"
        ]
        caplog.clear()
        folder = Path(shutil.copytree(distil, tmp_path / "guided"))
        raw = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(raw | {"cfg_distilled": False}))
        Editor.load(Settings(model_id=folder))
        assert (
            "checkpoint: config.json says cfg_distilled false, but the weights hold guidance_emb.*" in caplog.messages
        )
        assert {record.levelno for record in caplog.records[1:]} == {logging.WARNING}


@pytest.mark.parametrize(
    ("model", "named"),
    [("tiny", "the built-in tiny checkpoint of random weights"), (None, "the built-in demo")],
)
def test_a_built_in_checkpoint_says_at_start_that_it_is_one(
    packed_tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    model: str | None,
    named: str,
) -> None:
    monkeypatch.setattr(builtin, "FOLDER", packed_tiny / "packed")
    monkeypatch.setattr(NativeEngine, "load", classmethod(lambda cls, folder, settings: RecordingEngine()))
    with caplog.at_level(logging.INFO, "hunyuan.editor"):
        Editor.load(Settings(model_id=model, cache_dir=tmp_path))
    (line,) = [line for line in caplog.messages if line.startswith("checkpoint: ")]
    assert line.startswith(f"checkpoint: {named}, ")


def test_the_tiny_checkpoint_is_loaded_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MODEL_ID", "tiny")
    with caplog.at_level(logging.WARNING, "hunyuan.editor"):
        editor = Editor.load(Settings(cache_dir=tmp_path, device="cpu"))
    assert editor.model_name == "builtin-tiny-random"
    assert editor.default_steps == 28
    [record] = [record for record in caplog.records if record.name == "hunyuan.editor"]
    assert record.levelno == logging.WARNING
    assert record.getMessage() == f"builtin-tiny-random: {editor.notice}"
    assert "random weights" in record.getMessage()
    assert record.getMessage().endswith("(MODEL_ID=tiny)")
    assert [folder for folder in tmp_path.iterdir() if (folder / "config.json").is_file()] != []


@pytest.mark.parametrize(("value", "asked"), [(None, "MODEL_ID is unset"), ("demo", "MODEL_ID=demo")])
def test_without_a_model_it_is_the_demo(
    packed_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None, asked: str
) -> None:
    monkeypatch.setattr(builtin, "FOLDER", packed_tiny / "packed")
    editor = Editor.load(Settings(model_id=value, cache_dir=tmp_path / "cache", device="cpu"))
    assert editor.model_name == "demo"
    assert editor.notice == f"{ABOUT} ({asked})"
    [folder] = (tmp_path / "cache").glob("hunyuan-demo-*")
    assert (folder / "config.json").is_file()


def test_with_a_model_no_such_warning_is_logged(
    golden: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(NativeEngine, "load", classmethod(lambda cls, folder, settings: RecordingEngine()))
    with caplog.at_level(logging.WARNING):
        Editor.load(Settings(model_id=golden / "checkpoint"))
    assert caplog.records == []


def test_settings_come_from_the_environment_when_none_are_given(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Path, Settings]] = []

    def load(cls: type, folder: Path, settings: Settings) -> RecordingEngine:
        asked.append((folder, settings))
        return RecordingEngine()

    monkeypatch.setattr(NativeEngine, "load", classmethod(load))
    monkeypatch.setenv("MODEL_ID", str(golden / "checkpoint"))
    monkeypatch.setenv("HUNYUAN_PROMPT_MAX_CHARS", "3")
    editor = Editor.load()
    assert asked == [(golden / "checkpoint", editor.settings)]
    with pytest.raises(InvalidPrompt, match="allowed are 1 to 3"):
        editor.run(EditRequest("abcd"))


def test_the_settings_choose_the_official_engine(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, asked = RecordingEngine(), []

    def load(cls: type, folder: Path, settings: Settings) -> RecordingEngine:
        asked.append((folder, settings))
        return engine

    def refuse(cls: type, folder: Path, settings: Settings) -> RecordingEngine:
        raise AssertionError("the other engine was loaded")

    monkeypatch.setattr(OfficialEngine, "load", classmethod(load))
    monkeypatch.setattr(NativeEngine, "load", classmethod(refuse))
    settings = Settings(model_id=golden / "checkpoint", engine="official")
    editor = Editor.load(settings)
    assert asked == [(golden / "checkpoint", settings)]
    assert editor.engine is engine
    assert editor.run(EditRequest("a")).steps == 28


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is missing in the checkpoint folder"):
        Editor.load(Settings(model_id=tmp_path))


@pytest.mark.parametrize("engine", ["native", "official"])
@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_file_that_is_missing_is_told_first_and_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str, engine: str
) -> None:
    """Nothing is logged of a folder that lacks what it would be read from."""
    folder = write_tiny_checkpoint(tmp_path / "tiny")
    (folder / file).unlink()
    with caplog.at_level(logging.INFO), pytest.raises(CheckpointError, match=rf"{file} is "):
        Editor.load(Settings.model_validate({"model_id": folder, "engine": engine, "device": "cpu"}))
    assert caplog.messages == []


def test_a_config_that_lacks_a_key_is_told_first_and_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_tiny_checkpoint(tmp_path / "tiny")
    config = json.loads((folder / "config.json").read_text())
    del config["num_hidden_layers"]
    (folder / "config.json").write_text(json.dumps(config))
    with caplog.at_level(logging.INFO), pytest.raises(CheckpointError, match=r"num_hidden_layers: missing"):
        Editor.load(Settings(model_id=folder, device="cpu"))
    assert caplog.messages == []


def test_weights_that_cannot_be_read_contradict_no_config(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_tiny_checkpoint(tmp_path / "tiny")
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with caplog.at_level(logging.WARNING), pytest.raises(CheckpointError, match="Git LFS pointer"):
        Editor.load(Settings(model_id=folder, device="cpu"))
    assert caplog.messages == []


# --- small edits


def test_an_edit_through_every_part(golden_editor: Editor, golden: Path) -> None:
    """No stand-in here, the decoder included; the smallest bucket."""
    request = edit(images=[golden / "images" / "src0.png"], resolution="384x128", infer_align_image_size=False)
    result = golden_editor.run(request)
    assert isinstance(result.image, Image.Image)
    assert result.image.mode == "RGB"
    assert result.size == result.image.size == (384, 128)
    assert (result.seed, result.steps, result.cot_text, result.tokens) == (3, 1, None, 0)
    assert np.asarray(result.image).std() > 1  # not one colour


def test_generate_image_gives_the_picture_of_run(quick: Editor) -> None:
    result = quick.run(edit(images=[PICTURE], seed=8, steps=2))
    image = quick.generate_image(
        "Make the sky orange", [PICTURE], seed=8, image_size="256x256", bot_task="image", diff_infer_steps=2
    )
    assert image.size == (256, 256)
    assert same(image, result.image)


@pytest.mark.trap(2)
def test_one_seed_reproduces_bit_for_bit_and_another_differs(quick: Editor) -> None:
    """The thought, the condition image's latents and the noise all come from the seed."""
    request = edit(images=[PICTURE], bot_task="recaption", do_sample=True, temperature=50.0, max_new_tokens=6)
    first = quick.run(request)
    torch.manual_seed(99)  # what the process draws elsewhere has no part in it
    again, other = quick.run(request), quick.run(replace(request, seed=4))
    assert same(first.image, again.image)
    assert first.cot_text == again.cot_text
    assert not same(first.image, other.image)
    assert first.cot_text != other.cot_text


@pytest.mark.trap(2)
def test_the_text_is_drawn_from_the_seed_too(quick: Editor) -> None:
    """Without a condition image, nothing else of the text stage depends on it."""
    request = edit(bot_task="recaption", do_sample=True, temperature=50.0, max_new_tokens=6)
    texts = [quick.run(replace(request, seed=seed)).cot_text for seed in (1, 1, 2, 3)]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3


@pytest.mark.trap(2)
def test_a_drawn_seed_makes_the_picture_again(quick: Editor) -> None:
    first = quick.run(edit(seed=None))
    assert same(quick.run(edit(seed=first.seed)).image, first.image)
    assert not same(quick.run(edit(seed=None)).image, first.image)


@pytest.mark.trap(16)
def test_an_edit_between_two_equal_ones_changes_nothing(quick: Editor) -> None:
    first = quick.run(edit())
    quick.run(edit(images=[PICTURE], resolution="128x384", bot_task="think", max_new_tokens=3, seed=77))
    assert same(quick.run(edit()).image, first.image)


@pytest.mark.trap(5)
@pytest.mark.parametrize(
    ("resolution", "size"),
    [("512x512", (256, 256)), ("2048x2048", (256, 256)), ("384x128", (384, 128)), ("1:3", (128, 384))],
)
def test_the_picture_has_the_size_of_the_wishs_bucket(quick: Editor, resolution: str, size: tuple[int, int]) -> None:
    assert quick.run(edit(resolution=resolution)).size == size


def test_a_picture_and_its_path_give_the_same(quick: Editor, tmp_path: Path) -> None:
    path = tmp_path / "file.png"
    PICTURE.save(path)
    results = [quick.run(edit(images=[source])).image for source in (PICTURE, path, str(path))]
    assert same(results[0], results[1])
    assert same(results[0], results[2])


def test_a_picture_that_cannot_be_read_is_the_requests_fault(quick: Editor, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "small.png").write_bytes(b"")
    PICTURE.resize((8, 8)).save(tmp_path / "small.png")
    reasons = {
        tmp_path / "missing.png": "No such file or directory",
        tmp_path / "text.png" / "beneath.png": "Not a directory",
        tmp_path: "Is a directory",
        tmp_path / "text.png": r"the file \(10 bytes\) is none of PNG, JPEG, WebP, HEIC and AVIF, or damaged",
        tmp_path / "small.png": "got 8x8 px; each side must be at least 16 px",
        tmp_path / ("x" * 300): "File name too long",
        tmp_path / "a\0b": r"cannot be decoded \(ValueError\)",
    }
    for path, reason in reasons.items():
        for source in (path, str(path)):
            with pytest.raises(InvalidImage, match=f"^image: {re.escape(str(path))}: {reason}$"):
                quick.run(edit(images=[PICTURE, source]))


def test_a_picture_that_may_not_be_read_is_named(
    quick: Editor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "closed.png"

    def refuse(*_: object, **__: object) -> None:  # a file's mode does not keep root out
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr("hunyuan.pictures.reader.open", refuse, raising=False)
    with pytest.raises(InvalidImage, match=f"^image: {re.escape(str(path))}: Permission denied$"):
        quick.run(edit(images=[path]))


def test_warming_up_runs_every_stage(quick: Editor, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[EditRequest] = []
    real = quick.engine.run

    def run(request: EditRequest, **settled: Any) -> EditResult:
        asked.append(request)
        return real(request, **settled)

    monkeypatch.setattr(quick.engine, "run", run)
    result = quick.warm_up()
    assert {"prefill", "think", "first_step", "denoise", "vae"} <= result.timings.keys()
    assert result.tokens >= 1
    assert (result.seed, result.steps, len(asked[0].images)) == (0, 2, 1)


# --- files and tags that are not as they should be


@pytest.mark.parametrize(
    "changes", [{"resolution": None}, {"resolution": 1024}, {"images": None}, {"max_new_tokens": None}, {"cot_text": 3}]
)
def test_a_field_of_another_type_is_the_requests_fault(quick: Editor, changes: dict[str, Any]) -> None:
    bot_task = "think" if "max_new_tokens" in changes else "image"
    with pytest.raises(InvalidRequest):
        quick.run(edit(**{"bot_task": bot_task, **changes}))


def test_one_path_where_a_list_is_meant_is_refused_as_such(editor: Editor) -> None:
    with pytest.raises(InvalidImage):
        editor.run(EditRequest("a", images="a.p"))
