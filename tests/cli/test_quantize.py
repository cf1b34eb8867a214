"""`hunyuan quantize` and `hunyuan verify`: one success and the errors, as a line and a status."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest

from hunyuan.checkpoint.folder import read_config
from hunyuan.checkpoint.full_size import full_size_config
from hunyuan.checkpoint.tiny import write_tiny_checkpoint
from hunyuan.cli.main import main
from hunyuan.cli.quantize import reserve_gib
from hunyuan.plan.memory import Work, begun_bytes, kv_layer_bytes


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


def test_mixed_says_what_each_layer_costs_and_gains(source: Path, tmp_path: Path, capsys) -> None:
    """An H100 has room for all of a tiny model's layers."""
    out = tmp_path / "mixed"
    assert main(["quantize", str(source), str(out), "--weights", "mixed", "--device", "cpu", "--workers", "1"]) == 0
    config = read_config(out)
    assert set(config.expert_formats) == {"fp8"}
    said = capsys.readouterr().out.splitlines()
    head = next(n for n, line in enumerate(said) if line.endswith("in relative error of its weights"))
    rows = [line.split() for line in said[head + 2 : head + 2 + config.num_hidden_layers]]
    assert [row[:2] for row in rows] == [[str(n), "fp8"] for n in range(config.num_hidden_layers)]
    assert all(float(row[4]) > 3 * float(row[5]) for row in rows)
    assert said[head + 2 + len(rows)].startswith(f"{len(rows)} of {len(rows)} layers in fp8: ")


def test_mixed_leaves_what_the_memory_plan_wants(tmp_path: Path) -> None:
    """With the real model's config: 12.98 GiB, as `hunyuan plan` shows them."""
    (tmp_path / "config.json").write_text(json.dumps(full_size_config(experts="bf16")))

    def reserved(given: float | None, batch: int) -> float:
        return reserve_gib(argparse.Namespace(source=tmp_path, reserve_gib=given, text_batch=batch))

    assert reserved(None, 1) == pytest.approx(61.86 - 48.88, abs=0.02)
    work = Work.create(read_config(tmp_path), texts=4)
    more = work.texts * work.text_capacity * kv_layer_bytes(read_config(tmp_path), replace(work, texts=0), 2)
    more = more * 32 / (work.rows * work.capacity) / (1 << 30)
    more += begun_bytes(read_config(tmp_path), work, 2) / (1 << 30)
    assert reserved(None, 4) == pytest.approx(reserved(None, 1) + more, abs=0.01)
    assert more > 1
    assert reserved(3.5, 4) == 3.5


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
