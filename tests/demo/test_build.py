"""scripts/demo/build.py: the parts in their order, each once; a slice that ends is gone on with; a fault ends it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scripts.demo import build, state, train

SMALL = ["--gpus", "1", "--device", "cpu", "--autoencoder-steps", "4", "--transformer-steps", "10"]
SMALL += ["--decoder-steps", "5"]
ORDER = ["pack", "tokenizer", "train autoencoder", "train transformer", "train decoder", "export", "judge"]


class Commands:
    """In place of the parts: notes what was called, and leaves what each leaves. A training makes 5 steps per call."""

    def __init__(self) -> None:
        self.called, self.lines = list[str](), list[list[str]]()
        self.failing = ""
        self.cut = False  # stopped after the autoencoder's last step, before its average is written

    def run(self, command: list[str], check: bool) -> subprocess.CompletedProcess[bytes]:
        assert command[:2] == [sys.executable, "-m"]
        words = command[next(i for i, word in enumerate(command) if word.startswith("scripts.demo.")) :]
        name = words[0].removeprefix("scripts.demo.")
        if name == "train":
            assert train.build_parser().parse_args(words[1:]).part == words[1]
            name += f" {words[1]}"
            kept = Path(words[words.index("--state") + 1])
            if words[1] == "decoder":
                self.train_decoder(kept)
            else:
                self.train(kept, words[1])
        elif name in ("pack", "tokenizer"):
            Path(words[-1]).touch()
        self.called.append(name)
        self.lines.append(command)
        return subprocess.CompletedProcess(command, 3 if name == self.failing else 0)

    def train(self, folder: Path, name: str) -> None:
        kept = state.load(folder, name) or {"step": 0}
        steps = {"step": kept["step"] + 5, "parameters": {"x": torch.zeros(1)}}
        state.save(folder, name, steps)
        if name == "autoencoder" and not self.cut:
            state.save(folder, "autoencoder_average", {"step": steps["step"]})

    def train_decoder(self, folder: Path) -> None:
        kept, transformer = (state.load(folder, name) for name in ("autoencoder_average", "transformer"))
        assert kept is not None
        assert transformer is not None
        before = state.decoder_step(kept, transformer["step"])
        steps = {"decoder_step": before + 5, "decoder_for": transformer["step"]}
        state.save(folder, "autoencoder_average", {**kept, **steps})


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    stub = Commands()
    monkeypatch.setattr(build.subprocess, "run", stub.run)
    return stub


def test_a_slice_ends_and_the_same_command_goes_on_to_the_end(tmp_path: Path, commands: Commands) -> None:
    line = [str(tmp_path / "work"), *SMALL, "--slice-seconds", "60", "--seed", "7"]
    assert build.main(line) == build.UNFINISHED
    assert commands.called == ORDER[:4]
    assert build.main(line) == 0
    assert commands.called == [*ORDER[:4], *ORDER[3:]]
    trained = commands.lines[3]
    assert trained[trained.index("--seconds") + 1] == "60.0"
    assert trained[trained.index("--seed") + 1] == "7"
    commands.called.clear()
    assert build.main(line) == 0
    assert commands.called == ["export", "judge"]


def test_a_fault_ends_it_with_its_status(
    tmp_path: Path, commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.failing = "train autoencoder"
    assert build.main([str(tmp_path), *SMALL]) == 3
    assert commands.called == ORDER[:3]
    assert "autoencoder: failed with status 3" in capsys.readouterr().err


def test_an_autoencoder_without_its_average_is_not_done(tmp_path: Path, commands: Commands) -> None:
    commands.cut = True
    assert build.main([str(tmp_path), *SMALL]) == build.UNFINISHED
    commands.cut = False
    assert build.main([str(tmp_path), *SMALL, "--transformer-steps", "5"]) == 0
    assert commands.called == [*ORDER[:3], *ORDER[2:]]


def test_the_decoder_goes_on_in_slices_and_anew_after_more_of_the_transformer(
    tmp_path: Path, commands: Commands
) -> None:
    line = [str(tmp_path), *SMALL, "--decoder-steps", "10"]
    assert build.main([*line, "--transformer-steps", "5"]) == build.UNFINISHED
    assert build.main([*line, "--transformer-steps", "5"]) == 0
    assert commands.called == [*ORDER[:5], *ORDER[4:]]
    commands.called.clear()
    assert build.main(line) == build.UNFINISHED
    assert commands.called == ["train transformer", "train decoder"]
    assert build.main(line) == 0


def test_only_the_transformer_takes_several_gpus(tmp_path: Path, commands: Commands) -> None:
    assert build.main([str(tmp_path), *SMALL, "--gpus", "2", "--transformer-steps", "5"]) == 0
    launched = ["torch.distributed.run" in line for line in commands.lines]
    assert launched == [name == "train transformer" for name in ORDER]
