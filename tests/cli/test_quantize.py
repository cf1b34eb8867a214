"""`hunyuan quantize` and `hunyuan verify`: one success and the errors, as a line and a status."""

from __future__ import annotations

from pathlib import Path

import pytest

from hunyuan.checkpoint.folder import read_config
from hunyuan.checkpoint.tiny import write_tiny_checkpoint
from hunyuan.cli.main import main


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "source")


def test_quantize_then_verify(source: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert main(["quantize", str(source), str(out), "--weights", "fp8", "--device", "cpu", "--workers", "1"]) == 0
    assert "peak resident memory" in capsys.readouterr().out
    assert set(read_config(out).expert_formats) == {"fp8"}
    assert main(["verify", str(out)]) == 0
    said, complete = capsys.readouterr().out.splitlines()
    assert said.endswith("quantized by hunyuan quantize (experts fp8, attention and shared MLP BF16)")
    assert complete == f"{out} is complete"


def test_quantize_refuses_in_a_line(source: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    assert main(["quantize", str(tmp_path / "none"), str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["quantize", str(source), str(tmp_path / "out"), "--device", "cuda"]) == 2
    assert capsys.readouterr().err == "error: --device=cuda, but torch finds no CUDA device; use auto or cpu\n"


def test_no_number_of_workers_is_negative(source: Path, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main(["quantize", str(source), str(tmp_path / "out"), "--workers", "-1"])
    assert end.value.code == 2
    assert "at least 0" in capsys.readouterr().err


def test_verify_says_what_is_missing(tmp_path: Path, capsys) -> None:
    assert main(["verify", str(tmp_path)]) == 1
    assert "config.json is missing" in capsys.readouterr().err.splitlines()
