"""`hunyuan doctor`: every row on this machine, and on machines that lack something or have an H100."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from hunyuan.accel import flashinfer_modules
from hunyuan.checkpoint.tiny import write_tiny_checkpoint
from hunyuan.cli import doctor
from hunyuan.cli.main import main

H100 = doctor.Card("NVIDIA H100 80GB HBM3", (9, 0), int(79.6 * 2**30))
SMALL = doctor.Card("NVIDIA T4", (7, 5), 15 * 2**30)


def test_this_machine(capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MODEL_ID", str(write_tiny_checkpoint(tmp_path / "model")))
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out
    for name in ("Python", "packages", "settings", "checkpoint", "driver", "GPU", "compiled kernels", "disk", "allows"):
        assert f" {name}" in told
    assert "model is complete" in told


def test_a_wrong_setting_and_a_broken_checkpoint_are_bad(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setenv("HUNYUAN_STEPS", "3")
    assert main(["doctor"]) == 1
    assert "BAD  settings" in capsys.readouterr().out
    monkeypatch.delenv("HUNYUAN_STEPS")
    monkeypatch.setenv("MODEL_ID", str(tmp_path))
    assert main(["doctor"]) == 1
    assert "BAD  checkpoint        config.json is missing (and 4 more; hunyuan verify" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (None, ("the built-in demo", "256x256", "MODEL_ID is unset")),
        ("demo", ("the built-in demo", "MODEL_ID=demo")),
        ("tiny", ("the built-in tiny checkpoint of random weights", "MODEL_ID=tiny")),
    ],
)
def test_a_built_in_checkpoint_is_named(monkeypatch, asked, said) -> None:
    monkeypatch.delenv("MODEL_ID", raising=False)
    if asked:
        monkeypatch.setenv("MODEL_ID", asked)
    _, values = doctor.settings()
    row = doctor.checkpoint(values)
    assert row.state == "ok"
    assert all(words in row.found for words in said)
    assert doctor.checkpoint(None).state == "--"


def test_packages(monkeypatch) -> None:
    monkeypatch.setattr(doctor, "requirements", lambda: {"pytest": "0.1", "pydantic": _version("pydantic")})
    assert doctor.packages() == doctor.Row(
        "--", "packages", f"1 of 2 as pinned; not as pinned: pytest {_version('pytest')} (0.1 is pinned)"
    )
    monkeypatch.setattr(doctor, "requirements", lambda: {"no-such-package": "1"})
    assert doctor.packages() == doctor.Row("BAD", "packages", "missing: no-such-package")


def _version(name: str) -> str:
    return importlib.metadata.version(name)


def test_the_pins_of_a_checkout_are_read() -> None:
    assert {"torch", "bentoml", "pillow"} <= doctor.requirements().keys()


def test_an_h100_gets_4_bits_and_the_fast_path_once_its_kernels_are_there(monkeypatch) -> None:
    row = doctor.weights([H100], None)
    assert (row.state, row.found.split(":")[0]) == ("ok", "the published model in 4bit")
    assert "two GPUs" not in row.found
    assert "HUNYUAN_WEIGHTS=4bit: a copy on each of two GPUs" in doctor.weights([H100] * 2, None).found
    monkeypatch.setattr(flashinfer_modules, "missing_modules", lambda: ["fused_moe_90"])
    assert "run `hunyuan kernels`" in doctor.kernels([H100]).found
    assert "FlashInfer's compiled kernels" in doctor.speed([H100]).found
    monkeypatch.setattr(flashinfer_modules, "missing_modules", list)
    assert doctor.kernels([H100]).state == "ok"
    assert doctor.speed([H100]).state == "ok"
    assert "a Hopper GPU" in doctor.speed([SMALL]).found


def test_a_card_that_is_too_small_is_bad_only_for_a_checkpoint_that_was_named(tmp_path: Path) -> None:
    assert doctor.weights([SMALL], None).state == "--"
    assert doctor.weights([SMALL], write_tiny_checkpoint(tmp_path / "model")).state == "ok"


@pytest.mark.parametrize(("cards", "state"), [([], "--"), ([H100], "BAD")])
def test_a_compiler_is_needed_where_there_is_a_gpu(monkeypatch, cards, state) -> None:
    monkeypatch.setattr(doctor, "c_compiler", lambda: None)
    row = doctor.compiler(cards)
    assert row.state == state
    assert "a C compiler" in row.found


def test_a_driver_that_does_not_answer(monkeypatch, tmp_path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho NVIDIA-SMI has failed\nexit 9\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert doctor.driver() == doctor.Row("--", "driver", "NVIDIA-SMI has failed")
    program.write_text("#!/bin/sh\necho 570.1\necho 570.1\n")
    assert doctor.driver() == doctor.Row("ok", "driver", "570.1")
    monkeypatch.setenv("PATH", "/nowhere")
    assert doctor.driver().found == "none: nvidia-smi is not there"
